"""Batches of a stream of cuts: lhotse's dynamic samplers, with a limit on target tokens besides seconds and cuts.

`level` gives ranks that draw their batches separately the same number of batches.
"""

from __future__ import annotations

import dataclasses
import inspect
import random
from collections import deque
from contextlib import suppress
from itertools import cycle, islice
from typing import Any, Callable, Deque, List, Optional, Sequence, Tuple

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler
from lhotse.dataset.sampling.base import TimeConstraint
from torch.utils.data import Sampler

from tokenverse_pp.base.config import DataConfig

# Seconds of audio at which attention takes as many operations as the rest of a layer: 4 T d and 24 d^2 per frame, at
# 50 frames per second and 1024 channels.
DOUBLED = 123.0


def paired_limits(config: DataConfig) -> DataConfig:
    """Return the configuration with half the seconds, cuts and tokens per batch, where each cut will occur twice."""
    return dataclasses.replace(
        config,
        max_duration=config.max_duration / 2,
        max_cuts=config.max_cuts and config.max_cuts // 2,
        max_batch_tokens=config.max_batch_tokens and max(1, config.max_batch_tokens // 2),
    )


class SamplerBase(Sampler):
    """Mixin for lhotse samplers: torch before 2.1 expects a data source, which lhotse no longer passes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if "data_source" in inspect.signature(Sampler.__init__).parameters:
            options.setdefault("data_source", None)
        super().__init__(*arguments, **options)


class BatchLimits(TimeConstraint):
    """lhotse's limits on seconds and cuts, and one on target tokens: the longest target times the number of cuts.

    `exceeded` ignores the tokens: lhotse uses it only for a warning.
    """

    def __init__(self, config: DataConfig, tokens_of: Callable[[Cut], int]):
        super().__init__(max_duration=config.max_duration, max_cuts=config.max_cuts)
        self.max_tokens = config.max_batch_tokens or 0
        self.tokens_of = tokens_of
        self.longest_target = 0

    def add(self, example: Cut) -> None:
        """Count a cut."""
        super().add(example)
        self.longest_target = max(self.longest_target, self.tokens_of(example))

    def close_to_exceeding(self) -> bool:
        """Whether another cut like the longest would exceed a limit."""
        return super().close_to_exceeding() or (self.num_cuts + 1) * self.longest_target > self.max_tokens

    def reset(self) -> None:
        """Start a new batch."""
        super().reset()
        self.longest_target = 0

    def split(self, cuts: CutSet) -> List[CutSet]:
        """Split a batch that has too many tokens; its longest targets come first."""
        rest, batches = sorted(cuts, key=self.tokens_of, reverse=True), []
        if len(rest) * self.tokens_of(rest[0]) <= self.max_tokens:
            return [cuts]
        while rest:
            count = max(1, self.max_tokens // max(1, self.tokens_of(rest[0])))
            batches.append(CutSet.from_cuts(rest[:count]))
            rest = rest[count:]
        return batches


class TokenLimited:
    """Mixin for lhotse samplers: with `BatchLimits`, no batch has too many tokens unless it is a single cut.

    lhotse keeps the cut that exceeds a limit, and at the end of the data mixes the last batches to get one per rank.
    Both could exceed the limit, so batches are split instead. Every rank draws and splits the same batches.
    """

    constraint: Any
    world_size: int

    def __iter__(self) -> Any:
        """Start an epoch."""
        self._ready: Deque[CutSet] = deque()
        self._given = 0
        return super().__iter__()  # type: ignore[misc]

    def _next_batch(self) -> Any:
        if not isinstance(self.constraint, BatchLimits):
            return super()._next_batch()  # type: ignore[misc]
        if self._given % self.world_size == 0:
            self._fill()
        if not self._ready:
            raise StopIteration
        self._given += 1
        return self._ready.popleft()

    def _fill(self) -> None:
        """Prepare a batch for each rank, or fewer at the end of the data if fewer cuts than ranks are left."""
        with suppress(StopIteration):
            while len(self._ready) < self.world_size:
                self._ready.extend(self.constraint.split(super()._next_batch()))  # type: ignore[misc]
        while 0 < len(self._ready) < self.world_size:
            number = _largest(self._ready)
            if len(self._ready[number]) == 1:
                return
            self._ready[number], other = _halves(self._ready[number])
            self._ready.append(other)


class StreamSampler(TokenLimited, DynamicCutSampler, SamplerBase):
    """Batches of a shuffled stream."""


class BucketSampler(TokenLimited, DynamicBucketingSampler, SamplerBase):
    """Batches of cuts of similar duration."""


def level(batches: Sequence[CutSet], count: int, rng: Optional[random.Random] = None) -> List[CutSet]:
    """Return ``count`` batches: the largest are split; with fewer cuts than that, batches are repeated, as in lhotse.

    Args:
        rng: in the same state on all ranks. It draws one order for all: each rank has its n-th most expensive batch
            at the same position. None keeps the order.
    """
    found = list(batches)
    while len(found) < count:
        number = _largest(found)
        if len(found[number]) == 1:
            found += islice(cycle(batches), count - len(found))
        else:
            found[number : number + 1] = _halves(found[number])
    if rng is not None:
        found.sort(key=_cost)
        rng.shuffle(found)
    return found


def _largest(batches: Sequence[CutSet]) -> int:
    """The index of the first batch with the most cuts."""
    return max(range(len(batches)), key=lambda number: len(batches[number]))


def _halves(batch: CutSet) -> Tuple[CutSet, CutSet]:
    """The first half of a batch, rounded down, and the rest."""
    cuts = list(batch)
    return CutSet.from_cuts(cuts[: len(cuts) // 2]), CutSet.from_cuts(cuts[len(cuts) // 2 :])


def _cost(batch: CutSet) -> float:
    """The cost of a step in seconds of padded audio; attention doubles it at `DOUBLED`."""
    longest = max(cut.duration for cut in batch)
    return len(batch) * longest * (1 + longest / DOUBLED)

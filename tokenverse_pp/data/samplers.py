"""Samplers and loaders: which cuts a batch has, and the batches of an epoch from any place on (for resuming)."""

from __future__ import annotations

import inspect
from itertools import islice
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets
from lhotse.lazy import LazyIteratorChain
from torch.utils.data import DataLoader, Dataset, Sampler

from tokenverse_pp.base.config import DataConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.dataset import Batch, TransducerDataset
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.sources import CorpusRange, Rounds, open_source


class SamplerBase(Sampler):
    """Mixed into a lhotse sampler: torch before 2.1 wants a data source, which lhotse no longer gives."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if "data_source" in inspect.signature(Sampler.__init__).parameters:
            options.setdefault("data_source", None)
        super().__init__(*arguments, **options)


BINS_FROM = 10000  # cuts that the buckets' bounds are estimated from, lhotse's default


def load_cuts(paths: Sequence[str], option: str = "data.train") -> CutSet:
    """The cuts of several files or Shar folders one after another, lazily.

    Raises:
        UserError: naming the option and the file that is missing, empty or no CutSet.
    """
    if not paths:
        raise UserError(f"--{option}: expected at least one CutSet file")
    sets = [CutSet(CorpusRange(open_source(path, option), 0, None)) for path in paths]
    return sets[0] if len(sets) == 1 else CutSet(LazyIteratorChain(*sets))


class StreamSampler(DynamicCutSampler, SamplerBase):
    """Batches of a shuffled stream."""


class BucketSampler(DynamicBucketingSampler, SamplerBase):
    """Batches of cuts of similar duration."""


class SamplerState(NamedTuple):
    """How far a rank has come in the data."""

    epoch: int = 0
    round: int = 0
    batch: int = 0  # batches of the round that this rank has used


class TrainSampler:
    """Draws batches, round by round, each with lhotse's dynamic bucketing sampler.

    All ranks get the same number of batches: lhotse draws a batch for each rank at once, and where the last draw of a
    round does not reach all ranks it splits what there is among them (fewer cuts than ranks: some come twice).

    Args:
        rounds: the cuts of each round.
        config: limits of a batch, buckets and buffers.
        seed: of the order.
        world: this process among its peers.
        wanted: a predicate that leaves out cuts which cannot be used.
        looked: called after ``wanted`` has seen the first cuts (`look`), and after each round.
    """

    def __init__(
        self,
        rounds: Rounds,
        config: DataConfig,
        seed: int,
        world: DistributedContext,
        wanted: Callable[[Cut], bool] = bool,
        looked: Callable[[], None] = lambda: None,
    ):
        self.rounds = rounds
        self.config = config
        self.seed = seed
        self.world = world
        self.wanted = wanted
        self.looked = looked
        self._bins: Optional[List[float]] = None

    def batches(self, start: SamplerState) -> Iterator[Tuple[SamplerState, CutSet]]:
        """The batches of an epoch from a place on, each with the place after it.

        The batches of the round before it are drawn again, their audio is not loaded.
        """
        epoch, first, skip = start
        for number in range(first, self.rounds.per_epoch):
            sampler = self._sampler(self.rounds.cuts(epoch, number).filter(self.wanted))
            sampler.set_epoch(epoch * self.rounds.per_epoch + number)
            for batch, cuts in enumerate(sampler, start=1):
                if batch > skip:
                    yield SamplerState(epoch, number, batch), cuts
            self.looked()
            skip = 0

    def look(self) -> List[float]:
        """Look at the first cuts, once, for the bounds of the buckets."""
        if self._bins is None:
            self._bins = duration_bins(self.rounds.cuts(0, 0).filter(self.wanted), self.config)
            self.looked()
        return self._bins

    def _sampler(self, cuts: CutSet) -> Any:
        return round_sampler(cuts, self.look(), self.config, self.seed, self.world)


def duration_bins(cuts: CutSet, config: DataConfig) -> List[float]:
    """Bounds of the buckets in seconds, from the first cuts; empty where one bucket is wanted, or too few cuts are."""
    first = list(islice(cuts, BINS_FROM))
    num_buckets = min(config.num_buckets, len(first))
    if num_buckets <= 1:
        return []
    limits = TimeConstraint(max_duration=config.max_duration, max_cuts=config.max_cuts)
    return estimate_duration_buckets(first, num_buckets=num_buckets, constraint=limits)


def round_sampler(cuts: CutSet, bins: List[float], config: DataConfig, seed: int, world: DistributedContext) -> Any:
    """lhotse's dynamic bucketing sampler, or without ``bins`` its plain one.

    A batch is full once another cut like its longest would be too much, so that in a mixed stream its last cut may
    exceed the duration.
    """
    options: Dict[str, Any] = {
        "max_duration": config.max_duration,
        "max_cuts": config.max_cuts,
        "shuffle": config.shuffle,
        "seed": seed,
        "rank": world.rank,
        "world_size": world.size,
    }
    if not bins:
        return StreamSampler(cuts, **options, shuffle_buffer_size=config.buffer_size)
    return BucketSampler(cuts, **options, duration_bins=bins, buffer_size=config.buffer_size)


class FromPlace:
    """A sampler for torch's DataLoader: the batches of an epoch from a place on. It lives in the main process."""

    def __init__(self, sampler: TrainSampler, start: SamplerState):
        self.sampler = sampler
        self.start = start
        self.drawn: Dict[SamplerState, CutSet] = {}  # not loaded yet

    def __iter__(self) -> Iterator[Tuple[SamplerState, CutSet]]:
        for place, cuts in self.sampler.batches(self.start):
            self.drawn[place] = cuts
            yield place, cuts


class Loading(Dataset):
    """Gives a UserError back instead of raising it: torch would put a worker's traceback into its message."""

    def __init__(self, dataset: TransducerDataset):
        self.dataset = dataset

    def __getitem__(self, drawn: Tuple[SamplerState, CutSet]) -> Tuple[SamplerState, Union[Batch, UserError]]:
        """The batch of some cuts, or what is wrong with them."""
        place, cuts = drawn
        try:
            return place, self.dataset[cuts]
        except UserError as error:
            return place, error


def train_batches(
    sampler: TrainSampler, dataset: TransducerDataset, config: DataConfig, start: SamplerState
) -> Iterator[Tuple[SamplerState, Batch]]:
    """Batches of one epoch from a place on, each with the place after it and under ``cuts`` the cuts themselves.

    Raises:
        UserError: for a cut that cannot be loaded, here or in a worker process.
    """
    dataset.epoch = start.epoch
    # Sampling needs no pickled dataset state but the epoch, and workers start anew each epoch, so they see it.
    batches = FromPlace(sampler, start)
    loader = DataLoader(
        Loading(dataset),
        sampler=batches,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=config.num_workers,
        prefetch_factor=4 if config.num_workers else default_prefetch(),
    )
    for place, batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield place, {**batch, "cuts": batches.drawn.pop(place)}


def default_prefetch() -> Optional[int]:
    """What DataLoader wants to be told where there are no workers: None, before torch 2.0 the number 2."""
    return None if int(torch.__version__.split(".")[0]) >= 2 else 2


def shard(cuts: Sequence[Cut], world: DistributedContext) -> List[Cut]:
    """This process's part of a list."""
    return list(cuts)[world.rank :: world.size]

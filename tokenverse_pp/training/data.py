"""Samplers and loaders."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Union

import torch
from lhotse import CutSet, load_manifest_lazy
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler
from torch.utils.data import DataLoader, Dataset

from tokenverse_pp.compat import SamplerBase
from tokenverse_pp.config import DataConfig
from tokenverse_pp.dataset import SAMPLING_RATE, Batch, TransducerDataset
from tokenverse_pp.errors import UserError
from tokenverse_pp.model.encoder import Encoder
from tokenverse_pp.training.distributed import World


def load_cuts(paths: Sequence[str], option: str = "data.train") -> CutSet:
    """Read CutSets one after another, lazily.

    Raises:
        UserError: naming the option and the file that is missing, empty or no CutSet.
    """
    if not paths:
        raise UserError(f"--{option}: expected at least one CutSet file")
    sets = []
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"--{option}: {path}: no such file")
        try:
            cuts = load_manifest_lazy(path)
            first = next(iter(cuts), None)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"--{option}: {path}: not a lhotse CutSet: {reason}") from None
        if first is None:
            raise UserError(f"--{option}: {path}: expected cuts, found none")
        if not isinstance(first, Cut):
            raise UserError(f"--{option}: {path}: expected cuts, found {type(first).__name__}")
        sets.append(cuts)
    return sets[0] if len(sets) == 1 else CutSet.mux(*sets, weights=[1.0] * len(sets), stop_early=False, seed=0)


def make_frames_of(encoder: Encoder) -> Callable[[float], int]:
    """Seconds of audio -> encoder output frames."""

    def frames_of(seconds: float) -> int:
        samples = torch.tensor([round(seconds * SAMPLING_RATE)])
        return int(encoder.output_lens(encoder.feature_lens(samples)))

    return frames_of


class StreamSampler(DynamicCutSampler, SamplerBase):
    """Batches of a shuffled stream."""


class BucketSampler(DynamicBucketingSampler, SamplerBase):
    """Batches of cuts of similar duration."""


class Resumed:
    """A sampler without the first batches of its epoch: they are drawn but their audio is never loaded."""

    def __init__(self, sampler: Any, skip: int):
        self.sampler = sampler
        self.skip = skip

    def __iter__(self) -> Iterator[CutSet]:
        return islice(iter(self.sampler), self.skip, None)


def train_sampler(cuts: CutSet, config: DataConfig, seed: int, world: World) -> Any:
    """lhotse's dynamic bucketing sampler (one plain stream for ``num_buckets`` 1).

    All ranks get the same number of batches: lhotse draws a batch for each rank at once, and where the last draw does
    not reach all ranks it splits what there is among them (fewer cuts than ranks: some come twice). A batch is full
    once another cut like its longest would be too much, so that in a mixed stream its last cut may exceed the duration.
    """
    options: Dict[str, Any] = {
        "max_duration": config.max_duration,
        "max_cuts": config.max_cuts,
        "shuffle": config.shuffle,
        "seed": seed,
        "rank": world.rank,
        "world_size": world.size,
    }
    # lhotse wants a cut for each bucket.
    num_buckets = sum(1 for _ in islice(cuts, config.num_buckets))
    if num_buckets <= 1:
        return StreamSampler(cuts, **options, shuffle_buffer_size=config.buffer_size)
    return BucketSampler(cuts, **options, num_buckets=num_buckets, buffer_size=config.buffer_size)


class Loading(Dataset):
    """Gives a UserError back instead of raising it: torch would put a worker's traceback into its message."""

    def __init__(self, dataset: TransducerDataset):
        self.dataset = dataset

    def __getitem__(self, cuts: CutSet) -> Union[Batch, UserError]:
        """The batch of some cuts, or what is wrong with them."""
        try:
            return self.dataset[cuts]
        except UserError as error:
            return error


def train_batches(
    sampler: Any, dataset: TransducerDataset, config: DataConfig, epoch: int, skip: int
) -> Iterator[Batch]:
    """Batches of one epoch, from batch ``skip`` on.

    Raises:
        UserError: for a cut that cannot be loaded, here or in a worker process.
    """
    sampler.set_epoch(epoch)
    dataset.epoch = epoch
    # Sampling needs no pickled dataset state but the epoch, and workers start anew each epoch, so they see it.
    loader = DataLoader(
        Loading(dataset),
        sampler=Resumed(sampler, skip),
        batch_size=None,
        num_workers=config.num_workers,
        prefetch_factor=4 if config.num_workers else default_prefetch(),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def default_prefetch() -> Optional[int]:
    """What DataLoader wants to be told where there are no workers: None, before torch 2.0 the number 2."""
    return None if int(torch.__version__.split(".")[0]) >= 2 else 2


def shard(cuts: Sequence[Cut], world: World) -> List[Cut]:
    """This process's part of a list."""
    return list(cuts)[world.rank :: world.size]

"""Which cuts an epoch has, in which batches: the corpora of ``data.train``, rounds, samplers and loaders.

A corpus can be read from any cut on without parsing the cuts before it.

An epoch is `data.epoch_cuts` cuts (all that there are, without weights). It is drawn in rounds of at most
`data.round_cuts`, each by a sampler of its own, so that a resumed run draws no more than one round again; the lines
before it are skipped unparsed.

A corpus with share w of all the weights has given floor(n * w) cuts after n draws of the run, in the order of its file,
and starts again at its end. So the draws of any round are known from the numbers of epoch and round alone, a large
corpus with a small weight is seen completely over several epochs, and without weights (a corpus's share is then its
share of the cuts) an epoch is exactly every cut once. lhotse's multiplexer mixes the corpora of a round at random.

A cut that comes again within an epoch, or from another file of `data.train`, is marked (`dataset.PASS`), so that each
time has its own draw of active tasks. The mark follows from the number of the draw: it is the same for any number of
ranks and workers, and after a resume.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import random
import zlib
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from fractions import Fraction
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Callable, Deque, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets
from lhotse.lazy import LazyIteratorChain
from lhotse.serialization import open_best
from torch.utils.data import DataLoader, Dataset, Sampler

from tokenverse_pp.base.config import DataConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import BLOCK, feed, url_of
from tokenverse_pp.base.storage import local_path
from tokenverse_pp.data.dataset import Batch, TransducerDataset, marked
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.editing.shar import find_shar, is_shar
from tokenverse_pp.data.lines import raw_lines, text_of
from tokenverse_pp.data.manifests import cut_of_line, load_whole

BINS_FROM = 10000  # cuts from which the bounds of the buckets are estimated, lhotse's default


class CutSource(ABC):
    """A corpus of `data.train`: a number of cuts in a fixed order, read over and over.

    Reading on costs nothing, reading from another place costs skipping lines.
    """

    def __init__(self, path: str):
        self.path = path
        self.file = Path(path) if is_shar(path) else local_path(path)
        self._count: Optional[int] = None
        self._reader: Iterator[Cut] = iter(())
        self._place = -1  # of the reader

    @property
    def count(self) -> int:
        """The number of cuts, counted once (raises UserError if there are none)."""
        if self._count is None:
            self._count = self.count_cuts()
            if not self._count:
                raise UserError(f"--data.train: {self.path}: expected cuts, found none")
        return self._count

    @abstractmethod
    def count_cuts(self) -> int:
        """Count the cuts without parsing them."""

    @abstractmethod
    def open_at(self, place: int) -> Iterator[Cut]:
        """The cuts from number ``place`` on."""

    def manifests(self) -> List[Path]:
        """The files that list the cuts; for a URL local copies."""
        return [self.file]

    def read(self, start: int, stop: int) -> Iterator[Cut]:
        """Cuts ``start`` to ``stop - 1``, where number `count` is the first one again."""
        for number in range(start, stop):
            place = number % self.count
            if place != self._place:
                self._reader, self._place = self.open_at(place), place
            self._place += 1
            yield next(self._reader)

    def spread(self, count: int) -> Iterator[Cut]:
        """So many cuts, evenly spread over the source; all of them where there are not more."""
        reader, at = self.open_at(0), 0
        for place in self._spread_places(count):
            yield next(islice(reader, place - at, None))
            at = place + 1

    def _spread_places(self, count: int) -> Iterator[int]:
        """One place of each of ``count`` equal parts, always the same: drawn, since a manifest may repeat a pattern."""
        count, rng = min(count, self.count), random.Random(0)
        for number in range(count):
            yield rng.randrange(number * self.count // count, (number + 1) * self.count // count)

    def __getstate__(self) -> Dict[str, Any]:
        """For other processes: they open it anew."""
        return {**self.__dict__, "_reader": iter(()), "_place": -1}

    def fingerprint(self) -> Dict[str, Any]:
        """Bytes and SHA-256 of the manifests; audio is not read."""
        digest = hashlib.sha256()
        size = sum(feed(digest, path) for path in self.manifests())
        return {"path": self.path, "bytes": size, "sha256": digest.hexdigest()}


class LinesSource(CutSource):
    """Cuts as JSON lines, plain or gzipped."""

    def count_cuts(self) -> int:
        """See CutSource; a blank line at the end is no cut."""
        return _count_lines(self.file)

    def open_at(self, place: int) -> Iterator[Cut]:
        """See CutSource."""
        with open_best(self.file, "r") as file:
            for number, line in enumerate(islice(file, place, None), start=place + 1):
                yield cut_of_line(line, f"{self.path}, line {number}")

    def spread(self, count: int) -> Iterator[Cut]:
        """See CutSource; the lines between are not parsed."""
        places = self._spread_places(count)
        place = next(places, None)
        for number, line in raw_lines(self.file):
            if place is None:
                return
            if number == place + 1:
                where = f"{self.path}, line {number}"
                yield cut_of_line(text_of(line, where), where)
                place = next(places, None)


class WholeSource(CutSource):
    """Cuts in one JSON or YAML document, which is read at once."""

    def __init__(self, path: str):
        super().__init__(path)
        self.cuts = list(load_whole(str(self.file)))

    def count_cuts(self) -> int:
        """See CutSource."""
        return len(self.cuts)

    def open_at(self, place: int) -> Iterator[Cut]:
        """See CutSource."""
        return islice(iter(self.cuts), place, None)


class SharSource(CutSource):
    """A lhotse Shar folder: shards of a manifest and tar files of audio or arrays."""

    def __init__(self, path: str):
        super().__init__(path)
        self.files = find_shar(path)
        self.shard_counts: List[int] = []

    def count_cuts(self) -> int:
        """See CutSource; manifests only."""
        self.shard_counts = [_count_lines(path) for path in self.files.cuts]
        return sum(self.shard_counts)

    def open_at(self, place: int) -> Iterator[Cut]:
        """See CutSource; shards before ``place`` are not opened, the tar files of its own shard are read up to it."""
        assert self.count, "counting fills shard_counts"
        first = 0
        while place >= self.shard_counts[first]:
            place -= self.shard_counts[first]
            first += 1
        shards = (CutSet.from_shar(fields=self.files.open(n)) for n in range(first, len(self.files.cuts)))
        return islice(chain.from_iterable(shards), place, None)

    def manifests(self) -> List[Path]:
        """See CutSource: those of the shards."""
        return self.files.cuts


def open_source(path: str, option: str = "data.train") -> CutSource:
    """Open a file of cuts or a Shar folder and look at its first cut.

    Raises:
        UserError: naming the option and the file that is missing, empty or no CutSet.
    """
    is_folder = is_shar(path)
    if url_of(path) is None and not Path(path).exists():
        raise UserError(f"--{option}: {path}: no such file")
    try:
        source = (SharSource if is_folder else LinesSource if ".jsonl" in Path(path).suffixes else WholeSource)(path)
        first = next(source.open_at(0), None) if not is_folder or source.count_cuts() else None
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if reason.startswith(f"{path}: "):
            raise UserError(f"--{option}: {reason}") from None
        raise UserError(f"--{option}: {path}: not a lhotse CutSet: {reason}") from None
    if not isinstance(first, Cut):
        found = "none" if first is None else type(first).__name__
        raise UserError(f"--{option}: {path}: expected cuts, found {found}")
    return source


def _count_lines(path: Path) -> int:
    """Lines of a file, plain or gzipped; the last one may lack its newline."""
    count, last = 0, b"\n"
    try:
        with open_best(path, "rb") as file:
            for block in iter(lambda: file.read(BLOCK), b""):
                count += block.count(b"\n")
                last = block[-1:]
    except (OSError, EOFError, zlib.error) as error:  # a file that was cut off
        raise UserError(f"{path}: cannot be read after line {count}: {error}") from None
    return count + (last != b"\n")


class CorpusRange:
    """Cuts ``start`` to ``stop - 1`` of a source, iterable repeatedly (to the end of the file for None).

    Args:
        first: the number of the epoch's first cut, from which passes through the source are counted.
        file: the number of the source in `data.train`.
    """

    def __init__(self, source: CutSource, start: int, stop: Optional[int], first: int = 0, file: int = 0):
        self.source = source
        self.start = start
        self.stop = stop
        self.first = first
        self.file = file

    def __iter__(self) -> Iterator[Cut]:
        if self.stop is None:
            yield from self.source.open_at(self.start)
            return
        for number, cut in enumerate(self.source.read(self.start, self.stop), start=self.start):
            yield marked(cut, self.file, (number - self.first) // self.source.count)


def load_cuts(paths: Sequence[str], option: str = "data.train") -> CutSet:
    """The cuts of several files or Shar folders one after another, lazily.

    Raises:
        UserError: naming the option and the file that is missing, empty or no CutSet.
    """
    if not paths:
        raise UserError(f"--{option}: expected at least one CutSet file")
    sets = [CutSet(CorpusRange(open_source(path, option), 0, None)) for path in paths]
    return sets[0] if len(sets) == 1 else CutSet(LazyIteratorChain(*sets))


class Rounds:
    """The rounds of a run.

    Args:
        sources: the corpora.
        config: their weights, and the sizes of epochs and rounds.
        seed: for mixing corpora within a round.
    """

    def __init__(self, sources: Sequence[CutSource], config: DataConfig, seed: int):
        self.sources = list(sources)
        self.seed = seed
        counts = [source.count for source in sources]
        self.epoch_cuts = config.epoch_cuts or sum(counts)
        shares = [Fraction(str(weight)) for weight in config.weights] or [Fraction(count) for count in counts]
        self.shares = [share / sum(shares) for share in shares]
        self.per_epoch = -(-self.epoch_cuts // config.round_cuts)

    def ranges(self, epoch: int, number: int) -> List[Tuple[int, int]]:
        """For each corpus the first cut of a round and the one after its last, counted from the start of the run."""
        bounds = [epoch * self.epoch_cuts + n * self.epoch_cuts // self.per_epoch for n in (number, number + 1)]
        return [(int(bounds[0] * share), int(bounds[1] * share)) for share in self.shares]

    def sample(self, count: int) -> Iterator[Cut]:
        """About so many cuts, of each source as many as its share says, evenly spread over it.

        A source that has fewer gives each of them several times.
        """
        for source, share in zip(self.sources, self.shares):
            wanted = round(count * share)
            times, rest = divmod(wanted, source.count)
            for _ in range(times):
                yield from source.open_at(0)
            if rest:
                yield from source.spread(rest)

    def cuts(self, epoch: int, number: int) -> CutSet:
        """The cuts of a round, lazily."""
        ranges = self.ranges(epoch, number)
        firsts = [start for start, _ in self.ranges(epoch, 0)]
        parts = [
            CutSet(CorpusRange(source, *ranges[file], firsts[file], file))
            for file, source in enumerate(self.sources)
            if ranges[file][1] > ranges[file][0]
        ]
        if len(parts) < 2:
            return parts[0] if parts else CutSet([])
        sizes = [float(stop - start) for start, stop in ranges if stop > start]
        seed = (self.seed * 1_000_003 + epoch) * self.per_epoch + number
        return CutSet.mux(*parts, weights=sizes, stop_early=False, seed=seed)


def open_rounds(config: DataConfig, seed: int) -> Rounds:
    """The rounds of the configured corpora (raises UserError for a file that is missing, empty or no CutSet)."""
    if not config.train:
        raise UserError("--data.train: expected at least one CutSet file")
    return Rounds([open_source(path) for path in config.train], config, seed)


def paired_limits(config: DataConfig) -> DataConfig:
    """The configuration with half the seconds, cuts and tokens in a batch, each cut of which will be there twice."""
    return dataclasses.replace(
        config,
        max_duration=config.max_duration / 2,
        max_cuts=config.max_cuts and config.max_cuts // 2,
        max_batch_tokens=config.max_batch_tokens and max(1, config.max_batch_tokens // 2),
    )


class SamplerBase(Sampler):
    """Mixed into a lhotse sampler: torch before 2.1 expects a data source, which lhotse no longer passes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if "data_source" in inspect.signature(Sampler.__init__).parameters:
            options.setdefault("data_source", None)
        super().__init__(*arguments, **options)


class BatchLimits(TimeConstraint):
    """lhotse's limit of seconds and cuts, and a limit of target tokens: the longest target times the number of cuts.

    `exceeded` stays that of the seconds: lhotse only warns by it.

    Args:
        config: the limits.
        tokens_of: the number of target tokens of a cut.
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
        """Whether another cut like the longest would be too much."""
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
    """Mixed into a lhotse sampler: with `BatchLimits`, no batch has too many tokens unless it is a single cut.

    lhotse adds the cut that exceeds a limit, and at the end of the data mixes the last batches to have one for each
    rank. Both could exceed the limit, so batches are split instead. Every rank draws and splits the same batches.
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
        """Have a batch ready for each rank; at the end of the data fewer, if as many cuts are not left."""
        with suppress(StopIteration):
            while len(self._ready) < self.world_size:
                self._ready.extend(self.constraint.split(super()._next_batch()))  # type: ignore[misc]
        while 0 < len(self._ready) < self.world_size:
            number = max(range(len(self._ready)), key=lambda n: len(self._ready[n]))
            cuts = list(self._ready[number])
            if len(cuts) == 1:
                return
            self._ready[number] = CutSet.from_cuts(cuts[: len(cuts) // 2])
            self._ready.append(CutSet.from_cuts(cuts[len(cuts) // 2 :]))


class StreamSampler(TokenLimited, DynamicCutSampler, SamplerBase):
    """Batches of a shuffled stream."""


class BucketSampler(TokenLimited, DynamicBucketingSampler, SamplerBase):
    """Batches of cuts of similar duration."""


class SamplerState(NamedTuple):
    """The position of a rank in the data."""

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
        wanted: a predicate for cuts that can be used.
        looked: called after ``wanted`` has seen the first cuts (`look`), and after each round.
        tokens_of: the number of target tokens of a cut; needed with ``config.max_batch_tokens``.
        change: called with a cut and its ``epoch``, gives the cut that ``wanted`` sees; None: cuts stay as they are.
    """

    def __init__(
        self,
        rounds: Rounds,
        config: DataConfig,
        seed: int,
        world: DistributedContext,
        wanted: Callable[[Cut], bool] = bool,
        looked: Callable[[], None] = lambda: None,
        tokens_of: Optional[Callable[[Cut], int]] = None,
        change: Optional[Callable[..., Cut]] = None,
    ):
        self.rounds = rounds
        self.config = config
        self.seed = seed
        self.world = world
        self.wanted = wanted
        self.looked = looked
        self.tokens_of = tokens_of
        self.change = change
        self._bins: Optional[List[float]] = None

    def batches(self, start: SamplerState) -> Iterator[Tuple[SamplerState, CutSet]]:
        """The batches of an epoch from a position on, each with the position after it.

        The earlier batches of its round are drawn again, but their audio is not loaded.
        """
        epoch, first, skip = start
        for number in range(first, self.rounds.per_epoch):
            sampler = self._sampler(self._cuts(epoch, number))
            sampler.set_epoch(epoch * self.rounds.per_epoch + number)
            for batch, cuts in enumerate(sampler, start=1):
                if batch > skip:
                    yield SamplerState(epoch, number, batch), cuts
            self.looked()
            skip = 0

    def look(self) -> List[float]:
        """The bounds of the buckets in seconds, from the first cuts; none for one bucket, or for too few cuts."""
        if self._bins is None:
            config = self.config
            first = list(islice(self._cuts(0, 0), BINS_FROM))
            number = min(config.num_buckets, len(first))
            limits = TimeConstraint(max_duration=config.max_duration, max_cuts=config.max_cuts)
            self._bins = estimate_duration_buckets(first, num_buckets=number, constraint=limits) if number > 1 else []
            self.looked()
        return self._bins

    def _cuts(self, epoch: int, number: int) -> CutSet:
        """The cuts of a round that can be used, lazily."""
        cuts = self.rounds.cuts(epoch, number)
        if self.change is not None:
            cuts = cuts.map(partial(self.change, epoch=epoch))
        return cuts.filter(self.wanted)

    def _sampler(self, cuts: CutSet) -> Any:
        """lhotse's dynamic bucketing sampler, or without bins its plain one.

        A batch is full once another cut like its longest would be too much, so that in a mixed stream its last cut may
        exceed the duration.
        """
        limits: Dict[str, Any] = {"max_duration": self.config.max_duration, "max_cuts": self.config.max_cuts}
        if self.config.max_batch_tokens:
            if self.tokens_of is None:
                raise ValueError("max_batch_tokens: expected a function that counts the tokens of a cut")
            limits = {"constraint": BatchLimits(self.config, self.tokens_of)}
        options: Dict[str, Any] = {
            **limits,
            "shuffle": self.config.shuffle,
            "seed": self.seed,
            "rank": self.world.rank,
            "world_size": self.world.size,
        }
        bins = self.look()
        if not bins:
            return StreamSampler(cuts, **options, shuffle_buffer_size=self.config.buffer_size)
        return BucketSampler(cuts, **options, duration_bins=bins, buffer_size=self.config.buffer_size)


class FromPlace:
    """A sampler for torch's DataLoader: the batches of an epoch from a position on. It lives in the main process."""

    def __init__(self, sampler: TrainSampler, start: SamplerState):
        self.sampler = sampler
        self.start = start
        self.drawn: Dict[SamplerState, CutSet] = {}  # not loaded yet

    def __iter__(self) -> Iterator[Tuple[SamplerState, CutSet]]:
        for place, cuts in self.sampler.batches(self.start):
            self.drawn[place] = cuts
            yield place, cuts


class Loading(Dataset):
    """Returns a UserError instead of raising it: torch would put a worker's traceback into its message."""

    def __init__(self, dataset: TransducerDataset):
        self.dataset = dataset

    def __getitem__(self, drawn: Tuple[SamplerState, CutSet]) -> Tuple[SamplerState, Union[Batch, UserError]]:
        """The batch of some cuts, or the error."""
        place, cuts = drawn
        try:
            return place, self.dataset[cuts]
        except UserError as error:
            return place, error


def train_batches(
    sampler: TrainSampler, dataset: TransducerDataset, config: DataConfig, start: SamplerState
) -> Iterator[Tuple[SamplerState, Batch]]:
    """Batches of one epoch from a position on, each with the position after it, and the cuts under ``cuts``.

    Raises:
        UserError: for a cut that cannot be loaded, here or in a worker process.
    """
    dataset.epoch = start.epoch  # workers start anew each epoch, so they see it
    batches = FromPlace(sampler, start)
    loader = DataLoader(
        Loading(dataset),
        sampler=batches,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=config.num_workers,
        pin_memory=torch.cuda.is_available(),  # so that copies to the GPU do not wait
        **({"prefetch_factor": 4} if config.num_workers else {}),  # type: ignore[arg-type]
    )
    for place, batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield place, {**batch, "cuts": batches.drawn.pop(place)}

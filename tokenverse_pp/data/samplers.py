"""The cuts and batches of an epoch: the corpora of ``data.train``, rounds, samplers and loaders.

A corpus can be read from any cut on without parsing the cuts before it, and with an index (`lines.LineIndex`) without
reading them.

An epoch has `data.epoch_cuts` cuts (without weights: all cuts). It is drawn in rounds of at most `data.round_cuts`,
each with its own sampler, so that a resumed run draws at most one round again; the lines before that round are skipped
without parsing them.

After n draws of the run, a corpus with share w of the total weight has given floor(n * w) cuts, in file order; after
its last cut it starts again. So the draws of any round follow from the numbers of epoch and round alone, a large
corpus with a small weight is seen completely over several epochs, and without weights (a corpus's share is then its
share of the cuts) an epoch has every cut exactly once. lhotse's multiplexer mixes the corpora of a round at random.

A cut that is repeated within an epoch, or is not from the first file of `data.train`, is marked (`dataset.PASS`), so
that each occurrence has its own draw of active tasks. The mark depends only on the number of the draw: it is the same
for any number of ranks and workers, and after a resume.
"""

from __future__ import annotations

import hashlib
import random
import signal
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets
from lhotse.lazy import LazyIteratorChain
from torch.utils.data import DataLoader, Dataset

from tokenverse_pp.base.config import DataConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import feed, url_of
from tokenverse_pp.base.storage import local_path
from tokenverse_pp.data.batching import BatchLimits, BucketSampler, StreamSampler, level
from tokenverse_pp.data.dataset import Batch, KeptTargets, Target, TransducerDataset, marked
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.editing.shar import check_shards, find_shar, is_shar
from tokenverse_pp.data.lines import EVERY, LineIndex, WrongIndex, raw_lines, read_index, text_of, write_index
from tokenverse_pp.data.manifests import cut_of_line, load_whole

# With data.rank_parts: AHEAD steps towards the next round are made with each batch of this one. A step draws a batch or
# reads READ cuts, about as many as a batch has.
AHEAD, READ = 3, 32
BINS_FROM = 10000  # cuts from which the bounds of the buckets are estimated, lhotse's default


class CutSource(ABC):
    """A corpus of `data.train`: cuts in a fixed order, read repeatedly.

    Continuing to read costs nothing extra; reading from another place must skip lines.
    """

    def __init__(self, path: str):
        self.path = path
        self.file = Path(path) if is_shar(path) else local_path(path)
        self.index: Optional[LineIndex] = None
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
        """Yield cuts ``start`` to ``stop - 1``, counted modulo `count`."""
        for number in range(start, stop):
            place = number % self.count
            if place != self._place:
                self._reader, self._place = self.open_at(place), place
            self._place += 1
            yield next(self._reader)

    def spread(self, count: int) -> Iterator[Cut]:
        """Yield ``count`` cuts, evenly spread over the source, or all of them if it has fewer."""
        reader, at = self.open_at(0), 0
        for place in self._spread_places(count):
            yield next(islice(reader, place - at, None))
            at = place + 1

    def to_check(self, most: Optional[int], rank: int, ranks: int) -> Tuple[int, Iterator[Cut]]:
        """Return number and cuts of a rank's part of a sample of ``most`` (None: all), to check their audio."""
        count = self.count if most is None else min(most, self.count)
        return len(range(rank, count, ranks)), islice(self.spread(count), rank, None, ranks)

    def _spread_places(self, count: int) -> Iterator[int]:
        """Draw a random place in each of ``count`` equal parts, with a fixed seed: a manifest may repeat a pattern."""
        count, rng = min(count, self.count), random.Random(0)
        for number in range(count):
            yield rng.randrange(number * self.count // count, (number + 1) * self.count // count)

    def __iter__(self) -> Iterator[Cut]:
        return self.open_at(0)

    def __getstate__(self) -> Dict[str, Any]:
        """State for other processes, which open a new reader."""
        return {**self.__dict__, "_reader": iter(()), "_place": -1}

    def write_index(self) -> LineIndex:
        """Write the index of the manifests next to them (raises UserError if they cannot have one)."""
        if url_of(self.path) is not None:
            raise UserError(f"{self.path}: an index is for files, and manifests of object storage are copied first")
        return write_index(self.path, self.manifests(), _count_lines)

    def fingerprint(self) -> Dict[str, Any]:
        """Return path, bytes and SHA-256 of the manifests, from the index if there is one; audio is not read."""
        if self.index:
            self.index.check(self.path, self.manifests())
            return {"path": self.path, "bytes": sum(self.index.bytes), "sha256": self.index.sha256}
        digest = hashlib.sha256()
        size = sum(feed(digest, path) for path in self.manifests())
        return {"path": self.path, "bytes": size, "sha256": digest.hexdigest()}


class LinesSource(CutSource):
    """Cuts as JSON lines, plain or gzipped."""

    def __init__(self, path: str):
        super().__init__(path)
        self.index = read_index(path, self.manifests())
        if self.index:
            self.index.check(path, self.manifests())
        self.offsets = self.index.offsets if self.index else []

    def count_cuts(self) -> int:
        """See CutSource; blank lines do not count."""
        return sum(self.index.counts) if self.index else _count_lines(self.file)

    def open_at(self, place: int) -> Iterator[Cut]:
        """See CutSource; with an index of a plain file, fewer than `EVERY` lines before ``place`` are read."""
        known = min(place // EVERY, len(self.offsets) - 1) if self.offsets else 0
        lines = _cut_lines(self.file, self.offsets[known] if known else 0)
        for number, line in islice(lines, place - known * EVERY, None):
            yield self._cut(known * EVERY + number, line)

    def spread(self, count: int) -> Iterator[Cut]:
        """See CutSource; lines between are not parsed, and not read if a large plain file has an index."""
        if self.offsets and self.count > EVERY * count:
            yield from (next(self.open_at(place)) for place in self._spread_places(count))
            return
        lines, at = _cut_lines(self.file), 0
        for place in self._spread_places(count):
            yield self._cut(*next(islice(lines, place - at, None)))
            at = place + 1

    def _cut(self, number: int, line: bytes) -> Cut:
        where = f"{self.path}, line {number}"
        return cut_of_line(text_of(line, where), where)


class WholeSource(CutSource):
    """Cuts in one JSON or YAML document, which is read at once."""

    def __init__(self, path: str):
        super().__init__(path)
        self.cuts = list(load_whole(str(self.file)))

    def count_cuts(self) -> int:
        """See CutSource."""
        return len(self.cuts)

    def write_index(self) -> LineIndex:
        """See CutSource."""
        raise UserError(f"{self.path}: has no lines to index; expected .jsonl, .jsonl.gz or a Shar folder")

    def open_at(self, place: int) -> Iterator[Cut]:
        """See CutSource."""
        return islice(iter(self.cuts), place, None)


class SharSource(CutSource):
    """A lhotse Shar folder: shards of a manifest and tar files of audio or arrays."""

    def __init__(self, path: str):
        super().__init__(path)
        self.files = find_shar(path)
        self.index = read_index(path, self.files.cuts)
        self.shard_counts = self.index.counts if self.index else [_count_lines(path) for path in self.files.cuts]

    def count_cuts(self) -> int:
        """See CutSource; only manifests are read."""
        return sum(self.shard_counts)

    def open_at(self, place: int) -> Iterator[Cut]:
        """See CutSource; earlier shards are not opened, the tar files of the shard are read up to ``place``."""
        first = 0
        while place >= self.shard_counts[first]:
            place -= self.shard_counts[first]
            first += 1
        shards = (CutSet.from_shar(fields=self.files.open(n)) for n in range(first, len(self.files.cuts)))
        return _plainly(islice(chain.from_iterable(shards), place, None))

    def manifests(self) -> List[Path]:
        """See CutSource: those of the shards."""
        return self.files.cuts

    def to_check(self, most: Optional[int], rank: int, ranks: int) -> Tuple[int, Iterator[Cut]]:
        """See CutSource: the first cuts of whole shards (raises UserError), to read little; none in object storage."""
        if self.files.is_remote:
            return 0, iter(())
        shards = len(self.files.cuts)
        check_shards(self.files, range(rank, shards, ranks))
        count = shards if most is None else min(most, shards)
        numbers = [number * shards // count for number in range(rank, count, ranks)]
        firsts = (islice(CutSet.from_shar(fields=self.files.open(number)), 1) for number in numbers)
        return len(numbers), _plainly(chain.from_iterable(firsts))


def _plainly(cuts: Iterator[Cut]) -> Iterator[Cut]:
    """Yield the cuts; where lhotse wraps the UserError of an object that cannot be read, raise the UserError."""
    try:
        yield from cuts
    except ValueError as error:
        if isinstance(error.__context__, UserError):
            raise error.__context__ from None
        raise


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
    except WrongIndex:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if reason.startswith(f"{path}: ") or (isinstance(error, UserError) and reason.startswith(f"{path}/")):
            raise UserError(f"--{option}: {reason}") from None
        raise UserError(f"--{option}: {path}: not a lhotse CutSet: {reason}") from None
    if not isinstance(first, Cut):
        found = "none" if first is None else type(first).__name__
        raise UserError(f"--{option}: {path}: expected cuts, found {found}")
    return source


def _cut_lines(path: Path, start: int = 0) -> Iterator[Tuple[int, bytes]]:
    """The lines of a manifest, plain or gzipped, that are not blank, with their numbers (see `raw_lines`)."""
    return ((number, line) for number, line in raw_lines(path, start=start) if line and not line.isspace())


def _count_lines(path: Path) -> int:
    """The number of cuts in a manifest."""
    return sum(1 for _ in _cut_lines(path))


@dataclass(frozen=True)
class CorpusRange:
    """A repeatable iterable of cuts ``start`` to ``stop - 1`` of a source.

    Args:
        first: the number of the epoch's first cut, from which passes through the source are counted.
        file: the index of the source in `data.train`.
    """

    source: CutSource
    start: int
    stop: int
    first: int
    file: int

    def __iter__(self) -> Iterator[Cut]:
        for number, cut in enumerate(self.source.read(self.start, self.stop), start=self.start):
            yield marked(cut, self.file, (number - self.first) // self.source.count)


def load_cuts(paths: Sequence[str], option: str = "data.train") -> CutSet:
    """The cuts of several files or Shar folders one after another, lazily (raises UserError as `open_source` does)."""
    if not paths:
        raise UserError(f"--{option}: expected at least one CutSet file")
    sets = [CutSet(open_source(path, option)) for path in paths]
    return sets[0] if len(sets) == 1 else CutSet(LazyIteratorChain(*sets))


class Rounds:
    """The rounds of a run.

    Args:
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
        """Yield about ``count`` cuts, from each source according to its share, evenly spread over it.

        A source with too few cuts yields them several times.
        """
        for source, share in zip(self.sources, self.shares):
            wanted = round(count * share)
            times, rest = divmod(wanted, source.count)
            for _ in range(times):
                yield from source.open_at(0)
            if rest:
                yield from source.spread(rest)

    def cuts(self, epoch: int, number: int, part: Tuple[int, int] = (0, 1)) -> CutSet:
        """The cuts of a round, lazily; ``part`` (r, n): the r-th of n parts, each with 1/n of each corpus's cuts."""
        (rank, size), whole = part, self.ranges(epoch, number)
        ranges = [(a + (b - a) * rank // size, a + (b - a) * (rank + 1) // size) for a, b in whole]
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


class SamplerState(NamedTuple):
    """The position of a rank in the data."""

    epoch: int = 0
    round: int = 0
    batch: int = 0  # batches of the round that this rank has used


@dataclass(eq=False, repr=False)
class TrainSampler:
    """Draws batches round by round, each round with lhotse's dynamic bucketing sampler.

    All ranks get the same number of batches: lhotse draws one batch for each rank at a time. If the last draw of a
    round does not suffice for all ranks, its cuts are split among them (with fewer cuts than ranks, some are repeated).

    So each rank reads all cuts, and its work grows with the number of ranks. With ``rank_parts`` it reads only its own
    part of each round. It reads and draws the next round ahead, a little with each batch that is used. When a round
    begins, the ranks exchange their numbers of batches, and ranks with fewer split some. Then all ranks bring their
    batches into the same order of cost, so that they need not wait for each other (`level`).

    Args:
        wanted: a predicate for cuts that can be used.
        looked: called with a list of results of ``counted``, after ``wanted`` has seen the first cuts (`look`) and
            after each round is drawn; with ``rank_parts`` the latter list is of all ranks, in order, on each of them.
        tokens_of: the number of target tokens of a cut; needed with ``config.max_batch_tokens``.
        change: called with a cut and its ``epoch``, returns the cut that ``wanted`` sees. None: no change.
        counted: returns the counts of ``wanted`` since the last call; small, for `DistributedContext.gather`.
    """

    rounds: Rounds
    config: DataConfig
    seed: int
    world: DistributedContext
    wanted: Callable[[Cut], bool] = bool
    looked: Callable[[Sequence[Any]], None] = lambda counts: None
    tokens_of: Optional[Callable[[Cut], int]] = None
    change: Optional[Callable[..., Cut]] = None
    counted: Callable[[], Any] = lambda: None

    def __post_init__(self) -> None:
        self.parted = self.config.rank_parts and self.world.size > 1
        self.part = (self.world.rank, self.world.size) if self.parted else (0, 1)
        self._bins: Optional[List[float]] = None

    def batches(self, start: SamplerState) -> Iterator[Tuple[SamplerState, CutSet]]:
        """The batches of an epoch from a position on, each with the position after it.

        The earlier batches of its round are drawn again, but their audio is not loaded.
        """
        epoch, first, skip = start
        drawn: Iterable[CutSet] = self.draw(epoch, first)
        for number in range(first, self.rounds.per_epoch):
            ahead: List[Optional[CutSet]] = []
            coming = self._towards(epoch, number + 1)
            for batch, cuts in enumerate(self._levelled(list(drawn), epoch, number) if self.parted else drawn, start=1):
                if self.parted:
                    ahead.extend(islice(coming, AHEAD))
                if batch > skip:
                    yield SamplerState(epoch, number, batch), cuts
            drawn, skip = (cuts for cuts in chain(ahead, coming) if cuts is not None), 0

    def draw(self, epoch: int, number: int, cuts: Optional[Sequence[Cut]] = None) -> Iterator[CutSet]:
        """The batches of a round that lhotse makes for this rank; none after the last round of the epoch.

        Args:
            cuts: the cuts of the round, if they have been read.
        """
        if number < self.rounds.per_epoch:
            sampler = self._sampler(self._cuts(epoch, number, self.part) if cuts is None else cuts)
            sampler.set_epoch(epoch * self.rounds.per_epoch + number)
            yield from sampler
            if not self.parted:  # with parts, `_levelled` does this for all ranks
                self.looked([self.counted()])

    def _towards(self, epoch: int, number: int) -> Iterator[Optional[CutSet]]:
        """`draw` in small steps: with parts, yield None per `READ` cuts (lhotse would fill its buffer at once)."""
        cuts: Optional[List[Cut]] = None
        if self.parted and number < self.rounds.per_epoch:
            cuts = []
            for cut in self._cuts(epoch, number, self.part):
                cuts.append(cut)
                if len(cuts) % READ == 0:
                    yield None
        yield from self.draw(epoch, number, cuts)

    def _levelled(self, batches: List[CutSet], epoch: int, number: int) -> List[CutSet]:
        """`level` the batches to the largest number that any rank has. All ranks call this together.

        Raises:
            UserError: on all ranks, if one rank has no cuts and another has some.
        """
        told = self.world.gather((len(batches), self.counted()))
        self.looked([counts for _, counts in told])
        counts = [count for count, _ in told]
        if not max(counts):
            return []
        if not min(counts):
            raise UserError(
                f"--data.rank_parts: rank {counts.index(0)} has no cut that can be used in round {number}: raise "
                "--data.round_cuts, the cuts of a round on all ranks together, or leave this option out"
            )
        rng = random.Random(f"{self.seed}/{epoch}/{number}") if self.config.shuffle else None
        return level(batches, max(counts), rng)

    def look(self) -> List[float]:
        """Return the bucket bounds in seconds, from the first cuts; empty for one bucket or too few cuts."""
        if self._bins is None:
            config = self.config
            first = list(islice(self._cuts(0, 0), BINS_FROM))
            number = min(config.num_buckets, len(first))
            limits = TimeConstraint(max_duration=config.max_duration, max_cuts=config.max_cuts)
            self._bins = estimate_duration_buckets(first, num_buckets=number, constraint=limits) if number > 1 else []
            self.looked([self.counted()])  # all ranks have read the same cuts
        return self._bins

    def _cuts(self, epoch: int, number: int, part: Tuple[int, int] = (0, 1)) -> CutSet:
        """The cuts of (a part of) a round that can be used, lazily."""
        cuts = self.rounds.cuts(epoch, number, part)
        if self.change is not None:
            cuts = cuts.map(partial(self.change, epoch=epoch))
        return cuts.filter(self.wanted)

    def _sampler(self, cuts: Iterable[Cut]) -> Any:
        """Return lhotse's dynamic bucketing sampler, or without bins its plain one.

        A batch is full once another cut like its longest would exceed a limit. So in a mixed stream, a last cut that is
        longer may exceed the duration.
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
            "rank": 0 if self.parted else self.world.rank,
            "world_size": 1 if self.parted else self.world.size,
        }
        bins = self.look()
        if not bins:
            return StreamSampler(cuts, **options, shuffle_buffer_size=self.config.buffer_size)
        return BucketSampler(cuts, **options, duration_bins=bins, buffer_size=self.config.buffer_size)


Drawn = Tuple[SamplerState, CutSet, List[Optional[Target]]]  # the targets of the cuts, where they are known


@dataclass(eq=False)
class FromPlace:
    """A sampler for torch's DataLoader, in the main process: batches from a position on, with their kept targets."""

    sampler: TrainSampler
    start: SamplerState
    kept: KeptTargets
    drawn: Dict[SamplerState, CutSet] = field(default_factory=dict)  # not loaded yet

    def __iter__(self) -> Iterator[Drawn]:
        for place, cuts in self.sampler.batches(self.start):
            self.drawn[place] = cuts
            yield place, cuts, [self.kept.pop(cut) for cut in cuts]


class Loading(Dataset):
    """Returns a UserError instead of raising it: torch would put a worker's traceback into its message."""

    def __init__(self, dataset: TransducerDataset):
        self.dataset = dataset

    def __getitem__(self, drawn: Drawn) -> Tuple[SamplerState, Union[Batch, UserError]]:
        """The batch of some cuts, or the error."""
        place, cuts, targets = drawn
        for cut, target in zip(cuts, targets):
            if target is not None:
                self.dataset.kept.put(cut, target)
        try:
            return place, self.dataset[cuts]
        except UserError as error:
            return place, error


def outlive_stops(worker: int) -> None:
    """Let this worker process outlive the signals that ask a run to stop: the last step needs its batches.

    SLURM, systemd and ``timeout`` send them to all processes of a run, workers too. A second SIGTERM
    ends the worker, so that torch can still end one that hangs.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    if hasattr(signal, "SIGUSR1"):  # Windows has none
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def train_batches(
    sampler: TrainSampler, dataset: TransducerDataset, config: DataConfig, start: SamplerState
) -> Iterator[Tuple[SamplerState, Batch]]:
    """Batches of one epoch from a position on, each with the position after it, and the cuts under ``cuts``.

    Raises:
        UserError: for a cut that cannot be loaded, here or in a worker process.
    """
    dataset.epoch = start.epoch  # workers are started anew each epoch and get it
    batches = FromPlace(sampler, start, dataset.kept)
    loader = DataLoader(
        Loading(dataset),
        sampler=batches,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=config.num_workers,
        pin_memory=torch.cuda.is_available(),  # so that copies to the GPU do not wait
        worker_init_fn=outlive_stops,
        **({"prefetch_factor": 4} if config.num_workers else {}),  # type: ignore[arg-type]
    )
    for place, batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield place, {**batch, "cuts": batches.drawn.pop(place)}

"""The corpora of ``data.train``, and which of their cuts an epoch has.

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

import hashlib
import re
import zlib
from abc import ABC, abstractmethod
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.serialization import open_best

from tokenverse_pp.base.config import DataConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import BLOCK, feed
from tokenverse_pp.data.dataset import marked
from tokenverse_pp.data.manifests import cut_of_line, load_whole


class CutSource(ABC):
    """A corpus of `data.train`: a number of cuts in a fixed order, that is read round and round.

    It keeps its place, so that reading on is free; going anywhere else costs skipping lines.
    """

    def __init__(self, path: str):
        self.path = path
        self._count: Optional[int] = None
        self._reader: Iterator[Cut] = iter(())
        self._place = -1  # of the reader

    @property
    def count(self) -> int:
        """The number of cuts; counted once (raises UserError where there are none)."""
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

    @abstractmethod
    def manifests(self) -> List[Path]:
        """The files that say what the cuts are."""

    def read(self, start: int, stop: int) -> Iterator[Cut]:
        """Cuts ``start`` to ``stop - 1``, where number `count` is the first one again."""
        for number in range(start, stop):
            place = number % self.count
            if place != self._place:
                self._reader, self._place = self.open_at(place), place
            self._place += 1
            yield next(self._reader)

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
        return _count_lines(Path(self.path))

    def open_at(self, place: int) -> Iterator[Cut]:
        """See CutSource."""
        with open_best(self.path, "r") as file:
            for number, line in enumerate(islice(file, place, None), start=place + 1):
                yield cut_of_line(line, f"{self.path}, line {number}")

    def manifests(self) -> List[Path]:
        """See CutSource."""
        return [Path(self.path)]


class WholeSource(LinesSource):
    """Cuts in one JSON or YAML document, which is read at once."""

    def __init__(self, path: str):
        super().__init__(path)
        self.cuts = list(load_whole(path))

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
        # Absolute, so that no file's name is taken for a command or a URL (``pipe:..``) where ``path`` is the working
        # directory.
        self.folder = Path(path).absolute()
        self.shards = sorted(self.folder.glob("cuts.*.jsonl*"))
        self.fields = sorted({p.name.split(".")[0] for p in self.folder.glob("*.[0-9]*.*")} - {"cuts"})
        for name in self.fields:
            if not re.fullmatch(r"[A-Za-z][\w-]*", name):
                raise UserError(f"{name!r} is not the name of a field: expected files such as recording.000000.tar")
        self.shard_counts: List[int] = []

    def count_cuts(self) -> int:
        """See CutSource; manifests only."""
        self.shard_counts = [_count_lines(path) for path in self.shards]
        return sum(self.shard_counts)

    def open_at(self, place: int) -> Iterator[Cut]:
        """See CutSource; whole shards before ``place`` are not opened, the tar files of its own are read up to it."""
        assert self.count, "counting fills shard_counts"
        first = 0
        while place >= self.shard_counts[first]:
            place -= self.shard_counts[first]
            first += 1
        shards = [self._open_shard(path) for path in self.shards[first:]]
        return islice(chain.from_iterable(shards), place, None)

    def _open_shard(self, path: Path) -> CutSet:
        number = path.name.split(".")[1]
        fields: Dict[str, Any] = {"cuts": [str(path)]}
        for name in self.fields:
            fields[name] = [str(p) for p in path.parent.glob(f"{name}.{number}.*")]
        return CutSet.from_shar(fields={name: paths for name, paths in fields.items() if paths})

    def manifests(self) -> List[Path]:
        """See CutSource: those of the shards."""
        return self.shards


def open_source(path: str, option: str = "data.train") -> CutSource:
    """Open a file of cuts or a Shar folder and look at its first cut.

    Raises:
        UserError: naming the option and the file that is missing, empty or no CutSet.
    """
    if not Path(path).exists():
        raise UserError(f"--{option}: {path}: no such file")
    if Path(path).is_dir() and not any(Path(path).glob("cuts.*.jsonl*")):
        raise UserError(f"--{option}: {path}: expected a file of cuts or a Shar folder with cuts.000000.jsonl.gz")
    try:
        kind = SharSource if Path(path).is_dir() else LinesSource if ".jsonl" in Path(path).suffixes else WholeSource
        source = kind(path)
        first = next(source.open_at(0), None) if not Path(path).is_dir() or source.count_cuts() else None
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--{option}: {path}: not a lhotse CutSet: {reason}") from None
    if first is None:
        raise UserError(f"--{option}: {path}: expected cuts, found none")
    if not isinstance(first, Cut):
        raise UserError(f"--{option}: {path}: expected cuts, found {type(first).__name__}")
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
    """Cuts ``start`` to ``stop - 1`` of a source, as often as one likes (to the end of the file for None).

    Args:
        first: number of the cut with which the epoch begins, from where passes through the source count.
        file: number of the source in `data.train`.
    """

    def __init__(self, source: CutSource, start: int, stop: Optional[int], first: int = 0, file: int = 0):
        self.source = source
        self.start = start
        self.stop = stop
        self.first = first
        self.file = file

    def __iter__(self) -> Iterator[Cut]:
        if self.stop is None:
            return self.source.open_at(self.start)
        return self._marked(self.source.read(self.start, self.stop))

    def _marked(self, cuts: Iterator[Cut]) -> Iterator[Cut]:
        for number, cut in enumerate(cuts, start=self.start):
            yield marked(cut, self.file, (number - self.first) // self.source.count)


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
    """The rounds of what the configuration names (raises UserError for a file that is missing, empty or no CutSet)."""
    if not config.train:
        raise UserError("--data.train: expected at least one CutSet file")
    return Rounds([open_source(path) for path in config.train], config, seed)

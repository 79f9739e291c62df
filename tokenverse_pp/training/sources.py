"""Corpora to train on, read from any cut on without parsing what comes before."""

from __future__ import annotations

import hashlib
import re
import zlib
from abc import ABC, abstractmethod
from itertools import chain, islice
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.serialization import open_best

from tokenverse_pp.errors import UserError
from tokenverse_pp.files import BLOCK, feed
from tokenverse_pp.manifests.reading import cut_of_line, load_whole


class Source(ABC):
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
        """Bytes and SHA-256 of the manifests; audio is not looked at."""
        digest = hashlib.sha256()
        size = sum(feed(digest, path) for path in self.manifests())
        return {"path": self.path, "bytes": size, "sha256": digest.hexdigest()}


class LinesSource(Source):
    """Cuts as JSON lines, plain or gzipped."""

    def count_cuts(self) -> int:
        """See Source; a blank line at the end is no cut."""
        return _count_lines(Path(self.path))

    def open_at(self, place: int) -> Iterator[Cut]:
        """See Source."""
        with open_best(self.path, "r") as file:
            for number, line in enumerate(islice(file, place, None), start=place + 1):
                yield cut_of_line(line, f"{self.path}, line {number}")

    def manifests(self) -> List[Path]:
        """See Source."""
        return [Path(self.path)]


class WholeSource(LinesSource):
    """Cuts in one JSON or YAML document, which is read whole."""

    def __init__(self, path: str):
        super().__init__(path)
        self.cuts = list(load_whole(path))

    def count_cuts(self) -> int:
        """See Source."""
        return len(self.cuts)

    def open_at(self, place: int) -> Iterator[Cut]:
        """See Source."""
        return islice(iter(self.cuts), place, None)


class SharSource(Source):
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
        """See Source; manifests only."""
        self.shard_counts = [_count_lines(path) for path in self.shards]
        return sum(self.shard_counts)

    def open_at(self, place: int) -> Iterator[Cut]:
        """See Source; whole shards before ``place`` are not opened, the tar files of its own are read up to it."""
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
        """See Source: those of the shards."""
        return self.shards


def open_source(path: str, option: str = "data.train") -> Source:
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

"""Read lines of untrusted text files, with limits and errors that name the line, and store large sets of names.

`NameSet` needs little memory: a manifest of a million cuts has a million ids. `LineIndex` stores where the lines of a
file begin, so that a run that resumes near the end of a large manifest need not read all of it.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Callable, Iterator, List, Optional, Sequence, Tuple, cast

from tokenverse_pp.base.errors import CONTROL, UserError
from tokenverse_pp.base.files import PathLike, feed, json_of, write_json

MAX_LINE = 32 * 2**20  # bytes; a cut of several hours with word alignments has about a tenth of it
PROGRESS_STEP = 500  # lines between two reports of progress
CONTROL_NO_SPACE = re.compile("[\\x00-\\x08\\x0e-\\x1f\\x7f-\\x84\\x86-\\x9f]")  # those that do not separate words
BLANKS = " \t"  # separators of fields in ASCII formats
BOM = b"\xef\xbb\xbf"  # byte order mark
INDEX = ".index"  # appended to the name of the indexed file or folder
EVERY = 1000  # lines from one offset of an index to the next
SAMPLES, SAMPLE = 64, 4096  # number and bytes of the blocks by which an index recognises its files
_GAP = re.compile("[ \t]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def raw_lines(
    path: PathLike, progress: Optional[Callable[[int], None]] = None, start: int = 0
) -> Iterator[Tuple[int, bytes]]:
    """Yield line numbers (from 1) and lines of a file, without line ends (LF or CRLF) and byte order mark.

    A file whose name ends in ``.gz`` is unpacked. Only one line is in memory.

    Args:
        progress: called repeatedly with the bytes of the file (compressed, if it is) read since the last call.
        start: the byte at which line 1 begins, of a file that is not compressed.

    Raises:
        UserError: naming file and line, if the file is missing, cannot be read (a truncated ``.gz``), or a line has
            more than `MAX_LINE` bytes.
    """
    name = str(path)
    if not Path(path).exists() or Path(path).is_dir():  # a pipe is not a regular file, but has lines
        raise UserError(f"{name}: no such file")
    number = position = 0
    try:
        with open(name, "rb") as raw:
            file = cast(BinaryIO, gzip.GzipFile(fileobj=raw) if name.lower().endswith(".gz") else raw)
            if start:
                file.seek(start)
            while True:
                line = file.readline(MAX_LINE + 1)
                if progress is not None and (not line or number % PROGRESS_STEP == 0):
                    progress(raw.tell() - position)
                    position = raw.tell()
                if not line:
                    return
                number += 1
                if len(line) > MAX_LINE:
                    raise UserError(f"{name}, line {number}: longer than {MAX_LINE // 2**20} MB; expected a text file")
                if number == 1 and line.startswith(BOM):
                    line = line[len(BOM) :]
                yield number, line.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name}: cannot be read after line {number}: {error}") from None


def text_of(line: bytes, where: str) -> str:
    """A line as text (raises UserError if it is not UTF-8, or holds a NUL byte: binary data, or UTF-16)."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8: {error.reason} at byte {error.start}") from None
    if "\0" in text:
        raise UserError(f"{where}: expected text, found a NUL byte")
    return text


def text_lines(path: PathLike, kind: str = "") -> Iterator[Tuple[int, str]]:
    """Line numbers and lines of a UTF-8 file (`raw_lines`, `text_of`); ``kind`` is the kind of content in messages."""
    try:
        for number, line in raw_lines(path):
            yield number, text_of(line, f"{path}, line {number}")
    except UserError as error:
        if not kind:
            raise
        raise UserError(f"{path}: cannot read {kind}: {str(error)[len(str(path)) :].lstrip(':, ')}") from None


def fields(line: str, maxsplit: int = -1) -> List[str]:
    """The fields of a line, separated by spaces and tabs.

    ``str.split()`` also splits at Unicode spaces (no-break, thin and ideographic spaces, line separators), which are
    part of a field in formats with ASCII blanks between fields (CTM, STM, RTTM, Kaldi, ARPA, CoNLL).

    Args:
        maxsplit: as in ``str.split``; the last field is the rest of the line, without blanks at its ends.

    >>> fields("a 1 0.00\\t0.50 10\\u00a0000 "), fields("a 1  two words ", maxsplit=2)
    (['a', '1', '0.00', '0.50', '10\\xa0000'], ['a', '1', 'two words'])
    """
    line = line.strip(BLANKS)
    if not line:
        return []
    if maxsplit == 0:
        return [line]
    return _GAP.split(line, maxsplit=max(maxsplit, 0))


def number_of(text: str) -> Optional[float]:
    """A decimal number in ASCII digits, with or without an exponent; None for anything else.

    ``float()`` also reads ``nan``, ``inf``, ``1_000`` and the digits of other scripts. Numbers that are too large
    become infinite.

    >>> number_of("-1.5e-3"), number_of("1_000"), number_of("nan"), number_of("\u0661")
    (-0.0015, None, None, None)
    """
    return float(text) if _NUMBER.fullmatch(text) else None


def stray_control(text: str) -> Optional[str]:
    """The name of the first control character of a line other than a tab; None if there is none.

    A carriage return may be the line end of another system; the line is then several lines.

    >>> stray_control("bad\\rcell"), stray_control("a\\tb")
    ('carriage return (U+000D)', None)
    """
    for match in CONTROL.finditer(text):
        if match[0] != "\t":
            name = {"\r": "carriage return", "\0": "NUL byte"}.get(match[0], "control character")
            return f"{name} (U+{ord(match[0]):04X})"
    return None


_HASH_BITS = (1 << 64) - 1


def name_hash(name: str) -> int:
    """Return a 64-bit hash of a name that is the same in every process, unlike Python's own."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class NameSet:
    """A set that stores 64-bit hashes instead of names: 16 to 32 bytes per name.

    Among n names, the probability of a collision is n^2 / 2^65 (3e-8 for a million). Open addressing with linear
    probing (Knuth, TAOCP 3, algorithm 6.4 L).
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 64))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, name: str) -> bool:
        """Add a name; return True if it is new."""
        return self._put((hash(name) & _HASH_BITS) or 1)  # 0 marks a free slot

    def update(self, other: NameSet) -> None:
        """Add all names of another set."""
        for value in filter(None, other._slots):
            self._put(value)

    def _put(self, value: int) -> bool:
        slots, mask = self._slots, len(self._slots) - 1
        at = value & mask
        while slots[at]:
            if slots[at] == value:
                return False
            at = (at + 1) & mask
        slots[at] = value
        self._count += 1
        if 2 * self._count > mask:  # double the table
            self._slots = array("Q", bytes(16 * len(slots)))
            self._count = 0
            for old in filter(None, slots):
                self._put(old)
        return True


class WrongIndex(UserError):
    """An index does not fit its manifest."""


@dataclass
class LineIndex:
    """Properties of the files of a manifest, stored next to them so that they need not be read (`write_index`)."""

    files: List[str]
    """Names of the files, in the order in which they are read."""
    bytes: List[int]
    """Sizes of the files."""
    counts: List[int]
    """Numbers of lines that are not blank."""
    offsets: List[int]
    """Where every `EVERY`-th line begins, from the first on; only for a single uncompressed file."""
    sha256: str
    """SHA-256 of all files, one after another."""
    samples: List[str]
    """For each file, a hash of blocks spread over it (`sample`)."""

    def check(self, manifest: PathLike, files: Sequence[Path]) -> None:
        """Check that no file has changed since it was indexed: size, time and sample (raises WrongIndex).

        The time alone is not enough: a file that is moved or copied here keeps its older time.
        """
        made = index_path(manifest).stat().st_mtime_ns
        for path, size, known in zip(files, self.bytes, self.samples):
            now = path.stat()
            if now.st_size != size or now.st_mtime_ns > made or sample(path, len(files)) != known:
                raise WrongIndex(f"{index_path(manifest)}: {path.name} has changed since; {_AGAIN.format(manifest)}")


_AGAIN = "run `tokenverse-pp manifest index {}` again, or delete the index"


def index_path(manifest: PathLike) -> Path:
    """The path of the index of a file or folder, next to it."""
    return Path(os.path.abspath(manifest) + INDEX)  # absolute, since ``.`` has no name


def sample(path: Path, files: int = 1) -> str:
    """Return a 64-bit hash of a file's first and last block, and of blocks spread between them.

    Args:
        files: number of files of the manifest. About `SAMPLES` blocks of all files together are read, but at least two
            of each. The last block of a ``.gz`` file holds the checksum of its content.
    """
    digest, count = hashlib.blake2b(digest_size=8), max(2, SAMPLES // files)
    with open(path, "rb") as file:
        room = max(0, file.seek(0, os.SEEK_END) - SAMPLE)
        for number in range(count):
            file.seek(room * number // (count - 1))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def read_index(manifest: PathLike, files: Sequence[Path]) -> Optional[LineIndex]:
    """The index of a manifest, if it has one (raises WrongIndex if it is not an index, or is the index of other files).

    Args:
        files: the files of the manifest, in order. Only names are compared; `LineIndex.check` reads the files.
    """
    path = index_path(manifest)
    if not path.is_file():
        return None
    try:
        index = LineIndex(**json_of(path.read_text(encoding="utf-8"), str(path)))
        known = index.files == [file.name for file in files]
        known = known and len(index.bytes) == len(index.counts) == len(index.samples) == len(files)
    except (OSError, UnicodeDecodeError, TypeError, UserError) as error:
        raise WrongIndex(f"{path}: not an index: {error}; {_AGAIN.format(manifest)}") from None
    if not known:
        raise WrongIndex(f"{path}: is of other files; {_AGAIN.format(manifest)}")
    return index


def write_index(manifest: PathLike, files: Sequence[Path], count: Callable[[Path], int]) -> LineIndex:
    """Read the files of a manifest, and write its index.

    Args:
        manifest: the file itself, or the folder of the files.
        count: counts the lines of a file; not used for a single uncompressed file.

    Raises:
        UserError: if a file cannot be read or changes meanwhile, or the index cannot be written.
    """
    offsets: List[int] = []
    try:
        before = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        plain = len(files) == 1 and files[0].suffix == ".jsonl"
        counts = [_offsets(files[0], offsets)] if plain else [count(path) for path in files]
        digest = hashlib.sha256()
        sizes = [feed(digest, path) for path in files]
        samples = [sample(path, len(files)) for path in files]
        index = LineIndex([path.name for path in files], sizes, counts, offsets, digest.hexdigest(), samples)
        for path, (size, changed), read in zip(files, before, sizes):
            if size != read or (size, changed) != (path.stat().st_size, path.stat().st_mtime_ns):
                raise UserError(f"{path}: has changed while it was indexed; index it once it is complete")
        write_json(index_path(manifest), asdict(index))
    except OSError as error:
        raise UserError(f"{index_path(manifest)}: cannot be made: {error}") from None
    return index


def _offsets(path: Path, offsets: List[int]) -> int:
    """Append where every `EVERY`-th non-blank line begins; return the number of non-blank lines."""
    number = at = 0
    with open(path, "rb") as file:
        for line in file:
            if number % EVERY == 0 and not line.isspace():
                offsets.append(at)
            at += len(line)
            number += not line.isspace()
    return number

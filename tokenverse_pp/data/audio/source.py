"""Byte sources: random access to a file, and virtual files composed of ranges of another one."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from typing import Any, BinaryIO, Iterator, List, Optional, Tuple, Union

Source = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO]
Range = Tuple[int, int]  # first byte, and the one behind the last
Piece = Union[bytes, Range]  # literal bytes, or a range of the source


class Bytes:
    """Random access to a file, to bytes, or to an open binary file; what cannot seek is read into memory.

    Args:
        source: a path, bytes, or a binary file, which is read from where it stands.
    """

    def __init__(self, source: Source):
        self.path: Optional[str] = None
        self.key: Tuple[Any, ...] = ()  # of caches
        if isinstance(source, (bytes, bytearray, memoryview)):
            self.file: BinaryIO = io.BytesIO(source)
        elif isinstance(source, (str, os.PathLike)):
            self.file = open(source, "rb")
            about = os.fstat(self.file.fileno())
            if stat.S_ISREG(about.st_mode):
                self.path = os.fspath(source)
                self.key = (self.path, about.st_mtime_ns, about.st_size)
            else:  # a named pipe, /dev/stdin
                with self.file as pipe:
                    self.file = io.BytesIO(pipe.read())
        else:
            self.file = io.BytesIO(source.read())
        if isinstance(self.file, io.BytesIO):
            data = self.file.getvalue()  # the same object, not a copy: its hash is computed once
            self.key = (hash(data), len(data))
        self.size = self.file.seek(0, os.SEEK_END)

    def at(self, offset: int, size: int) -> bytes:
        """Bytes from ``offset`` on; fewer at the end."""
        self.file.seek(offset)
        return self.file.read(size)

    def all(self) -> bytes:
        """All bytes."""
        return self.at(0, self.size)

    def find(self, what: bytes, start: int = 0) -> Iterator[int]:
        """Offsets of all places that hold ``what``; a megabyte is in memory at a time."""
        step, kept = 1 << 20, b""
        for offset in range(start, self.size, step):
            content = kept + self.at(offset, step)
            base, at = offset - len(kept), content.find(what)
            while at >= 0:
                yield base + at
                at = content.find(what, at + 1)
            kept = content[max(0, len(content) - len(what) + 1) :]

    def close(self) -> None:
        """Close the file that was opened here."""
        self.file.close()


class Pieces(io.RawIOBase):
    """A read-only file that is made of pieces of another one.

    >>> Pieces(Bytes(b"0123456789"), (b"ab", (2, 4), (8, 10))).read(5)
    b'ab238'
    """

    def __init__(self, data: Bytes, pieces: Tuple[Piece, ...]):
        super().__init__()
        self._data = data
        self._pieces: List[Tuple[int, int, Piece]] = []  # first and last byte here, piece
        self._size = self._at = 0
        for piece in pieces:
            length = len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]
            if length > 0:
                self._pieces.append((self._size, self._size + length, piece))
                self._size += length
        self._last = 0  # index of the piece that was read last

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, across pieces: libsndfile takes less for the end."""
        done = 0
        while done < len(buffer) and self._at < self._size:
            if self._at < self._pieces[self._last][0]:
                self._last = 0
            while self._pieces[self._last][1] <= self._at:
                self._last += 1
            first, last, piece = self._pieces[self._last]
            count, offset = min(len(buffer) - done, last - self._at), self._at - first
            if isinstance(piece, bytes):
                found = piece[offset : offset + count]
            else:
                found = self._data.at(piece[0] + offset, count)
            if not found:  # the file has become shorter
                break
            buffer[done : done + len(found)] = found
            self._at += len(found)
            done += len(found)
        return done

    def read(self, size: int = -1) -> bytes:
        """Up to the requested number of bytes; fewer at the end."""
        left = max(0, self._size - self._at)
        buffer = bytearray(left if size is None or size < 0 else min(size, left))
        return bytes(buffer[: self.readinto(buffer)])


@dataclass(frozen=True)
class JoinedStream:
    """One of the audio streams that are joined in a source.

    Args:
        pieces: of the source, which make a file of their own; None: the source as it is.
        stated: how many times the length that is there the header states: above 1, the part was truncated.
        samples: that the header states, where that is known.
        frames: of MPEG audio, for reading a piece of it.
    """

    pieces: Optional[Tuple[Piece, ...]] = None
    stated: float = 1.0
    samples: Optional[int] = None
    frames: Any = None

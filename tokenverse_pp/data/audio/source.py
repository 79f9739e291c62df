"""Audio sources as bytes: random access, container detection by content, and the structure of WAV and FLAC files.

libsndfile reads only the first of several joined files and trusts the length in a header. A source that it would
misread becomes a virtual file (`Pieces`): ranges of the source, with a correct header.
"""

from __future__ import annotations

import io
import os
import stat
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, Callable, Iterator, List, Optional, Tuple, Union

Source = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO]
Range = Tuple[int, int]  # first byte, and the one after the last
Piece = Union[bytes, Range]  # literal bytes, or a range of the source
UNKNOWN = "unknown"


class Bytes:
    """Random access to a file, bytes, or an open binary file; pipes and open files are read into memory."""

    def __init__(self, source: Source):
        self.path: Optional[str] = None
        self.key: Tuple[Any, ...] = ()  # for caches
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
        """Yield all offsets of ``what``; one megabyte is in memory at a time."""
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
    """A read-only file made of pieces of another one.

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
        self._last = 0  # index of the current piece

    def readable(self) -> bool:
        """True."""
        return True

    seekable = readable

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer across pieces: libsndfile takes a shorter read for the end."""
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

    Attributes:
        pieces: the pieces of the source that make a file for libsndfile; None for the unchanged source.
        stated: the length in the header divided by the actual length; above 1 for a truncated stream.
        samples: the number of samples in the header, where it is known.
        frames: the frames of MPEG audio, for reading a piece of it.
    """

    pieces: Optional[Tuple[Piece, ...]] = None
    stated: float = 1.0
    samples: Optional[int] = None
    frames: Any = None


@dataclass(frozen=True)
class Structure:
    """The structure of a source.

    Attributes:
        container: a key of `NAMES`, or ``unknown``.
        parts: the streams that libsndfile reads, one after another; empty if PyAV reads the source.
        ranges: the joined files, for PyAV.
        cut: whether the end is missing.
        left_over: bytes after the end.
        problems: what is missing or damaged, one line each.
        notes: what may be missing or damaged, one line each.
        damage: one line if audio is missing in the middle, else None.
        gaps: Ogg time stamps have gaps, which libsndfile does not report.
    """

    container: str
    parts: Tuple[JoinedStream, ...] = ()
    ranges: Tuple[Range, ...] = ()
    cut: bool = False
    left_over: int = 0
    problems: Tuple[str, ...] = ()
    notes: Tuple[str, ...] = ()
    damage: Optional[str] = None
    gaps: bool = False


_MAGIC = (
    *((b"fLaC", "flac"), (b"OggS", "ogg"), (b".snd", "au"), (b"dns.", "au"), (b"NIST_1A", "sphere"), (b"caff", "caf")),
    *((b"riff\x2e\x91\xcf\x11", "w64"), (b"\x1a\x45\xdf\xa3", "matroska"), (b"#!AMR", "amr"), (b"FLV\x01", "flv")),
    *((b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"), (b"\x00\x00\x01\xba", "mpeg")),
)
_FORMS = {
    **dict.fromkeys([(b"RIFF", b"WAVE"), (b"RIFX", b"WAVE")], "wav"),
    **dict.fromkeys([(b"RF64", b"WAVE"), (b"BW64", b"WAVE")], "rf64"),
    **dict.fromkeys([(b"FORM", b"AIFF"), (b"FORM", b"AIFC")], "aiff"),
    (b"RIFF", b"AVI "): "avi",
}
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"moof")


def container_of(head: bytes) -> str:
    """Return the container that begins with these bytes (about 400), a key of `NAMES`, or `UNKNOWN`.

    MPEG audio is found by `tokenverse_pp.data.audio.mpeg.is_mpeg`: its first bytes are not distinctive.

    >>> container_of(b"RIFF....WAVEfmt "), container_of(b"....ftypM4A "), container_of(b"words")
    ('wav', 'mp4', 'unknown')
    """
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    form = _FORMS.get((head[:4], head[8:12]))
    if form is not None:
        return form
    if head[4:8] in _BOXES:
        return "mp4"
    if len(head) > 376 and head[0] == 0x47 == head[188] == head[376]:
        return "mpegts"
    if len(head) > 6 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if 7 <= length and (length + 1 >= len(head) or (head[length] == 0xFF and head[length + 1] & 0xF6 == 0xF0)):
            return "adts"
    return UNKNOWN


def tag_size(head: bytes) -> int:
    """The size in bytes of an ID3v2 tag at the start of ``head``; 0 without one.

    >>> tag_size(b"ID3" + bytes([3, 0, 0, 0, 0, 2, 1])), tag_size(b"RIFF......")
    (267, 0)
    """
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[5] & 0x10 else 0)


@dataclass(frozen=True)
class Extent:
    """Where the samples of a container lie.

    Attributes:
        data: the first byte.
        stated: the number of bytes in the header, if it states one.
        end: the end of the container.
        patch: offset and bytes of the header to replace before libsndfile reads it.
    """

    data: int
    stated: Optional[int]
    end: int
    patch: Optional[Tuple[int, bytes]] = None


def parts_of_samples(
    data: Bytes, container: str, start: int, extent_of: Callable[[Bytes, int], Optional[Extent]]
) -> Optional[Structure]:
    """The structure of a container of plain samples (WAV, AIFF, AU, ..).

    Returns None if there are no samples, and no parts if the file ends before its samples begin.
    """
    parts: List[JoinedStream] = []
    everything = ((start, data.size),)
    at = start
    while True:
        extent = extent_of(data, at)
        if extent is None:
            break
        if extent.data > data.size:
            return Structure(container, (), everything)
        end = min(extent.end, data.size)
        here = data.size - extent.data
        stated = extent.stated / max(1, here) if extent.stated is not None and extent.stated > here else 1.0
        whole: Tuple[Piece, ...] = ((at, end),)
        if extent.patch is not None:
            offset, new = extent.patch
            whole = ((at, offset), new, (offset + len(new), end))
        only = at == 0 and end == data.size and extent.patch is None
        parts.append(JoinedStream(None if only else whole, stated))
        at = end
        if at >= data.size or container_of(data.at(at, 12)) != container:
            break
    if not parts:
        return None
    rest = data.at(at, 1 << 20)  # tags and padding may follow the end
    known = rest.startswith((b"TAG", b"ID3", b"APETAGEX", b"LYRICS")) or not rest.strip(b"\0")
    return Structure(container, tuple(parts), everything, left_over=0 if known else data.size - at)


def is_placeholder(size: int, here: int) -> bool:
    """Whether a 32-bit length was written before the length was known (streams of ffmpeg, sox, arecord, ..)."""
    return size > here and (size >= 0xFFFFE000 or 0x7FFFE000 <= size <= 0x80001000)


def riff(data: Bytes, start: int) -> Optional[Extent]:
    """The extent of WAV, RIFX (big-endian) and RF64."""
    head = data.at(start, 12)
    order = ">" if head[:4] == b"RIFX" else "<"
    long_at, long_size = 0, None
    for at, name, size in chunks(data, start + 12, order):
        if name == b"ds64":
            fields = data.at(at, 16)
            long_at, long_size = at + 8, struct.unpack("<Q", fields[8:16])[0] if len(fields) == 16 else None
        if name != b"data":
            continue
        here = data.size - at
        if size == 0xFFFFFFFF and long_size is not None:
            if long_size in (0, 2**64 - 1):
                return Extent(at, None, data.size, (long_at, struct.pack("<Q", here)))
            size = long_size
        elif size == 0 and here and chunk_end(data, at, order) < data.size:
            return Extent(at, None, data.size, (at - 4, b"\xff" * 4))
        elif is_placeholder(size, here):
            return Extent(at, None, data.size)
        if size > here:
            return Extent(at, size, data.size)
        ends = [chunk_end(data, at + size + pad, order) for pad in {size & 1, 0}]
        return Extent(at, size, max(ends))
    return None


def mpeg_in_wav(data: Bytes, start: int) -> Optional[Range]:
    """The range that a WAV header states for MPEG audio (as old recorders write); None for other WAV files."""
    for at, name, size in chunks(data, start + 12, "<"):
        if name == b"fmt " and data.at(at, 2) not in (b"\x50\x00", b"\x55\x00"):
            return None
        if name == b"data":
            return at, at + size
    return None


def chunks(data: Bytes, at: int, order: str) -> Iterator[Tuple[int, bytes, int]]:
    """Content offset, name and size of RIFF or IFF chunks."""
    while True:
        head = data.at(at, 8)
        if len(head) < 8:
            return
        size = struct.unpack(order + "I", head[4:])[0]
        yield at + 8, head[:4], size
        at += 8 + size + (size & 1)


def chunk_end(data: Bytes, at: int, order: str) -> int:
    """Where the chunks that begin at ``at`` end."""
    while at + 8 <= data.size:
        head = data.at(at, 8)
        size = struct.unpack(order + "I", head[4:])[0]
        named = all(32 <= byte < 127 for byte in head[:4]) and head[:4] not in (b"RIFF", b"RIFX", b"RF64", b"FORM")
        if not named or at + 8 + size > data.size:
            return at
        at += 8 + size + (size & 1)
    return data.size if not data.at(at, 8).strip(b"\0") else at


_TAIL = 1 << 16
_STREAMINFO = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")


def flac_parts(data: Bytes, start: int, thorough: bool) -> Tuple[JoinedStream, ...]:
    """The streams of a FLAC file, one after another.

    Args:
        thorough: search the whole file for joined streams, even if the last frame agrees with the header.
    """
    info = data.at(start, 42)
    total = _flac_total(info)
    last = _flac_end(data, start, data.size, info)
    if not thorough and total and last == total:
        return (JoinedStream(None if start == 0 else ((start, data.size),)),)
    starts = [start, *(at for at in data.find(b"fLaC", start + 42) if data.at(at, 8) in _STREAMINFO)]
    parts = []
    for begin, end in zip(starts, [*starts[1:], data.size]):
        info = data.at(begin, 42)
        total, found = _flac_total(info), _flac_end(data, begin, end, info)
        if found > total:  # the header states no length, or a wrong one
            new = bytes([info[21] & 0xF0 | found >> 32]) + (found & 0xFFFFFFFF).to_bytes(4, "big")
            stated = total / found if total else 1.0
            parts.append(JoinedStream(((begin, begin + 21), new, (begin + 26, end)), stated))
        else:
            alone = begin == 0 and end == data.size
            parts.append(JoinedStream(None if alone else ((begin, end),)))
    return tuple(parts)


def _flac_total(info: bytes) -> int:
    """The number of samples in the header; 0 if it states none."""
    return (info[21] & 0x0F) << 32 | int.from_bytes(info[22:26], "big") if len(info) >= 26 else 0


def _flac_end(data: Bytes, begin: int, end: int, info: bytes) -> int:
    """The end (in samples) of the last frame whose header is present."""
    if len(info) < 42:
        return 0
    block = int.from_bytes(info[10:12], "big")
    longest = int.from_bytes(info[15:18], "big")
    for window in (max(_TAIL, 2 * longest), 1 << 24):
        first = max(begin + 42, end - window)
        content = data.at(first, end - first)
        at = len(content)
        while at > 0:
            at = max(content.rfind(b"\xff\xf8", 0, at), content.rfind(b"\xff\xf9", 0, at))
            if at < 0:
                break
            found = _flac_frame(content[at : at + 16], block, info)
            if found is not None:
                return found
        if first == begin + 42:
            break
    return 0


def _flac_frame(head: bytes, block: int, info: bytes) -> Optional[int]:
    """The end (in samples) of the frame with this header; None if it is no frame header."""
    if len(head) < 6 or head[3] & 1:
        return None
    size_code, rate_code, channel_code = head[2] >> 4, head[2] & 15, head[3] >> 4
    if size_code == 0 or rate_code == 15 or channel_code > 10:
        return None
    channels = (info[20] >> 1 & 7) + 1
    if (2 if channel_code > 7 else channel_code + 1) != channels:
        return None
    # The frame or sample number is coded as in UTF-8, with up to 36 bits.
    first = head[4]
    more = 0 if first < 0x80 else 8 - (first ^ 0xFF).bit_length() - 1
    if (first >= 0x80 and not 1 <= more <= 6) or len(head) < 5 + more + 1:
        return None
    number = first if not more else first & ((1 << (6 - more)) - 1 if more < 6 else 0)
    for byte in head[5 : 5 + more]:
        if byte & 0xC0 != 0x80:
            return None
        number = number << 6 | byte & 0x3F
    at = 5 + more
    if size_code == 1:
        size = 192
    elif size_code <= 5:
        size = 576 << size_code - 2
    elif size_code <= 7:
        width = size_code - 5
        size = int.from_bytes(head[at : at + width], "big") + 1
        at += width
    else:
        size = 256 << size_code - 8
    at += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if at >= len(head) or _crc8(head[:at]) != head[at]:
        return None
    return number * block + size if head[1] == 0xF8 else number + size


def _crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc

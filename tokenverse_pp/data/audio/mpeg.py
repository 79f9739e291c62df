"""MPEG audio (MP3): parse frames, build streams with a correct header for libsndfile, and catch libmpg123's messages.

libsndfile trusts the Xing header of an MP3 file, guesses a length where there is none, reads only the first of several
joined files, and seeks to slightly different samples than it decodes. Each stream of frames is therefore passed to it
as a separate file: a header that states the number of frames, then all frames or those of the requested segment.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import threading
from array import array
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Iterator, List, NamedTuple, Optional, Tuple, cast

from tokenverse_pp.data.audio.source import Bytes, JoinedStream, Piece, Structure, tag_size

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version bits
_KBIT = {  # by (MPEG 1, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
DELAY = 529  # samples by which every decoder of layer III delays its output
_LONGEST = 5000  # bytes: longer than any frame


_Kind = Tuple[int, int, int, bool]  # version, layer, rate, mono


class _Header(NamedTuple):
    """The header of a frame (4 bytes)."""

    length: int
    samples: int
    kind: _Kind  # constant in a stream
    info_at: int  # offset of a Xing header


@lru_cache(1 << 16)
def _header(head: bytes) -> Optional[_Header]:
    """Read a frame header (4 bytes); return None if it is not one. Cached, as the same few recur."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, mono = head[2] >> 4, head[2] >> 2 & 3, head[3] >> 6 == 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    first = version == 3
    bits, hertz, padding = _KBIT[first, layer][bitrate] * 1000, _RATES[version][rate], head[2] >> 1 & 1
    if layer == 1:
        samples, length = 384, (12 * bits // hertz + padding) * 4
    else:
        samples = 1152 if first or layer == 2 else 576
        length = samples // 8 * bits // hertz + padding
    side = (17 if mono else 32) if first else (9 if mono else 17)
    return _Header(length, samples, (version, layer, hertz, mono), 4 + side)


@dataclass
class _Mpeg:
    """A stream of frames: from one Xing header, or one change of format, to the next."""

    kind: _Kind
    samples: int  # of a frame
    info: bytes = b""  # the frame with the Xing header
    starts: array[int] = field(default_factory=lambda: array("q"))  # bytes
    ends: array[int] = field(default_factory=lambda: array("q"))
    skip: int = DELAY  # samples at the start that libmpg123 leaves out

    @property
    def seekable(self) -> bool:
        """Whether `piece` can be used: for layer III, whose frames need those before them."""
        return self.kind[1] == 3

    @property
    def length(self) -> int:
        """Samples of all frames."""
        return len(self.starts) * self.samples

    def pieces(self, first: int, last: int) -> Tuple[Piece, ...]:
        """The bytes of frames ``first`` to ``last - 1``."""
        breaks = [i for i in range(first + 1, last) if self.starts[i] != self.ends[i - 1]]
        bounds = [first, *breaks, last]
        return tuple((self.starts[a], self.ends[b - 1]) for a, b in zip(bounds, bounds[1:]) if b > a)

    def piece(self, data: Bytes, start: int, stop: int) -> Tuple[Tuple[Piece, ...], int]:
        """Return a file from which samples ``start`` to ``stop`` can be decoded, and the position of ``start`` in it.

        A frame may use up to 511 bytes of the frames before it, and overlaps with the last of them. Seeking in
        libmpg123 decodes frames whose bytes it has not seen, with messages on stderr. Here, earlier frames are emptied
        and only keep their bytes.
        """
        start, stop = start + self.skip, stop + self.skip
        last = min(len(self.starts), stop // self.samples + 2)
        normal = max(0, min((start - DELAY) // self.samples - 2, len(self.starts) - 1))
        first, kept, most = normal, 0, 511 if self.kind[0] == 3 else 255
        side = (32, 17, 17, 9)[2 * (self.kind[0] != 3) + self.kind[3]]
        heads = [data.at(at, 4) for at in self.starts[max(0, normal - 2 * most) : normal]]
        lengths = [4 + (0 if head[1] & 1 else 2) + side for head in heads]
        while first > 0 and kept < most:
            first -= 1
            kept += self.ends[first] - self.starts[first] - lengths[first - normal]
        empty: List[Piece] = []
        known = 0  # bytes that later frames may use: each frame must refer to them, or libmpg123 drops them
        for number in range(first, normal):
            head, length = heads[number - normal], lengths[number - normal]
            back = min(known, most) << (7 if most == 511 else 8)
            empty.append(head + bytes(length - side - 4) + back.to_bytes(2, "big") + bytes(side - 2))
            empty.append((self.starts[number] + length, self.ends[number]))
            known += self.ends[number] - self.starts[number] - length
        frames = last - first
        size = sum(self.ends[first:last]) - sum(self.starts[first:last])
        at = start - first * self.samples - DELAY
        return (_new_info(self, frames, size), *empty, *self.pieces(normal, last)), at


def is_mpeg(data: Bytes, start: int = 0) -> bool:
    """Whether MPEG audio begins within the next 64 kB: four frames in a row, or fewer up to the end."""
    content = data.at(start, 1 << 16)
    begin = len(content) - len(content.lstrip(b"\0"))
    at = content.find(b"\xff", begin)
    while at >= 0:
        found = _header(content[at : at + 4])
        if found is not None and _follow(content, at, found, 3):
            if at == begin or at + 3 * found.length < len(content):
                return True
        at = content.find(b"\xff", at + 1)
    return False


def _follow(content: bytes, at: int, found: _Header, count: int) -> bool:
    """Whether the next ``count`` frames continue the stream of this one, as far as there is content."""
    for _ in range(count):
        at += found.length
        if at + 4 > len(content):
            return True
        following = _header(content[at : at + 4])
        if following is None or following.kind[:3] != found.kind[:3]:
            return content[at : at + 3] in (b"TAG", b"ID3") or content[at : at + 8] == b"APETAGEX"
        found = following
    return True


def mpeg_structure(data: Bytes, start: int) -> Structure:
    """The structure of MPEG audio: a part for each stream of frames, with a correct Xing header."""
    content = data.all()
    streams: List[_Mpeg] = []
    junk, at = 0, start
    cut = False
    kind: Optional[_Kind] = None
    found = _header(content[at : at + 4])
    while at + 4 <= len(content):
        end = at + found.length if found is not None else at
        following = _header(content[end : end + 4]) if found is not None else None
        if found is None or following is None or found.kind != kind:  # otherwise a frame like the last one
            after = _unusual(content, at, found, kind)
            if after is not None:
                if after[0] < 0:
                    break
                junk += after[1]
                at = after[0]
                found = _header(content[at : at + 4])
                continue
        if found is None or end > len(content):
            cut = True
            break
        tag = content[at + found.info_at : at + found.info_at + 4]
        is_info = tag == b"Xing" or tag == b"Info" or content[at + 36 : at + 40] == b"VBRI"
        if is_info or found.kind != kind:
            kind = found.kind
            streams.append(_Mpeg(found.kind, found.samples))
        stream = streams[-1]
        if is_info:
            stream.info = content[at:end]
        else:
            stream.starts.append(at)
            stream.ends.append(end)
        at, found = end, following
    problems = [f"damaged: {junk} bytes between its frames are no MP3"] if junk > _LONGEST else []
    parts = [_mpeg_part(item, cut and item is streams[-1]) for item in streams if item.starts]
    if len(streams) == 1 and parts and not cut and _is_right(streams[0], parts[0], content):
        parts = [replace(parts[0], pieces=None)]
    notes = ["its last frame is not complete: it may be cut short"] if cut and parts and not parts[-1].samples else []
    return Structure("mp3", tuple(parts), problems=tuple(problems), notes=tuple(notes))


def _is_right(stream: _Mpeg, part: JoinedStream, content: bytes) -> bool:
    """Whether libsndfile reads the same samples from the unchanged file."""
    start = 0
    while 0 < tag_size(content[start : start + 10]) < len(content) - start:
        start += tag_size(content[start : start + 10])
    same = part.pieces is not None and len(part.pieces) == 2 and part.pieces[0] == stream.info != b""
    return same and stream.starts[0] - len(stream.info) == start and len(content) - stream.ends[-1] in (0, 128)


def _unusual(content: bytes, at: int, found: Optional[_Header], kind: Optional[_Kind]) -> Optional[Tuple[int, int]]:
    """Handle a position where no frame like the last one begins.

    Returns where to continue (-1: nowhere) and the number of bytes that are neither tag nor padding; None for a frame.
    """
    if found is not None and (found.kind == kind or _follow(content, at, found, 2)):
        if _follow(content, at, found, 1):
            return None
        # A truncated frame extends into the file that was joined to it.
        inside = _next_frame(content, at + 4, at + found.length)
        return None if inside is None else (inside, inside - at)
    return _skip(content, at, started=kind is not None)


def _skip(content: bytes, at: int, started: bool) -> Tuple[int, int]:
    """Return where frames continue after other content (see `_unusual`)."""
    head = content[at : at + 10]
    size = tag_size(head)
    if 0 < size <= len(content) - at:
        return at + size, 0
    if head[:3] == b"TAG":
        return at + 128, 0
    if head[:8] == b"APETAGEX" and at + 16 <= len(content):
        return at + 32 + struct.unpack("<I", content[at + 12 : at + 16])[0], 0
    if head[0] == 0:
        block = content[at : at + (1 << 16)]
        return at + len(block) - len(block.lstrip(b"\0")), 0
    after = _next_frame(content, at + 1, len(content))
    return (-1, 0) if after is None else (after, after - at if started else 0)


def _next_frame(content: bytes, at: int, stop: int) -> Optional[int]:
    """The start of the next frame that is followed by others."""
    at = content.find(b"\xff", at, stop)
    while at >= 0:
        found = _header(content[at : at + 4])
        if found is not None and at + found.length <= len(content) and _follow(content, at, found, 2):
            return at
        at = content.find(b"\xff", at + 1, stop)
    return None


def _mpeg_part(stream: _Mpeg, cut: bool) -> JoinedStream:
    """A stream with a header that states its number of frames; ``cut``: the last frame is incomplete."""
    info, count = stream.info, len(stream.starts)
    runs = stream.pieces(0, count)
    size = sum(stream.ends) - sum(stream.starts)
    at = max(info.find(b"Xing"), info.find(b"Info"))
    flags = struct.unpack(">I", info[at + 4 : at + 8])[0] if 0 <= at <= len(info) - 16 else 0
    if not flags & 1:
        return JoinedStream((_new_info(stream, count, size), *runs), frames=stream)
    new = bytearray(info)
    stated = struct.unpack(">I", info[at + 8 : at + 12])[0]
    new[at + 8 : at + 12] = struct.pack(">I", count)
    if flags & 2:
        new[at + 12 : at + 16] = struct.pack(">I", size + len(info))
    lame = at + 12 + (4 if flags & 2 else 0) + (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
    trimmed = 0  # samples at the start and the end that the encoder has added
    if info[lame : lame + 4].isalnum() and len(info) >= lame + 24:
        trims = int.from_bytes(info[lame + 21 : lame + 24], "big")
        trimmed = (trims >> 12) + (trims & 0xFFF)
        stream.skip = (trims >> 12) + DELAY
        if stated != count:
            new[lame + 21 : lame + 24] = (trims & 0xFFF000).to_bytes(3, "big")  # the last frame is not the stated one
    # Encoders disagree on whether the frame with the header counts.
    wrong = abs(stated - count) > 1 or (cut and stated > count)
    return JoinedStream(
        (bytes(new), *runs), samples=stated * stream.samples - trimmed if wrong else None, frames=stream
    )


def _new_info(stream: _Mpeg, frames: int, size: int) -> bytes:
    """Make a frame with a Xing header for layer III; other layers need none, as their frames have one length."""
    version, layer, rate, mono = stream.kind
    if layer != 3:
        return b""
    head = bytes([0xFF, 0xE3 | version << 3, 9 << 4 | _RATES[version].index(rate) << 2, 0xC0 if mono else 0])
    found = cast(_Header, _header(head))  # the stream has such frames
    frame = bytearray(found.length)
    frame[:4] = head
    at = found.info_at
    frame[at : at + 16] = b"Xing" + struct.pack(">III", 3, frames, size + len(frame))
    return bytes(frame)


MEMORY = hasattr(os, "memfd_create")  # files in memory: Linux
_STDERR = threading.Lock()


@contextlib.contextmanager
def library_messages() -> Iterator[List[bytes]]:
    """Collect what libmpg123 writes to standard error; messages of other libraries are passed on.

    libsndfile cannot turn these messages off, and they do not name the file.
    """
    kept: List[bytes] = []
    with _STDERR:
        try:
            stderr = os.dup(2)
        except OSError:  # a process without stderr
            yield kept
            return
        with os.fdopen(os.memfd_create("stderr"), "w+b") if MEMORY else tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield kept
            finally:
                os.dup2(stderr, 2)
                file.seek(0)
                for line in file:
                    if b"libmpg123" in line:
                        kept.append(line)
                    elif not line.startswith((b"Note: ", b"Warning: Xing")):
                        os.write(stderr, line)
                os.close(stderr)


def in_memory(content: bytes) -> int:
    """Return the descriptor of a file in memory: libmpg123 reads byte by byte, and each read would call Python."""
    descriptor = os.memfd_create("audio")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor

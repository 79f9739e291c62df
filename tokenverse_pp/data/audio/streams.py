"""Files of several streams: the streams of Ogg and FLAC files, files joined one after another, and truncation.

libsndfile reads only the first of several joined streams and trusts the length in a FLAC header. Each stream is
therefore passed to it as a file of its own with a correct header.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from tokenverse_pp.data.audio.containers import (
    PACKETS,
    SAMPLES,
    UNKNOWN,
    container_of,
    mpeg_in_wav,
    parts_of_packets,
    parts_of_samples,
    tag_size,
)
from tokenverse_pp.data.audio.mpeg import is_mpeg, mpeg_parts
from tokenverse_pp.data.audio.source import Bytes, JoinedStream, Piece, Range

# Ogg ---------------------------------------------------------------------------------------------------------------

_MIRRORED = bytes(int(f"{number:08b}"[::-1], 2) for number in range(256))
_CODECS = ((b"\x01vorbis", "vorbis"), (b"OpusHead", "opus"), (b"\x7fFLAC", "flac"), (b"Speex   ", "speex"))
_OPUS_MS = (10, 20, 40, 60) * 3 + (10, 20) * 2 + (2.5, 5, 10, 20) * 4  # of a frame, by the packet's first five bits
GAP = 0.1  # seconds: what time stamps may differ from the samples


def ogg_crc(page: bytes) -> int:
    """The checksum of a page whose checksum field is zero: CRC-32 as in zlib, with all bits mirrored."""
    crc = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)


@dataclass
class _Stream:
    """A logical stream of one link."""

    codec: str
    number: int
    ranges: List[List[int]] = field(default_factory=list)
    ended: bool = False
    pages: int = 0
    granule: int = 0
    gaps: int = 0
    lost_at: Optional[int] = None  # granule position


@dataclass(frozen=True)
class Ogg:
    """The contents of an Ogg file.

    Args:
        parts: the links, for libsndfile; none where one holds what it cannot read.
        ranges: the links.
        damage: pages are missing in the middle.
        problems: what is missing at the end.
        notes: what may be.
        gaps: whether the time stamps have gaps.
    """

    parts: Tuple[JoinedStream, ...]
    ranges: Tuple[Range, ...]
    damage: Optional[str]
    problems: Tuple[str, ...]
    notes: Tuple[str, ...]
    gaps: bool


def ogg_parts(data: Bytes) -> Ogg:
    """The links of a (chained) Ogg file: the pages of the first audio stream of each."""
    links: List[Dict[int, _Stream]] = []
    damage: Optional[str] = None
    problems: List[str] = []
    starts: List[int] = []
    starting = False
    at = 0
    content = data.all()
    while at < len(content):
        if content[at : at + 4] != b"OggS":
            after = content.find(b"OggS", at + 1)
            skipped = (after if after >= 0 else len(content)) - at
            if links and content[at:].strip(b"\0") and not content.startswith((b"ID3", b"TAG"), at):
                problems.append(f"damaged: {skipped} bytes between its pages are no Ogg")
            if after < 0:
                break
            at = after
            continue
        table = content[at + 27 : at + 27 + (content[at + 26] if at + 26 < len(content) else 0)]
        body = at + 27 + len(table)
        end = body + sum(table)
        if at + 27 > len(content) or len(table) < content[at + 26] or end > len(content):
            problems.append("truncated: its last page is not complete")
            break
        page = content[at:end]
        crc = struct.unpack("<I", page[22:26])[0]
        if ogg_crc(page[:22] + bytes(4) + page[26:]) != crc:
            damage = damage or f"damaged: the page at byte {at} has another checksum than it says"
            at += 4  # a false start, or a page that is lost
            continue
        flags, granule, serial, number = page[5], *struct.unpack("<qII", page[6:14] + page[14:22])
        if flags & 2:
            if not starting:
                links.append({})
                starts.append(at)
            links[-1][serial] = _Stream(_codec(content[body : body + 8]), number - 1)
        starting = bool(flags & 2)
        stream = links[-1].get(serial) if links else None
        if stream is not None:
            _add(stream, content, (at, body, end), flags, granule, number)
        at = end
    return _links(links, tuple(zip(starts, [*starts[1:], at])), damage, problems)


def _codec(head: bytes) -> str:
    return next((name for magic, name in _CODECS if head.startswith(magic)), "")


def _add(stream: _Stream, content: bytes, page: Tuple[int, int, int], flags: int, granule: int, number: int) -> None:
    """A page of a stream: its number tells of lost ones, its time stamp of gaps."""
    at, body, end = page
    if number != (stream.number + 1) & 0xFFFFFFFF and stream.lost_at is None:
        stream.lost_at = stream.granule
    stream.number = number
    stream.pages += 1
    if stream.ranges and stream.ranges[-1][1] == at:
        stream.ranges[-1][1] = end
    else:
        stream.ranges.append([at, end])
    stream.ended = bool(flags & 4)
    if granule <= 0:
        return
    if stream.codec == "opus" and stream.granule:
        expected = stream.granule + _opus_samples(content, content[at + 27 : body], body, bool(flags & 1))
        if granule - expected > 48000 * GAP:
            stream.gaps += 1
    stream.granule = granule


def _opus_samples(content: bytes, table: bytes, body: int, continued: bool) -> int:
    """Samples at 48 kHz of the packets that end on a page."""
    samples, at, begin, first = 0.0, body, body, True
    for size in table:
        at += size
        if size == 255:
            continue
        if not (first and continued) and at > begin:
            head = content[begin]
            count = (1, 2, 2, content[begin + 1] & 63 if at > begin + 1 else 0)[head & 3]
            samples += _OPUS_MS[head >> 3] * 48 * count
        elif at > begin:  # begun on the page before: as long as the others
            samples += 960
        first, begin = False, at
    return int(samples)


def _links(
    links: List[Dict[int, _Stream]], ranges: Tuple[Range, ...], damage: Optional[str], problems: List[str]
) -> Ogg:
    parts: List[JoinedStream] = []
    notes: List[str] = []
    readable, gaps = True, False
    for number, link in enumerate(links):
        stream = next((item for item in link.values() if item.codec), None)
        if stream is None or (stream.granule <= 0 and len(links) > 1):
            continue
        readable &= stream.codec in ("vorbis", "opus")
        gaps |= stream.gaps > 0
        if stream.lost_at is not None:
            damage = damage or "damaged: pages are missing, their numbers are not in order"
        if number == len(links) - 1 and not stream.ended and not problems:
            notes.append("it has no end-of-stream mark: it may be cut short")
        whole = len(links) == 1 and len(link) == 1 and len(stream.ranges) == 1 and stream.ranges[0][0] == 0
        pieces: Tuple[Piece, ...] = tuple((begin, end) for begin, end in stream.ranges)
        parts.append(JoinedStream(None if whole and stream.ended else pieces))
    return Ogg(tuple(parts) if readable else (), ranges, damage, tuple(problems), tuple(notes), gaps)


# FLAC --------------------------------------------------------------------------------------------------------------

_TAIL = 1 << 16
_STREAMINFO = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")


def flac_parts(data: Bytes, start: int, thorough: bool) -> Tuple[JoinedStream, ...]:
    """The streams of a FLAC file, one behind the other.

    Args:
        thorough: look through the whole file for joined ones; otherwise the last frame tells.
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
        if found > total:  # streamed, or wrong
            new = bytes([info[21] & 0xF0 | found >> 32]) + (found & 0xFFFFFFFF).to_bytes(4, "big")
            stated = total / found if total else 1.0
            parts.append(JoinedStream(((begin, begin + 21), new, (begin + 26, end)), stated))
        else:
            alone = begin == 0 and end == data.size
            parts.append(JoinedStream(None if alone else ((begin, end),)))
    return tuple(parts)


def _flac_total(info: bytes) -> int:
    """Samples that the header states; 0: it does not."""
    return (info[21] & 0x0F) << 32 | int.from_bytes(info[22:26], "big") if len(info) >= 26 else 0


def _flac_end(data: Bytes, begin: int, end: int, info: bytes) -> int:
    """The sample behind the last frame whose header is there."""
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
    """The sample behind a frame, by its header; None where this is none."""
    if len(head) < 6 or head[3] & 1:
        return None
    size_code, rate_code, channel_code = head[2] >> 4, head[2] & 15, head[3] >> 4
    if size_code == 0 or rate_code == 15 or channel_code > 10:
        return None
    channels = (info[20] >> 1 & 7) + 1
    if (2 if channel_code > 7 else channel_code + 1) != channels:
        return None
    # The number is written as UTF-8 would write it, with up to 36 bits.
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


@dataclass(frozen=True)
class Structure:
    """The structure of a source.

    Args:
        container: a key of `NAMES`, or ``unknown``.
        parts: what libsndfile reads, one behind the other; none: PyAV reads it.
        ranges: what PyAV reads.
        cut: the end is missing, as the structure says.
        left_over: bytes behind the end.
        problems: what is missing or damaged; a line each.
        notes: what may be; a line each.
        damage: audio is missing in the middle.
        gaps: Ogg time stamps have gaps, which libsndfile does not tell of.
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


def structure_of(data: Bytes, thorough: bool = False) -> Structure:
    """Determine the structure of a source; results are cached.

    Args:
        thorough: look through all of a FLAC file for a second one behind the first.
    """
    key = (*data.key, thorough)
    found = _SEEN.get(key)
    if found is None:
        found = _SEEN[key] = _structure_of(data, thorough)
        _weights.append(1000 + sum(part.frames.length // part.frames.samples for part in found.parts if part.frames))
        if sum(_weights) > _MOST:
            _SEEN.clear()
            _weights.clear()
    return found


_SEEN: Dict[Tuple[Any, ...], Structure] = {}
_weights: List[int] = []
_MOST = 4_000_000  # MP3 frames (of 16 bytes here) that are remembered


def _structure_of(data: Bytes, thorough: bool) -> Structure:
    start, head = 0, data.at(0, 8192)
    while 0 < tag_size(head) < data.size - start:  # files of any kind may begin with tags
        start += tag_size(head)
        head = data.at(start, 8192)
    container = container_of(head)
    everything = ((start, data.size),)
    inside = mpeg_in_wav(data, start) if container == "wav" else None
    if inside is not None or (container == UNKNOWN and is_mpeg(data, start)):
        parts, problems, notes = mpeg_parts(data, start if inside is None else inside[0])
        if inside is not None and data.size + 1 < inside[1] < 0x7FFFE000:
            problems, notes = ["truncated: its last frame is not complete"], []
        return Structure("mp3", parts, everything, problems=tuple(problems), notes=tuple(notes))
    if container in SAMPLES:
        found = parts_of_samples(data, container, start)
        if found is not None:
            return Structure(container, found[0], everything, left_over=found[1])
    elif container == "flac":
        return Structure(container, flac_parts(data, start, thorough), everything)
    elif container == "ogg":
        ogg = ogg_parts(data)
        cut = bool(ogg.problems)
        return Structure(
            container, ogg.parts, ogg.ranges or everything, cut, 0, ogg.problems, ogg.notes, ogg.damage, ogg.gaps
        )
    elif container in PACKETS:
        ranges, cut = parts_of_packets(data, container)
        return Structure(container, (), ranges, cut)
    # VOC, IRCAM and the like are told apart by libsndfile, which would take any byte 255 for the begin of an MP3 file.
    return Structure(container, () if head[:1] == b"\xff" else (JoinedStream(((0, data.size),)),), everything)

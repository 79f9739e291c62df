"""MPEG audio, Ogg and FLAC: how long the streams in a file are, told by their frames and pages, not by headers.

libsndfile believes the Xing header of an MP3 file, guesses where there is none, and reads the first of several streams
that are joined in one file. So each stream is given to it as a file of its own, with a header that is right.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from tokenverse_pp.audio.containers import Bytes, Part, Piece, Range, tag_size

# MPEG audio --------------------------------------------------------------------------------------------------------

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version bits
_KBIT = {  # by (MPEG 1, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_LONGEST = 5000  # bytes: more than any frame has


class _Header(NamedTuple):
    """What the four bytes of a frame's header say."""

    length: int
    samples: int
    kind: Tuple[int, int, int, bool]  # version, layer, rate, mono: constant in a stream
    info_at: int  # where a Xing header would be


_HEADERS: Dict[bytes, Optional[_Header]] = {}


def _header(head: bytes) -> Optional[_Header]:
    """Read a frame header; None where there is none. The same few occur again and again."""
    try:
        return _HEADERS[head]
    except KeyError:
        if len(_HEADERS) > 1 << 16:
            _HEADERS.clear()
        return _HEADERS.setdefault(head, _parse(head))


def _parse(head: bytes) -> Optional[_Header]:
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

    kind: Tuple[int, int, int, bool]
    samples: int  # of a frame
    info: bytes = b""  # the frame with the Xing header
    runs: List[List[int]] = field(default_factory=list)
    frames: int = 0


def is_mpeg(data: Bytes, start: int = 0) -> bool:
    """Whether MPEG audio begins within the next 64 kB: four frames in a row, or all that there are."""
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
    """Whether this and the next frames are a stream, as far as there is any content."""
    for _ in range(count):
        at += found.length
        if at + 4 > len(content):
            return True
        following = _header(content[at : at + 4])
        if following is None or following.kind[:3] != found.kind[:3]:
            return content[at : at + 3] in (b"TAG", b"ID3") or content[at : at + 8] == b"APETAGEX"
        found = following
    return True


def mpeg_parts(data: Bytes) -> Tuple[Tuple[Part, ...], List[str]]:
    """The streams of an MP3 file, each with a Xing header that is right, and what is wrong between their frames."""
    content = data.all()
    streams: List[_Mpeg] = []
    junk = at = 0
    cut = False
    kind: Optional[Tuple[int, int, int, bool]] = None
    found = _header(content[:4])
    while at + 4 <= len(content):
        end = at + found.length if found is not None else at
        following = _header(content[end : end + 4]) if found is not None else None
        if found is None or following is None or found.kind != kind:  # all others are as they should be
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
            if stream.runs and stream.runs[-1][1] == at:
                stream.runs[-1][1] = end
            else:
                stream.runs.append([at, end])
            stream.frames += 1
        at, found = end, following
    problems = [f"damaged: {junk} bytes between its frames are no MP3"] if junk > _LONGEST else []
    parts = [_mpeg_part(item, last and cut) for item, last in _with_last(streams) if item.frames]
    if len(streams) == 1 and parts and not cut and _is_right(streams[0], parts[0], content):
        parts = [Part()]
    return tuple(parts), problems


def _is_right(stream: _Mpeg, part: Part, content: bytes) -> bool:
    """Whether libsndfile reads the same samples from the file as it is."""
    start = 0
    while tag_size(content[start : start + 10]):
        start += tag_size(content[start : start + 10])
    begin, end = stream.runs[0]
    same = part.pieces is not None and part.pieces[0] == stream.info != b""
    return same and len(stream.runs) == 1 and begin - len(stream.info) == start and len(content) - end in (0, 128)


def _unusual(
    content: bytes, at: int, found: Optional[_Header], kind: Optional[Tuple[int, int, int, bool]]
) -> Optional[Tuple[int, int]]:
    """Where to go on at a place that is no frame like the last one, and the bytes that are no tag or padding; -1:
    nowhere. None: it is a frame all the same."""
    if found is not None and (found.kind == kind or _follow(content, at, found, 2)):
        if _follow(content, at, found, 1):
            return None
        # A frame that was cut reaches into what was joined to it.
        inside = _next_frame(content, at + 4, at + found.length)
        return None if inside is None else (inside, inside - at)
    after = _skip(content, at, started=kind is not None)
    return (-1, 0) if after is None else after


def _with_last(items: List[_Mpeg]) -> Iterator[Tuple[_Mpeg, bool]]:
    return ((item, number == len(items)) for number, item in enumerate(items, start=1))


def _skip(content: bytes, at: int, started: bool) -> Optional[Tuple[int, int]]:
    """Where frames go on behind something else, and how many bytes are no tag or padding; None: nowhere."""
    head = content[at : at + 10]
    size = tag_size(head)
    if size:
        return at + size, 0
    if head[:3] == b"TAG":
        return at + 128, 0
    if head[:8] == b"APETAGEX" and at + 16 <= len(content):
        return at + 32 + struct.unpack("<I", content[at + 12 : at + 16])[0], 0
    if head[0] == 0:
        return at + len(content[at : at + (1 << 16)]) - len(content[at : at + (1 << 16)].lstrip(b"\0")), 0
    after = _next_frame(content, at + 1, len(content))
    return None if after is None else (after, after - at if started else 0)


def _next_frame(content: bytes, at: int, stop: int) -> Optional[int]:
    """Where the next frame begins that others follow."""
    at = content.find(b"\xff", at, stop)
    while at >= 0:
        found = _header(content[at : at + 4])
        if found is not None and at + found.length <= len(content) and _follow(content, at, found, 2):
            return at
        at = content.find(b"\xff", at + 1, stop)
    return None


def _mpeg_part(stream: _Mpeg, cut: bool) -> Part:
    """Give a stream, whose last frame may be ``cut``, a header that says how many frames it has."""
    info, size = stream.info, sum(end - begin for begin, end in stream.runs)
    runs: Tuple[Piece, ...] = tuple((begin, end) for begin, end in stream.runs)
    at = max(info.find(b"Xing"), info.find(b"Info"))
    flags = struct.unpack(">I", info[at + 4 : at + 8])[0] if 0 <= at <= len(info) - 16 else 0
    if not flags & 1:
        return Part((_new_info(stream, size), *runs))
    new = bytearray(info)
    stated = struct.unpack(">I", info[at + 8 : at + 12])[0]
    new[at + 8 : at + 12] = struct.pack(">I", stream.frames)
    if flags & 2:
        new[at + 12 : at + 16] = struct.pack(">I", size + len(info))
    lame = at + 12 + (4 if flags & 2 else 0) + (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
    trimmed = 0  # samples at the start and the end that the encoder has added
    if info[lame : lame + 4].isalnum() and len(info) >= lame + 24:
        trims = int.from_bytes(info[lame + 21 : lame + 24], "big")
        trimmed = (trims >> 12) + (trims & 0xFFF)
        if stated != stream.frames:
            new[lame + 21 : lame + 24] = (trims & 0xFFF000).to_bytes(3, "big")  # the last frame is another one
    # Encoders disagree on whether the frame with the header counts.
    wrong = abs(stated - stream.frames) > 1 or (cut and stated > stream.frames)
    return Part((bytes(new), *runs), samples=stated * stream.samples - trimmed if wrong else None)


def _new_info(stream: _Mpeg, size: int) -> bytes:
    """A frame with a Xing header, for a stream of layer III; others need none, as their frames have one length."""
    version, layer, rate, mono = stream.kind
    if layer != 3:
        return b""
    head = bytes([0xFF, 0xE3 | version << 3, 9 << 4 | _RATES[version].index(rate) << 2, 0xC0 if mono else 0])
    found = _header(head)
    if found is None:  # cannot be, as the stream has such frames
        return b""
    frame = bytearray(found.length)
    frame[:4] = head
    at = found.info_at
    frame[at : at + 16] = b"Xing" + struct.pack(">III", 3, stream.frames, size + len(frame))
    return bytes(frame)


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
    """What an Ogg file holds.

    Args:
        parts: the links, for libsndfile; none where one holds what it cannot read.
        ranges: the links.
        damage: pages are missing in the middle.
        problems: what is missing at the end.
        notes: what may be.
        gaps: whether the time stamps have gaps.
    """

    parts: Tuple[Part, ...]
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
    parts: List[Part] = []
    notes: List[str] = []
    readable, gaps = True, False
    for number, link in enumerate(links):
        stream = next((item for item in link.values() if item.codec), None)
        if stream is None:
            continue
        readable &= stream.codec in ("vorbis", "opus")
        gaps |= stream.gaps > 0
        if stream.lost_at is not None:
            damage = damage or "damaged: pages are missing, their numbers are not in order"
        if number == len(links) - 1 and not stream.ended and not problems:
            notes.append("it has no end-of-stream mark: it may be cut short")
        whole = len(links) == 1 and len(link) == 1 and len(stream.ranges) == 1 and stream.ranges[0][0] == 0
        pieces: Tuple[Piece, ...] = tuple((begin, end) for begin, end in stream.ranges)
        parts.append(Part(None if whole and stream.ended else pieces))
    return Ogg(tuple(parts) if readable else (), ranges, damage, tuple(problems), tuple(notes), gaps)


# FLAC --------------------------------------------------------------------------------------------------------------

_TAIL = 1 << 16
_STREAMINFO = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")


def flac_parts(data: Bytes, start: int, thorough: bool) -> Tuple[Part, ...]:
    """The streams of a FLAC file, one behind the other.

    Args:
        thorough: look through the whole file for joined ones; otherwise the last frame tells.
    """
    info = data.at(start, 42)
    total = _flac_total(info)
    last = _flac_end(data, start, data.size, info)
    if not thorough and total and last == total:
        return (Part(None if start == 0 else ((start, data.size),)),)
    starts = [start, *(at for at in data.find(b"fLaC", start + 42) if data.at(at, 8) in _STREAMINFO)]
    parts = []
    for begin, end in zip(starts, [*starts[1:], data.size]):
        info = data.at(begin, 42)
        total, found = _flac_total(info), _flac_end(data, begin, end, info)
        if found > total:  # streamed, or wrong
            new = bytes([info[21] & 0xF0 | found >> 32]) + (found & 0xFFFFFFFF).to_bytes(4, "big")
            stated = total / found if total else 1.0
            parts.append(Part(((begin, begin + 21), new, (begin + 26, end)), stated))
        else:
            alone = begin == 0 and end == data.size
            parts.append(Part(None if alone else ((begin, end),)))
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

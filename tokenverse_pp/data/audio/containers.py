"""The containers other than WAV, FLAC and MP3: AIFF, AU, SPHERE, CAF, Wave64, Ogg, and those that PyAV reads."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional, Tuple

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.audio.source import (
    Bytes,
    Extent,
    JoinedStream,
    Piece,
    Range,
    Structure,
    chunk_end,
    chunks,
    is_placeholder,
    riff,
)

# Extensions of audio files, preferred ones first. The container is detected by content.
ENDINGS = (
    *(".wav", ".flac", ".sph", ".wv1", ".wv2", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64"),
    *(".ogg", ".oga", ".opus", ".spx", ".mp3", ".mp2", ".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".aac"),
    *(".webm", ".mka", ".mkv", ".amr", ".wma", ".wmv", ".asf", ".avi", ".flv", ".ac3", ".ogv"),
)
NAMES = {  # for messages
    **{x: x.upper() for x in "wav rf64 flac mp3 aiff au sphere caf mp4 amr avi flv".split()},
    "w64": "Wave64",
    "ogg": "Ogg",
    "matroska": "Matroska or WebM",
    "adts": "AAC",
    "asf": "ASF (WMA)",
    "mpegts": "MPEG-TS",
    "mpeg": "MPEG-PS",
}
PACKETS = ("mp4", "matroska", "adts", "amr", "asf", "avi", "flv", "mpegts", "mpeg")  # containers that PyAV reads


def _aiff(data: Bytes, start: int) -> Optional[Extent]:
    for at, name, size in chunks(data, start + 12, ">"):
        if name == b"SSND":
            here = data.size - at
            if size == 0 or is_placeholder(size, here):
                return Extent(at + 8, None, data.size, (at - 4, struct.pack(">I", min(here, 0xFFFFFFFE))))
            if size > here:
                return Extent(at + 8, size - 8, data.size)
            return Extent(at + 8, size - 8, max(chunk_end(data, at + size + pad, ">") for pad in {size & 1, 0}))
    return None


def _au(data: Bytes, start: int) -> Optional[Extent]:
    head = data.at(start, 24)
    if len(head) < 24:
        return None
    order = "<" if head[:4] == b"dns." else ">"
    offset, size = struct.unpack(order + "II", head[4:12])
    here = data.size - start - offset
    if size == 0 or is_placeholder(size, here):
        return Extent(start + offset, None, data.size, (start + 8, b"\xff" * 4))
    return Extent(start + offset, size, start + offset + size)


def sphere_header(data: Bytes, start: int = 0) -> Dict[str, str]:
    """The fields of a SPHERE header; ``header`` is its length."""
    head = data.at(start, 16).split(b"\n")
    try:
        length = int(head[1])
    except (IndexError, ValueError):
        return {}
    fields = {"header": str(length)}
    for line in data.at(start + 16, min(length, 1 << 16) - 16).decode("latin-1").splitlines():
        cells = line.split(maxsplit=2)
        if cells[:1] == ["end_head"]:
            break
        if len(cells) == 3:
            fields[cells[0]] = cells[2]
    return fields


def shorten_to_wav(data: Bytes, name: str) -> Tuple[bytes, int]:
    """Convert Shorten-compressed SPHERE to WAV with sph2pipe; return it, and the samples that the header states."""
    program = shutil.which("sph2pipe")
    if program is None:
        raise UserError(f"{name}: SPHERE that is compressed with Shorten needs sph2pipe (`lhotse install-sph2pipe`)")
    with tempfile.TemporaryDirectory(prefix="tokenverse_pp-") as folder:
        path = data.path
        if path is None:
            path = os.path.join(folder, "audio.sph")
            with open(path, "wb") as file:
                file.write(data.all())
        done = subprocess.run([program, "-f", "wav", "-p", os.path.abspath(path)], capture_output=True, check=False)
    if done.returncode or not done.stdout:
        said = " ".join(done.stderr.decode(errors="replace").split())[:200]
        raise UserError(f"{name}: sph2pipe cannot read it: {said or 'no output'}")
    stated = sphere_header(data).get("sample_count", "0")
    return done.stdout, int(stated) if stated.isdigit() else 0


def _sphere(data: Bytes, start: int) -> Optional[Extent]:
    fields = sphere_header(data, start)
    try:
        header = int(fields["header"])
        stated: Optional[int] = int(fields["sample_count"]) * int(fields["channel_count"])
        stated = stated * int(fields.get("sample_n_bytes", 2)) if stated else None
    except (KeyError, ValueError):
        return None
    return Extent(start + header, stated, data.size if stated is None else start + header + stated)


def _caf(data: Bytes, start: int) -> Optional[Extent]:
    at = start + 8
    found: Optional[Extent] = None
    coded = data.at(start + 28, 4) not in (b"lpcm", b"ulaw", b"alaw")
    while at + 12 <= data.size:
        head = data.at(at, 12)
        size = struct.unpack(">q", head[4:])[0]
        at += 12
        if head[:4] == b"data":
            here = data.size - at
            if size < 0 or size > here:
                stated = None if size < 0 else size - 4
                return None if coded else Extent(at + 4, stated, data.size, (at - 8, struct.pack(">q", here)))
            found = Extent(at + 4, size - 4, at + size)
        elif size < 0 or at + size > data.size or not all(32 <= byte < 127 for byte in head[:4]):
            at -= 12
            break
        at += size
    return None if found is None else Extent(found.data, found.stated, at)


def _w64(data: Bytes, start: int) -> Optional[Extent]:
    at = start + 40
    while at + 24 <= data.size:
        head = data.at(at, 24)
        size = struct.unpack("<Q", head[16:])[0] - 24
        if head[:4] == b"data":
            if size <= 0 or size >= 2**62:
                return Extent(at + 24, None, data.size)
            end = at + 24 + size + -size % 8
            total = struct.unpack("<Q", data.at(start + 16, 8))[0]
            return Extent(at + 24, size, max(end, start + total) if start + total <= data.size else min(end, data.size))
        if size < 0:
            return None
        at += 24 + size + -size % 8
    return None


EXTENTS: Dict[str, Callable[[Bytes, int], Optional[Extent]]] = {
    "wav": riff,
    "rf64": riff,
    "aiff": _aiff,
    "au": _au,
    "sphere": _sphere,
    "caf": _caf,
    "w64": _w64,
}
SAMPLES = tuple(EXTENTS)  # containers of plain samples


def packet_structure(data: Bytes, container: str) -> Structure:
    """The structure of a container that PyAV reads: the files that are joined in it, and whether the end is missing."""
    starts, cut = [0], False
    if container == "mp4":
        starts, cut = _boxes(data)
    elif container == "matroska":
        starts, cut = _segments(data)
    elif container == "avi":
        size = struct.unpack("<I", data.at(4, 4).ljust(4, b"\0"))[0]
        cut = size > data.size - 7 and not is_placeholder(size, data.size)
    elif container == "asf":
        starts = list(data.find(bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"))) or [0]
        head = data.at(starts[-1], 1 << 16)
        at = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))  # file properties
        known = 0 <= at <= len(head) - 92 and not head[at + 88] & 1  # otherwise it is a broadcast
        size = struct.unpack("<Q", head[at + 40 : at + 48])[0] if known else 0
        cut = size > data.size - starts[-1]
    elif container == "mpegts":
        cut = data.size % 188 != 0
    elif container == "amr":
        starts = list(data.find(b"#!AMR"))
    return Structure(container, ranges=tuple(zip(starts, [*starts[1:], data.size])), cut=cut)


def _boxes(data: Bytes) -> Tuple[List[int], bool]:
    """Return where the files joined in an MP4 begin (at each ``ftyp`` after media), and whether the end is missing."""
    starts, at, indexed, media = [0], 0, False, False
    while at + 8 <= data.size:
        head = data.at(at, 16)
        size = struct.unpack(">I", head[:4])[0]
        name = head[4:8]
        if size == 1 and len(head) == 16:
            size = struct.unpack(">Q", head[8:])[0]
        if name == b"ftyp" and indexed and media:
            starts.append(at)
            indexed = media = False
        indexed |= name in (b"moov", b"moof")
        media |= name == b"mdat"
        if size == 0:  # up to the end of the file
            at = data.size
            break
        if size < 8 or not all(32 <= byte < 127 or byte == 0xA9 for byte in name):
            break
        at += size
    return starts, at > data.size or not indexed


def _segments(data: Bytes) -> Tuple[List[int], bool]:
    """Return where the files joined in Matroska begin (at each EBML header), and whether the end is missing.

    Segments and clusters may have an unknown length (recordings made by browsers).
    """
    starts = [at for at in data.find(b"\x1a\x45\xdf\xa3") if b"\x42\x82" in data.at(at, 64)] or [0]
    at = starts[-1]
    while at < data.size:
        head = data.at(at, 16)
        name = head[: _vint(head, 0)[0]]
        width, size = _vint(head, len(name))
        unknown = size == (1 << 7 * width) - 1
        at += len(name) + width
        at += 0 if unknown else size  # an element of unknown length is entered
    return starts, at > data.size


def _vint(content: bytes, at: int) -> Tuple[int, int]:
    """Width and value of an EBML number."""
    first = content[at] if at < len(content) else 0x80
    width = 9 - first.bit_length() if first else 8
    value = int.from_bytes(content[at : at + width], "big") & ((1 << 7 * width) - 1)
    return width, value


_MIRRORED = bytes(int(f"{number:08b}"[::-1], 2) for number in range(256))
_CODECS = ((b"\x01vorbis", "vorbis"), (b"OpusHead", "opus"), (b"\x7fFLAC", "flac"), (b"Speex   ", "speex"))
_OPUS_MS = (10, 20, 40, 60) * 3 + (10, 20) * 2 + (2.5, 5, 10, 20) * 4  # per frame, by the packet's first five bits
GAP = 0.1  # seconds by which time stamps may differ from the samples


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


def ogg_structure(data: Bytes) -> Structure:
    """The structure of a (chained) Ogg file: a part for each link, with the pages of its first audio stream.

    If libsndfile cannot read a link, there are no parts, and PyAV reads the file.
    """
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
            at += 4  # not the start of a page, or a damaged page
            continue
        flags, granule, serial, number = page[5], *struct.unpack("<qII", page[6:14] + page[14:22])
        if flags & 2:
            if not starting:
                links.append({})
                starts.append(at)
            head = content[body : body + 8]
            codec = next((name for magic, name in _CODECS if head.startswith(magic)), "")
            links[-1][serial] = _Stream(codec, number - 1)
        starting = bool(flags & 2)
        stream = links[-1].get(serial) if links else None
        if stream is not None:
            _add(stream, content, (at, body, end), flags, granule, number)
        at = end
    return _links(links, tuple(zip(starts, [*starts[1:], at])) or ((0, data.size),), damage, problems)


def _add(stream: _Stream, content: bytes, page: Tuple[int, int, int], flags: int, granule: int, number: int) -> None:
    """Add a page to its stream, and look for lost pages (by number) and gaps (by time stamp)."""
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
    """Count the samples, at 48 kHz, of the packets that end on a page."""
    samples, at, begin, first = 0.0, body, body, True
    for size in table:
        at += size
        if size == 255:
            continue
        if not (first and continued) and at > begin:
            head = content[begin]
            count = (1, 2, 2, content[begin + 1] & 63 if at > begin + 1 else 0)[head & 3]
            samples += _OPUS_MS[head >> 3] * 48 * count
        elif at > begin:  # begun on the page before: assume 20 ms
            samples += 960
        first, begin = False, at
    return int(samples)


def _links(
    links: List[Dict[int, _Stream]], ranges: Tuple[Range, ...], damage: Optional[str], problems: List[str]
) -> Structure:
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
    return Structure(
        "ogg",
        tuple(parts) if readable else (),
        ranges,
        cut=bool(problems),
        problems=tuple(problems),
        notes=tuple(notes),
        damage=damage,
        gaps=gaps,
    )

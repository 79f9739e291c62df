"""Audio containers: detection by content (never by file name), and the length that their structure implies."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from tokenverse_pp.data.audio.source import Bytes, JoinedStream, Piece, Range

# Extensions of audio files, preferred ones first. The container is detected by content.
ENDINGS = (
    *(".wav", ".flac", ".sph", ".wv1", ".wv2", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64"),
    *(".ogg", ".oga", ".opus", ".spx", ".mp3", ".mp2", ".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".aac"),
    *(".webm", ".mka", ".mkv", ".amr", ".wma", ".wmv", ".asf", ".avi", ".flv", ".ac3", ".ogv"),
)
NAMES = {  # for messages
    "wav": "WAV",
    "rf64": "RF64",
    "w64": "Wave64",
    "flac": "FLAC",
    "ogg": "Ogg",
    "mp3": "MP3",
    "aiff": "AIFF",
    "au": "AU",
    "sphere": "SPHERE",
    "caf": "CAF",
    "mp4": "MP4",
    "matroska": "Matroska or WebM",
    "adts": "AAC",
    "amr": "AMR",
    "asf": "ASF (WMA)",
    "avi": "AVI",
    "flv": "FLV",
    "mpegts": "MPEG-TS",
    "mpeg": "MPEG-PS",
}
UNKNOWN = "unknown"
PACKETS = ("mp4", "matroska", "adts", "amr", "asf", "avi", "flv", "mpegts", "mpeg")  # containers of PyAV
_MAGIC = (
    *((b"fLaC", "flac"), (b"OggS", "ogg"), (b".snd", "au"), (b"dns.", "au"), (b"NIST_1A", "sphere"), (b"caff", "caf")),
    *((b"riff\x2e\x91\xcf\x11", "w64"), (b"\x1a\x45\xdf\xa3", "matroska"), (b"#!AMR", "amr"), (b"FLV\x01", "flv")),
    *((b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"), (b"\x00\x00\x01\xba", "mpeg")),
)
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"moof")


def container_of(head: bytes) -> str:
    """The container that begins with these bytes (some 400 of them), a key of `NAMES`, or `UNKNOWN`.

    MPEG audio cannot be told from its first bytes alone, see `tokenverse_pp.data.audio.mpeg`.

    >>> container_of(b"RIFF....WAVEfmt "), container_of(b"....ftypM4A "), container_of(b"words")
    ('wav', 'mp4', 'unknown')
    """
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    form = head[8:12]
    if head[:4] in (b"RIFF", b"RIFX") and form == b"WAVE":
        return "wav"
    if head[:4] in (b"RF64", b"BW64") and form == b"WAVE":
        return "rf64"
    if head[:4] == b"RIFF" and form == b"AVI ":
        return "avi"
    if head[:4] == b"FORM" and form in (b"AIFF", b"AIFC"):
        return "aiff"
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
    """The bytes of an ID3v2 tag that begins here; 0: none does.

    >>> tag_size(b"ID3" + bytes([3, 0, 0, 0, 0, 2, 1])), tag_size(b"RIFF......")
    (267, 0)
    """
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[5] & 0x10 else 0)


@dataclass(frozen=True)
class _Extent:
    """Where the samples of a container lie: first byte, bytes that the header states (None: it does not), the end of
    the container, and what of its header has to be replaced before libsndfile reads it."""

    data: int
    stated: Optional[int]
    end: int
    patch: Optional[Tuple[int, bytes]] = None


def parts_of_samples(data: Bytes, container: str, start: int = 0) -> Optional[Tuple[Tuple[JoinedStream, ...], int]]:
    """The parts of a container of plain samples (WAV, AIFF, AU, ..) and the bytes behind them that belong to nothing.

    Returns None where there is no such part, and no parts where the file ends before its samples begin.
    """
    parts: List[JoinedStream] = []
    at = start
    while True:
        extent = _READERS[container](data, at)
        if extent is None:
            break
        if extent.data > data.size:
            return (), 0
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
    return tuple(parts), _left_over(data, at)


def _left_over(data: Bytes, at: int) -> int:
    """Bytes behind the end that are neither a tag nor padding."""
    rest = data.at(at, 1 << 20)
    known = (b"TAG", b"ID3", b"APETAGEX", b"LYRICS")
    if rest.startswith(known) or not rest.strip(b"\0"):
        return 0
    return data.size - at


def _is_placeholder(size: int, here: int) -> bool:
    """Whether a length of 32 bits was written before the length was known (what ffmpeg, sox, arecord, .. stream)."""
    return size > here and (size >= 0xFFFFE000 or 0x7FFFE000 <= size <= 0x80001000)


def _riff(data: Bytes, start: int) -> Optional[_Extent]:
    """WAV, RIFX (big-endian), RF64."""
    head = data.at(start, 12)
    order = ">" if head[:4] == b"RIFX" else "<"
    long_at, long_size = 0, None
    for at, name, size in _chunks(data, start + 12, order):
        if name == b"ds64":
            fields = data.at(at, 16)
            long_at, long_size = at + 8, struct.unpack("<Q", fields[8:16])[0] if len(fields) == 16 else None
        if name != b"data":
            continue
        here = data.size - at
        if size == 0xFFFFFFFF and long_size is not None:
            if long_size in (0, 2**64 - 1):
                return _Extent(at, None, data.size, (long_at, struct.pack("<Q", here)))
            size = long_size
        elif size == 0 and here and _chunk_end(data, at, order) < data.size:
            return _Extent(at, None, data.size, (at - 4, b"\xff" * 4))
        elif _is_placeholder(size, here):
            return _Extent(at, None, data.size)
        if size > here:
            return _Extent(at, size, data.size)
        ends = [_chunk_end(data, at + size + pad, order) for pad in {size & 1, 0}]
        return _Extent(at, size, max(ends))
    return None


def mpeg_in_wav(data: Bytes, start: int) -> Optional[Range]:
    """Where the frames lie in a WAV file that holds MPEG audio (old recorders write MP3 into WAV), as it states."""
    for at, name, size in _chunks(data, start + 12, "<"):
        if name == b"fmt " and data.at(at, 2) not in (b"\x50\x00", b"\x55\x00"):
            return None
        if name == b"data":
            return at, at + size
    return None


def _chunks(data: Bytes, at: int, order: str) -> Iterator[Tuple[int, bytes, int]]:
    """Content offset, name and size of RIFF or IFF chunks."""
    while True:
        head = data.at(at, 8)
        if len(head) < 8:
            return
        size = struct.unpack(order + "I", head[4:])[0]
        yield at + 8, head[:4], size
        at += 8 + size + (size & 1)


def _chunk_end(data: Bytes, at: int, order: str) -> int:
    """Where the chunks that begin at ``at`` end."""
    while at + 8 <= data.size:
        head = data.at(at, 8)
        size = struct.unpack(order + "I", head[4:])[0]
        named = all(32 <= byte < 127 for byte in head[:4]) and head[:4] not in (b"RIFF", b"RIFX", b"RF64", b"FORM")
        if not named or at + 8 + size > data.size:
            return at
        at += 8 + size + (size & 1)
    return data.size if not data.at(at, 8).strip(b"\0") else at


def _aiff(data: Bytes, start: int) -> Optional[_Extent]:
    for at, name, size in _chunks(data, start + 12, ">"):
        if name == b"SSND":
            here = data.size - at
            if size == 0 or _is_placeholder(size, here):
                return _Extent(at + 8, None, data.size, (at - 4, struct.pack(">I", min(here, 0xFFFFFFFE))))
            if size > here:
                return _Extent(at + 8, size - 8, data.size)
            return _Extent(at + 8, size - 8, max(_chunk_end(data, at + size + pad, ">") for pad in {size & 1, 0}))
    return None


def _au(data: Bytes, start: int) -> Optional[_Extent]:
    head = data.at(start, 24)
    if len(head) < 24:
        return None
    order = "<" if head[:4] == b"dns." else ">"
    offset, size = struct.unpack(order + "II", head[4:12])
    here = data.size - start - offset
    if size == 0 or _is_placeholder(size, here):
        return _Extent(start + offset, None, data.size, (start + 8, b"\xff" * 4))
    return _Extent(start + offset, size, start + offset + size)


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


def _sphere(data: Bytes, start: int) -> Optional[_Extent]:
    fields = sphere_header(data, start)
    try:
        header = int(fields["header"])
        stated: Optional[int] = int(fields["sample_count"]) * int(fields["channel_count"])
        stated = stated * int(fields.get("sample_n_bytes", 2)) if stated else None
    except (KeyError, ValueError):
        return None
    return _Extent(start + header, stated, data.size if stated is None else start + header + stated)


def _caf(data: Bytes, start: int) -> Optional[_Extent]:
    at = start + 8
    found: Optional[_Extent] = None
    coded = data.at(start + 28, 4) not in (b"lpcm", b"ulaw", b"alaw")
    while at + 12 <= data.size:
        head = data.at(at, 12)
        size = struct.unpack(">q", head[4:])[0]
        at += 12
        if head[:4] == b"data":
            here = data.size - at
            if size < 0 or size > here:
                stated = None if size < 0 else size - 4
                return None if coded else _Extent(at + 4, stated, data.size, (at - 8, struct.pack(">q", here)))
            found = _Extent(at + 4, size - 4, at + size)
        elif size < 0 or at + size > data.size or not all(32 <= byte < 127 for byte in head[:4]):
            at -= 12
            break
        at += size
    return None if found is None else _Extent(found.data, found.stated, at)


def _w64(data: Bytes, start: int) -> Optional[_Extent]:
    at = start + 40
    while at + 24 <= data.size:
        head = data.at(at, 24)
        size = struct.unpack("<Q", head[16:])[0] - 24
        if head[:4] == b"data":
            if size <= 0 or size >= 2**62:
                return _Extent(at + 24, None, data.size)
            end = at + 24 + size + -size % 8
            total = struct.unpack("<Q", data.at(start + 16, 8))[0]
            return _Extent(
                at + 24, size, max(end, start + total) if start + total <= data.size else min(end, data.size)
            )
        if size < 0:
            return None
        at += 24 + size + -size % 8
    return None


_READERS: Dict[str, Callable[[Bytes, int], Optional[_Extent]]] = {
    "wav": _riff,
    "rf64": _riff,
    "aiff": _aiff,
    "au": _au,
    "sphere": _sphere,
    "caf": _caf,
    "w64": _w64,
}
SAMPLES = tuple(_READERS)  # containers that `parts_of_samples` knows


def parts_of_packets(data: Bytes, container: str) -> Tuple[Tuple[Range, ...], bool]:
    """The files that are joined in a container that PyAV reads, and whether the last one ends too early."""
    if container == "mp4":
        return _boxes(data)
    if container == "matroska":
        return _segments(data)
    if container == "avi":
        size = struct.unpack("<I", data.at(4, 4).ljust(4, b"\0"))[0]
        return ((0, data.size),), size > data.size - 7 and not _is_placeholder(size, data.size)
    if container == "asf":
        starts = list(data.find(bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"))) or [0]
        head = data.at(starts[-1], 1 << 16)
        at = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))  # file properties
        known = 0 <= at <= len(head) - 92 and not head[at + 88] & 1  # otherwise it is a broadcast
        size = struct.unpack("<Q", head[at + 40 : at + 48])[0] if known else 0
        return tuple(zip(starts, [*starts[1:], data.size])), size > data.size - starts[-1]
    if container == "mpegts":
        return ((0, data.size),), data.size % 188 != 0
    if container == "amr":
        starts = list(data.find(b"#!AMR"))
        return tuple(zip(starts, [*starts[1:], data.size])), False
    return ((0, data.size),), False


def _boxes(data: Bytes) -> Tuple[Tuple[Range, ...], bool]:
    """MP4: a second ``ftyp`` behind the media of the first is another file."""
    starts, at, indexed, media, cut = [0], 0, False, False, False
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
    cut = at > data.size or not indexed
    return tuple(zip(starts, [*starts[1:], data.size])), cut


def _segments(data: Bytes) -> Tuple[Tuple[Range, ...], bool]:
    """Matroska: each EBML header begins a file. Segments and clusters may be of unknown length (as browsers record)."""
    starts = [at for at in data.find(b"\x1a\x45\xdf\xa3") if b"\x42\x82" in data.at(at, 64)] or [0]
    at = starts[-1]
    while at < data.size:
        head = data.at(at, 16)
        name = head[: _vint(head, 0)[0]]
        width, size = _vint(head, len(name))
        unknown = size == (1 << 7 * width) - 1
        at += len(name) + width
        at += 0 if unknown else size  # an element of unknown length is entered
    return tuple(zip(starts, [*starts[1:], data.size])), at > data.size


def _vint(content: bytes, at: int) -> Tuple[int, int]:
    """Width and value of an EBML number."""
    first = content[at] if at < len(content) else 0x80
    width = 9 - first.bit_length() if first else 8
    value = int.from_bytes(content[at : at + width], "big") & ((1 << 7 * width) - 1)
    return width, value

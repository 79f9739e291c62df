"""How a source is built: which files are joined in it, and what its structure says of its end."""

from __future__ import annotations

from dataclasses import dataclass
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
from tokenverse_pp.data.audio.source import Bytes, JoinedStream, Range
from tokenverse_pp.data.audio.streams import flac_parts, ogg_parts


@dataclass(frozen=True)
class Structure:
    """How a source is built.

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
    """Find out how a source is built; files and bytes that were seen before are remembered.

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

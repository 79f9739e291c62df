"""Subtitles, SubRip (.srt) and WebVTT (.vtt): one file a recording, one turn a cue."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

from tokenverse_pp.manifests.importing.rows import BadRow, Place, Rejected, Row, RowOrRejected
from tokenverse_pp.manifests.importing.textfiles import files_of, safe_id
from tokenverse_pp.manifests.lines import text_lines

_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{2})[.,](\d{3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_VOICE = re.compile(r"<v(?:\.[^ >]*)?\s+([^>]+)>")  # <v Mary>, <v.loud Mary>
_TAG = re.compile(r"</?(?:[a-zA-Z][^<>]*|\d[\d:.]*)?>|\{\\[^}]*\}")
_SKIPPED = ("NOTE", "STYLE", "REGION")


def read_subtitles(path: Path) -> Iterator[RowOrRejected]:
    """The cues of subtitle files; the recording has the file's name.

    Tags are taken out; a voice (``<v Mary>``) is the speaker.
    """
    for file in files_of(path, (".srt", ".vtt")):
        for block in _blocks(file):
            item = _cue(file, block)
            if item is not None:
                yield item


def _blocks(file: Path) -> Iterator[List[Tuple[Place, str]]]:
    block: List[Tuple[Place, str]] = []
    for number, line in text_lines(file):
        if line.strip():
            block.append((Place(str(file), number), line))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _cue(file: Path, block: List[Tuple[Place, str]]) -> Optional[RowOrRejected]:
    place, first = block[0]
    known = Row(place, "", file.stem)
    if place.line == 1 and first.startswith("WEBVTT"):
        return None
    if first.split()[0] in _SKIPPED and file.suffix.lower() == ".vtt" and not any("-->" in line for _, line in block):
        return None
    at = next((i for i, (_, line) in enumerate(block[:2]) if "-->" in line), None)
    if at is None:
        return Rejected(place, "expected a cue with a line of times such as `00:00:01,000 --> 00:00:02,500`", known)
    place, line = block[at]
    times = _TIMES.fullmatch(line)
    if times is None:
        return Rejected(
            place, f"expected times such as `00:00:01,000 --> 00:00:02,500`, found {line.strip()[:60]!r}", known
        )
    raw = " ".join(line for _, line in block[at + 1 :])
    try:
        speaker = _speaker(raw)
    except BadRow as error:
        return Rejected(place, str(error), known)
    return Row(
        place,
        f"{safe_id(file.stem)}-{place.line:06d}",
        file.stem,
        start=_seconds(times.groups()[:4]),
        end=_seconds(times.groups()[4:]),
        text=" ".join(html.unescape(_TAG.sub("", raw)).split()) or None,
        speaker=speaker,
    )


def _speaker(raw: str) -> Optional[str]:
    voices = list(dict.fromkeys(voice.strip() for voice in _VOICE.findall(raw)))
    if len(voices) > 1:
        raise BadRow(f"one cue, one speaker; found {', '.join(voices)[:80]}")
    return voices[0] if voices else None


def _seconds(parts: Tuple[str, ...]) -> float:
    hours, minutes, secs, thousandths = (int(part or 0) for part in parts)
    return hours * 3600 + minutes * 60 + secs + thousandths / 1000

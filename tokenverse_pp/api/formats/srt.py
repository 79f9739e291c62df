"""SubRip subtitles."""

from __future__ import annotations

from tokenverse_pp.api.formats.cues import clock, cues_of
from tokenverse_pp.api.transcript import Transcript


def to_srt(transcript: Transcript) -> str:
    """Numbered cues (`cues_of`)."""
    blocks = []
    for number, cue in enumerate(cues_of(transcript), start=1):
        text = "\n".join(cue.lines).replace("-->", "→")  # what separates the times
        blocks.append(f"{number}\n{clock(cue.start, ',')} --> {clock(cue.end, ',')}\n{text}\n")
    return "\n".join(blocks)

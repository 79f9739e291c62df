"""WebVTT subtitles (W3C)."""

from __future__ import annotations

from tokenverse_pp.api.formats.cues import clock, cues_of
from tokenverse_pp.api.transcript import Transcript


def to_vtt(transcript: Transcript) -> str:
    """Cues (`cues_of`), with the characters escaped that begin tags and entities."""
    blocks = ["WEBVTT\n"]
    for cue in cues_of(transcript):
        text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{clock(cue.start, '.')} --> {clock(cue.end, '.')}\n{text}\n")
    return "\n".join(blocks)

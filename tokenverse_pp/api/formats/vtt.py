"""WebVTT subtitles (W3C)."""

from __future__ import annotations

from tokenverse_pp.api.formats.cues import Cue, clock, cues_of, with_escaped_dashes
from tokenverse_pp.api.transcript import Transcript


def to_vtt(transcript: Transcript) -> str:
    """Cues (`cues_of`), with the characters escaped that begin tags, character references and overrides of ASS.

    Where the speaker changes were asked for, the voice of a cue is its turn: ``<v turn1>``.
    """
    blocks = ["WEBVTT\n"]
    for cue in cues_of(transcript):
        blocks.append(f"{clock(cue.start, '.')} --> {clock(cue.end, '.')}\n{_text(cue)}\n")
    return "\n".join(blocks)


def _text(cue: Cue) -> str:
    escaped = (
        "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("{\\", "&#123;\\")
    )
    voice = f"<v turn{cue.turn}>" if cue.turn is not None else ""
    return voice + with_escaped_dashes(escaped, cue.has_dash)

"""RTTM (turns), STM (turns with text) and CTM (words), as NIST's tools, lhotse and `manifest import` read them.

The model hears that the speaker changes, not who speaks: the "speakers" are ``turn1``, ``turn2``, .., and a person who
speaks twice has two.
"""

from __future__ import annotations

import re

from tokenverse_pp.api.transcript import Transcript

SHORTEST = 0.001  # seconds, that is one unit of what is written


def to_rttm(transcript: Transcript) -> str:
    """``SPEAKER recording 1 start duration <NA> <NA> turnN <NA> <NA>``, a line a turn."""
    name = recording_id(transcript.name)
    return "".join(
        f"SPEAKER {name} 1 {turn.start:.3f} {_duration(turn.start, turn.end):.3f} "
        f"<NA> <NA> turn{turn.number} <NA> <NA>\n"
        for turn in transcript.spans()
    )


def to_stm(transcript: Transcript) -> str:
    """``recording 1 turnN start end <label> text``, a line a turn; the label is the language, if there is one."""
    name = recording_id(transcript.name)
    label = f"<{transcript.language}> " if transcript.language else ""
    return "".join(
        f"{name} 1 turn{turn.number} {turn.start:.3f} {turn.start + _duration(turn.start, turn.end):.3f} "
        f"{label}{turn.text}\n"
        for turn in transcript.spans()
    )


def to_ctm(transcript: Transcript) -> str:
    """``recording 1 start duration word confidence``, a line a word."""
    name = recording_id(transcript.name)
    return "".join(
        f"{name} 1 {word.start:.3f} {_duration(word.start, word.end):.3f} {word.text} {word.confidence:.6f}\n"
        for word in transcript.words
    )


def recording_id(name: str) -> str:
    """A name as a field of these formats: no spaces, and nothing that begins a comment.

    >>> recording_id("my call;1"), recording_id(";; x"), recording_id("")
    ('my_call;1', '_;;_x', 'audio')
    """
    field = re.sub(r"\s+", "_", name.strip()) or "audio"
    return f"_{field}" if field.startswith(";") else field


def _duration(start: float, end: float) -> float:
    return max(round(end, 3) - round(start, 3), SHORTEST)

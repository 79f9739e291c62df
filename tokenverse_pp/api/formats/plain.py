"""Plain text, text with task tokens, and JSON."""

from __future__ import annotations

from tokenverse_pp.api.transcript import Transcript


def to_text(transcript: Transcript) -> str:
    """The words, a line a turn."""
    return "".join(f"{turn.text}\n" for turn in transcript.spans())


def to_raw(transcript: Transcript) -> str:
    """Words and task tokens, as the model wrote them, on one line."""
    return transcript.raw + "\n"


def to_json(transcript: Transcript) -> str:
    """`Transcript.to_json`, indented."""
    return transcript.to_json(indent=2) + "\n"


def to_json_line(transcript: Transcript) -> str:
    """`Transcript.to_json`, on one line."""
    return transcript.to_json() + "\n"

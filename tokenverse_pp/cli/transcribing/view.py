"""A transcript for people at a terminal."""

from __future__ import annotations

from typing import Any, List

import click

from tokenverse_pp.api.transcript import Transcript, Turn
from tokenverse_pp.errors import CONTROL, printable

UNSURE = 0.5  # words below this confidence are underlined


def view(transcript: Transcript, label: str, colour: bool = True) -> str:
    """A heading, and a line a turn.

    >>> from tokenverse_pp.api.reading import transcript_of_words
    >>> from tokenverse_pp.api.transcript import Word
    >>> said = ["[FR]", "bonjour", "[NE]", "amélie", "[/NE]", "[ENDP]", "[SCD]", "oui"]
    >>> words = [Word(text, i / 2, i / 2 + 0.2, 0.9) for i, text in enumerate(said)]
    >>> print(view(transcript_of_words(words, ["asr", "scd", "endp", "ner", "lid"], 4.0), "call.wav", colour=False))
    call.wav  4.0 s, fr 90%
      0:00.5  bonjour [amélie] ◆
      0:03.5  oui
    """
    about = [f"{transcript.duration:.1f} s"]
    if transcript.language is not None:
        about.append(f"{transcript.language} {transcript.language_confidence or 0:.0%}")
    heading = style(CONTROL.sub("?", label), colour, bold=True) + "  " + style(", ".join(about), colour, dim=True)
    turns = [_line(transcript, turn, colour) for turn in transcript.spans()]
    return "\n".join([heading, *(turns or [style("  (nothing was heard)", colour, dim=True)])])


def _line(transcript: Transcript, turn: Turn, colour: bool) -> str:
    ends = {mark.position for mark in transcript.marks if mark.text == "[ENDP]"}
    opened = {entity.first: entity for entity in transcript.entities}
    parts: List[str] = []
    at = turn.first
    while at < turn.stop:
        entity = opened.get(at)
        stop = min(entity.stop, turn.stop) if entity is not None else at + 1
        looks = {"fg": "magenta", "bold": True} if entity is not None else {}
        words = " ".join(
            style(word.text, colour, **looks, underline=True if word.confidence < UNSURE else None)
            for word in transcript.words[at:stop]
        )
        if entity is not None:
            words = f"[{words}]" if entity.type is None else f"[{words} {style(entity.type, colour, dim=True)}]"
        parts.append(words + (" " + style("◆", colour, fg="green") if stop in ends else ""))
        at = stop
    time = style(f"{int(turn.start) // 60}:{turn.start % 60:04.1f}", colour, fg="cyan")
    return f"  {time}  {' '.join(parts)}"


def style(text: str, colour: bool, **looks: Any) -> str:
    """Text with colours, or as it is."""
    text = printable(text)  # neither a file's name nor a model's vocabulary is to steer the terminal
    return click.style(text, **looks) if colour and any(looks.values()) else text

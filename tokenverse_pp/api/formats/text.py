"""Plain text, text with task tokens, JSON, and NIST's formats: RTTM (turns), STM (turns with text), CTM (words).

NIST's tools, lhotse and `manifest import` read the latter. The model detects speaker changes, not identities: the
"speakers" are ``turn1``, ``turn2``, .., and a person who speaks twice has two.

Times have milliseconds and lie within the audio. ASCII blanks separate the fields, so a word keeps its no-break spaces;
a word with other blanks is written as several words. The formats have no escapes: a word that looks like NIST notation
(``{``, ``%uh``, ``(yes)``) is written unchanged, and `manifest import --nist-notation keep` reads it back.
"""

from __future__ import annotations

import re
from typing import Iterator, List, Tuple

from tokenverse_pp.tasks.result import Transcript, Turn


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


_BLANKS = re.compile(r"[ \t\r\n\f\v]+")
_UNSAFE = re.compile(r"[\s\x00-\x1f\x7f-\x9f]|^;|%(?=[0-9A-Fa-f]{2})")
NEUTRAL_LABEL = "<o>"  # before a text whose first word would be taken for the label


def to_rttm(transcript: Transcript) -> str:
    """``SPEAKER recording 1 start duration <NA> <NA> turnN <NA> <NA>``, a line a turn."""
    name = recording_id(transcript.name)
    return "".join(
        f"SPEAKER {name} 1 {_seconds(start)} {_seconds(end - start)} <NA> <NA> turn{turn.number} <NA> <NA>\n"
        for turn, start, end in _turns(transcript)
    )


def to_stm(transcript: Transcript) -> str:
    """``recording 1 turnN start end <label> text``, a line a turn; the label is the language, if there is one."""
    name = recording_id(transcript.name)
    lines = []
    for turn, start, end in _turns(transcript):
        text = _BLANKS.sub(" ", turn.text).strip(" ")
        label = f"<{transcript.language}> " if transcript.language else ""
        if not label and text.startswith("<"):
            label = f"{NEUTRAL_LABEL} "
        lines.append(f"{name} 1 turn{turn.number} {_seconds(start)} {_seconds(end)} {label}{text}\n")
    return "".join(lines)


def to_ctm(transcript: Transcript) -> str:
    """``recording 1 start duration word confidence``, a line a word; without confidences that are not known."""
    name = recording_id(transcript.name)
    lines = []
    for word, (start, end) in zip(transcript.words, word_spans(transcript)):
        parts = [part for part in _BLANKS.split(word.text) if part]
        sure = "" if word.confidence is None else f" {word.confidence:.6f}"
        for i, part in enumerate(parts):
            a, b = (start + (end - start) * k // len(parts) for k in (i, i + 1))
            lines.append(f"{name} 1 {_seconds(a)} {_seconds(max(b - a, 1))} {part}{sure}\n")
    return "".join(lines)


def recording_id(name: str) -> str:
    """A name as a field of these formats: what cannot stand in one is percent-encoded, as in URLs (UTF-8).

    `manifest import` finds the recording ``my call`` for ``my%20call``.

    >>> recording_id("my call;1"), recording_id(";; x"), recording_id("50%"), recording_id("a%20b"), recording_id("")
    ('my%20call;1', '%3B;%20x', '50%', 'a%2520b', 'audio')
    """
    return _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), name) or "audio"


def word_spans(transcript: Transcript) -> List[Tuple[int, int]]:
    """Start and end of each word in milliseconds: at least one long, and within the audio if its length is known."""
    limit = int(1000 * transcript.duration + 1e-6)
    spans = []
    for word in transcript.words:
        start, end = round(1000 * word.start), round(1000 * word.end)
        if limit:
            start, end = min(start, limit - 1), min(end, limit)
        start = max(start, 0)
        spans.append((start, max(end, start + 1)))
    return spans


def _turns(transcript: Transcript) -> Iterator[Tuple[Turn, int, int]]:
    """The turns with their times in milliseconds: from the start of the first word to the end of the last one."""
    spans = word_spans(transcript)
    for turn in transcript.spans():
        start = spans[turn.first][0]
        yield turn, start, max(spans[turn.stop - 1][1], start + 1)


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d}"

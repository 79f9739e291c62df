"""Words -> subtitle cues: short enough to be read, never across a speaker change or an endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, List, Sequence, Tuple

from tokenverse_pp.api.transcript import Transcript

CHARACTERS, LINES = 42, 2  # of a cue
LONGEST = 7000  # milliseconds of a cue
PAUSE = 2000  # milliseconds without a word that end a cue
LINGER = 500  # milliseconds that a cue stays after its last word, if the next one lets it
SHORTEST = 40  # milliseconds


@dataclass(frozen=True)
class Cue:
    """One or two lines, shown from ``start`` to ``end`` (milliseconds)."""

    start: int
    end: int
    lines: Tuple[str, ...]


@dataclass(frozen=True)
class _Piece:
    """A word, or part of one that is longer than a line."""

    text: str
    start: int
    end: int
    must_break: bool  # before it


def cues_of(transcript: Transcript) -> List[Cue]:
    """The cues of a transcript: none overlaps the next, and each lasts at least a moment.

    A cue ends at a speaker change, an endpoint, a long pause, and before it would have more than 2 lines of 42
    characters or last over 7 s. Where there are several turns, the first line of each begins with a dash.
    """
    cues: List[Cue] = []
    groups = list(_groups(list(_pieces(transcript))))
    for i, group in enumerate(groups):
        start = max(group[0].start, cues[-1].end if cues else 0)
        following = groups[i + 1][0].start if i + 1 < len(groups) else start + LONGEST
        end = max(min(group[-1].end + LINGER, following, start + LONGEST), start + SHORTEST)
        cues.append(Cue(start, end, _lines([piece.text for piece in group])))
    return cues


def _pieces(transcript: Transcript) -> Iterator[_Piece]:
    turns = {turn.first for turn in transcript.turns}
    ends = {mark.position for mark in transcript.marks if mark.text == "[ENDP]"}
    dashes = len(transcript.turns) > 1
    for i, word in enumerate(transcript.words):
        text = f"- {word.text}" if dashes and i in turns else word.text
        start, end = round(1000 * word.start), round(1000 * word.end)
        for at in range(0, len(text), CHARACTERS):
            yield _Piece(text[at : at + CHARACTERS], start, end, at == 0 and (i in turns or i in ends))


def _groups(pieces: Sequence[_Piece]) -> Iterator[List[_Piece]]:
    """The pieces of each cue."""
    group: List[_Piece] = []
    for piece in pieces:
        if group and (
            piece.must_break
            or piece.start - group[-1].end > PAUSE
            or piece.end - group[0].start > LONGEST
            or not _lines([*(other.text for other in group), piece.text])
        ):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _lines(words: Sequence[str]) -> Tuple[str, ...]:
    """Words on one line, or on two of about the same length; nothing where they do not fit."""
    whole = " ".join(words)
    if len(whole) <= CHARACTERS:
        return (whole,)
    halves = ((" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words)))
    fitting = [pair for pair in halves if max(map(len, pair)) <= CHARACTERS]
    return min(fitting, key=lambda pair: max(map(len, pair))) if fitting else ()


def clock(milliseconds: int, point: str) -> str:
    """Hours, minutes, seconds and what is left of them.

    >>> clock(3_723_004, ",")
    '01:02:03,004'
    """
    seconds, left = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{left:03d}"

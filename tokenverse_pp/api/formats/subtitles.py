"""SubRip and WebVTT subtitles: cues short enough to read that end at speaker changes and endpoints."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

from tokenverse_pp.tasks.punct import joined
from tokenverse_pp.tasks.result import Transcript

CHARACTERS, LINES = 42, 2  # of a cue
LONGEST = 7000  # milliseconds of a cue
PAUSE = 2000  # milliseconds without a word that end a cue
LINGER = 500  # milliseconds that a cue stays after its last word, unless the next one begins
SHORTEST = 100  # milliseconds; an importer treats shorter cues as echoes of live captions

_BLANKS = re.compile(r"[ \t\r\n\f\v]+")
Join = Callable[[Sequence[str]], str]  # words -> a line
_LEADING_DASH = re.compile("^[-\u2010-\u2014](?= )", re.MULTILINE)


@dataclass(frozen=True)
class SubtitleCue:
    """One or two lines, shown from ``start`` to ``end`` (milliseconds).

    Args:
        turn: the number of the words' turn, if speaker changes were decoded.
        has_dash: the first line begins with a speaker's dash, not a word.
    """

    start: int
    end: int
    lines: Tuple[str, ...]
    turn: Optional[int] = None
    has_dash: bool = False


@dataclass(frozen=True)
class _Piece:
    """A word with its times and turn, and whether a break or a speaker's dash comes before it."""

    text: str
    start: int
    end: int
    must_break: bool  # before it
    turn: Optional[int]
    has_dash: bool


def cues_of(transcript: Transcript) -> List[SubtitleCue]:
    """The cues of a transcript: none overlaps the next, each lasts at least a moment, all lie within the audio.

    A cue ends at a speaker change, an endpoint, a long pause, and before it would have more than 2 lines of 42
    characters (a longer word has a cue of its own) or last over 7 s. If there are several turns, the first line of each
    begins with a dash.
    """
    cues: List[SubtitleCue] = []
    join: Join = joined if "punct" in transcript.tasks else " ".join  # as `Transcript.written_text`
    groups = list(_groups(list(_pieces(transcript)), join))
    for i, group in enumerate(groups):
        start = max(group[0].start, cues[-1].end if cues else 0)
        following = groups[i + 1][0].start if i + 1 < len(groups) else start + LONGEST
        end = max(min(group[-1].end + LINGER, following, start + LONGEST), start + SHORTEST)
        lines = _lines([piece.text for piece in group], join)
        cues.append(SubtitleCue(start, end, lines, group[0].turn, group[0].has_dash))
    return _within(cues, int(1000 * transcript.duration + 1e-6))


def _within(cues: Sequence[SubtitleCue], duration: int) -> List[SubtitleCue]:
    """Limit cues to the length of the audio; those at its end begin earlier if they would have no time left.

    Args:
        duration: milliseconds; 0 if it is not known.
    """
    found: List[SubtitleCue] = []
    limit = duration if duration else max((cue.end for cue in cues), default=0)
    for left, cue in zip(range(len(cues), 0, -1), reversed(cues)):
        end = min(cue.end, limit)
        shortest = max(min(SHORTEST, limit // left), 1)  # an equal share, if the time left is not enough for all
        start = max(min(cue.start, end - shortest), 0)
        found.append(SubtitleCue(start, max(end, start + 1), cue.lines, cue.turn, cue.has_dash))
        limit = start
    return found[::-1]


def _pieces(transcript: Transcript) -> Iterator[_Piece]:
    turns = {turn.first: turn.number for turn in transcript.turns}
    ends = {mark.position for mark in transcript.marks if mark.text == "[ENDP]"}
    turn: Optional[int] = None
    must_break = has_dash = False
    for i, (word, spelled) in enumerate(zip(transcript.words, transcript.spelled)):
        if i in turns:
            turn, must_break, has_dash = turns[i], True, len(turns) > 1
        must_break = must_break or i in ends
        text = _BLANKS.sub(" ", spelled).strip(" ")
        if text:
            text = f"- {text}" if has_dash else text
            yield _Piece(text, round(1000 * word.start), round(1000 * word.end), must_break, turn, has_dash)
            must_break = has_dash = False


def _groups(pieces: Sequence[_Piece], join: Join) -> Iterator[List[_Piece]]:
    """The pieces of each cue."""
    group: List[_Piece] = []
    for piece in pieces:
        if group and (
            piece.must_break
            or piece.start - group[-1].end > PAUSE
            or piece.end - group[0].start > LONGEST
            or not _lines([*(other.text for other in group), piece.text], join)
        ):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _lines(words: Sequence[str], join: Join) -> Tuple[str, ...]:
    """Return words on one line, or on two of similar length; empty if they do not fit."""
    whole = join(words)
    if len(whole) <= CHARACTERS or len(words) == 1:
        return (whole,)
    halves = ((join(words[:i]), join(words[i:])) for i in range(1, len(words)))
    fitting = [pair for pair in halves if max(map(len, pair)) <= CHARACTERS]
    return min(fitting, key=lambda pair: max(map(len, pair))) if fitting else ()


def clock(milliseconds: int, point: str) -> str:
    """Format milliseconds as hours, minutes, seconds and milliseconds.

    >>> clock(3_723_004, ",")
    '01:02:03,004'
    """
    seconds, left = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{left:03d}"


def with_escaped_dashes(text: str, has_dash: bool) -> str:
    """Escape dashes that are words in the lines of a cue, so that they do not look like a speaker's dash.

    Args:
        has_dash: the first line begins with a speaker's dash.
    """
    at = 2 if has_dash else 0
    return text[:at] + _LEADING_DASH.sub(lambda match: f"&#{ord(match[0])};", text[at:])


# Text that a player may read as a tag, a character reference, an override of ASS, or the line of times of another cue.
# SubRip has no escapes: players decode character references or show them literally, so only such text is escaped.
_MARKUP = re.compile(r"&(?=#?\w+;)|<(?=[^<>]*>|[/A-Za-z0-9])|\{(?=\\)|(?<=[-=\u2010-\u2015])>|>(?=\s*[0-9])")
_REFERENCES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&#123;"}


def to_srt(transcript: Transcript) -> str:
    """Return numbered cues (`cues_of`)."""
    blocks = []
    for number, cue in enumerate(cues_of(transcript), start=1):
        text = _MARKUP.sub(lambda match: _REFERENCES[match[0]], "\n".join(cue.lines))
        times = f"{clock(cue.start, ',')} --> {clock(cue.end, ',')}"
        blocks.append(f"{number}\n{times}\n{with_escaped_dashes(text, cue.has_dash)}\n")
    return "\n".join(blocks)


def to_vtt(transcript: Transcript) -> str:
    """Return cues (`cues_of`), escaping characters that begin tags, character references and overrides of ASS.

    If speaker changes were decoded, the voice of a cue is its turn: ``<v turn1>``.
    """
    blocks = ["WEBVTT\n"]
    for cue in cues_of(transcript):
        text = "\n".join(cue.lines)
        for sign, reference in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("{\\", "&#123;\\")):
            text = text.replace(sign, reference)
        voice = f"<v turn{cue.turn}>" if cue.turn is not None else ""
        times = f"{clock(cue.start, '.')} --> {clock(cue.end, '.')}"
        blocks.append(f"{times}\n{voice}{with_escaped_dashes(text, cue.has_dash)}\n")
    return "\n".join(blocks)

"""Import subtitles, SubRip (.srt) and WebVTT (.vtt): one file per recording, one turn per cue.

`subtitle_cues` splits a file into cues. This module reads their text: it removes markup, resolves character references,
takes the voice as the speaker, and removes the repeated words of live captions. A ``<`` that does not begin a tag is
text (``a < b``, ``I <3 you``), although the tokenizer of the WebVTT standard would skip what follows it. Text that may
be a tag or words (``<laughs>``, ``<b and c>``) is rejected; other readers disagree on it too.

No library is used, because none reports the line of a cue. pysubs2 1.8 reads comments, identifiers and inline times of
WebVTT as text, drops a number that is the last line of a text, takes ``a < b and c > d`` for a tag, and silently skips
cues with bad times. webvtt-py 0.6 skips them too, or rejects the file, and skips text after a blank line.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Union

from tokenverse_pp.data.importing.rows import (
    BadRow,
    Place,
    Rejected,
    Row,
    RowOrRejected,
    files_of,
    safe_id,
    shown,
    unpacked,
)
from tokenverse_pp.data.importing.subtitle_cues import Cue, Lost, cues_of

ATTRIBUTES = r"(?:\s+[\w:-]+\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+))*\s*/?"
CLASSES = r"(?:\.[^\s<>]*)?\s*"
TAGS = {  # name of a start tag -> what may follow it
    **dict.fromkeys(("c", "i", "b", "u", "ruby", "rt", "rp"), f"{CLASSES}|{ATTRIBUTES}"),
    "v": r"(?:\.[^\s<>]+)?(?:\s[^<>]*)?",
    "lang": r"(?:\.[^\s<>]+)?(?:\s+[\w-]+)?\s*",
    "font": r"(?:\s[^<>]*)?",
    **dict.fromkeys(("s", "em", "strong", "span", "p", "br", "div", "del", "big", "small", "sub", "sup"), ATTRIBUTES),
    "a": r"\s+href[^<>]*",
}
BREAKS = ("br", "p", "div")

_STAMP = re.compile(r"<(?:[0-9]+:)?[0-9]{1,2}:[0-9]{2}(?:[.,][0-9]+)?>")  # when the words after it are shown
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)((?:[\s./:=\"'][^<>]*)?)>")
_POSSIBLE_TAG = re.compile(
    r"<\s{0,3}/?\s{0,3}(?:[bisu]|font|lang|ruby)\s{0,3}>|<(?:v|lang|font)[\s.]|<c\.\w|</(?:" + "|".join(TAGS) + r")\b"
)
_OVERRIDE = re.compile(r"\{\\[^{}]*\}")  # Advanced SubStation Alpha code such as {\an8}
_RUBY_TEXT = re.compile(r"<(r[tp])\b[^<>]*>.*?(?:</\1>|(?=</ruby>|<r[tp]\b)|\Z)", re.DOTALL)  # a reading, said once
_VOICE = re.compile(r"<v(?:\.[^\s<>]*)?\s([^<>]*)>")
_VOICED = re.compile(r"<v(?:\.[^\s<>]*)?\s[^<>]*>.*?(?:</v>|(?=<v[\s.])|\Z)", re.DOTALL)
_REFERENCE = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,40});")
_DASH = re.compile(r"\A[ \t]*[-\u2010-\u2014][ \t]+(?=\S)")  # before the words of another speaker
_BLANKS = re.compile(r"[ \t\r\n\f\v]+")
_MARK = "\0"  # placeholder for a time stamp; text that contains it is rejected before


@dataclass(frozen=True)
class CaptionLine:
    """A line of a cue without markup; ``stamped`` if it has time stamps for words, as in live captions."""

    words: List[str]
    stamped: bool = False


@dataclass(frozen=True)
class Text:
    """The text of a cue: its lines with words, and its speaker, if given."""

    lines: List[CaptionLine]
    speaker: Optional[str] = None

    @property
    def words(self) -> List[str]:
        """The words of all lines; a no-break space is a part of a word."""
        return [word for line in self.lines for word in line.words]


def read_text(payload: Sequence[str]) -> Text:
    """Read the lines of a cue (raises BadRow if the cue has two voices, or text that may be a tag).

    This removes tags of WebVTT and SubRip, time stamps (``<00:00:01.500>``), overrides (``{\\an8}``), readings of ruby
    text, and a dash and space at the start of a line, which mark another speaker.

    >>> read_text(["<v Mary>Hello <i>you</i>,", "- 3 &lt; 4 &amp; I <3 it</v>"]).words
    ['Hello', 'you,', '3', '<', '4', '&', 'I', '<3', 'it']
    """
    raw = _OVERRIDE.sub("", "\n".join(payload))
    speaker = _speaker(raw)
    text = _TAG.sub(_without_tag, _RUBY_TEXT.sub("", _STAMP.sub(_MARK, raw)))
    left = _POSSIBLE_TAG.search(text)
    if left:
        raise BadRow(f"field 'text': {shown(text[left.start() :][:40])} may be a tag or text; `&lt;` stands for a `<`")
    lines = []
    for line in text.split("\n"):
        words = _words(_unescaped(_DASH.sub("", line.replace(_MARK, ""))))
        if not all(_is_invisible(word) for word in words):
            lines.append(CaptionLine(words, stamped=_MARK in line))
    return Text(lines, speaker)


def _is_invisible(word: str) -> bool:
    """Whether a word has only Unicode spaces and format characters, such as ``&nbsp;`` and ``&lrm;``."""
    return all(char.isspace() or unicodedata.category(char) == "Cf" for char in word)


def _words(text: str) -> List[str]:
    return [word for word in _BLANKS.split(text) if word]


def _unescaped(text: str) -> str:
    """Resolve character references that end in a semicolon, once; ``AT&T`` is unchanged."""
    return _REFERENCE.sub(lambda match: html.unescape(match[0]), text)


def _without_tag(match: re.Match[str]) -> str:
    closing, name, rest = match[1], match[2].lower(), match[3]
    allowed = CLASSES if closing else TAGS.get(name, "")
    if name not in TAGS or not re.fullmatch(allowed, rest):
        raise BadRow(f"field 'text': {shown(match[0])} is no tag of SubRip or WebVTT; `&lt;` stands for a `<`")
    return "\n" if name in BREAKS else ""


def _speaker(raw: str) -> Optional[str]:
    voices = list(dict.fromkeys(" ".join(_words(_unescaped(voice))) for voice in _VOICE.findall(raw)))
    voices = [voice for voice in voices if voice]
    if len(voices) > 1:
        raise BadRow(f"one cue, one speaker; found {', '.join(voices)[:80]}")
    outside = re.sub(r"<[^<>]*>", "", _VOICED.sub("", raw)) if voices else ""
    if any(char.isalnum() for char in _unescaped(outside)):
        raise BadRow(f"one cue, one speaker; found words that are not of {voices[0][:80]}: {shown(outside.strip())}")
    return voices[0] if voices else None


AUTO, DROP, KEEP = "auto", "drop", "keep"
ECHO = 0.06  # seconds: too short for a word, so a repeating cue of this length is an echo
CLOSE = 0.5  # seconds after a cue during which its caption may still be on the screen


@dataclass
class _Caption:
    """A cue, and its text, which is empty if the cue has a problem."""

    cue: Cue
    text: Text

    @property
    def is_short(self) -> bool:
        return 0 < self.cue.end - self.cue.start <= ECHO


def read_subtitles(path: Path, repeats: str = AUTO) -> Iterator[RowOrRejected]:
    """Yield the cues of subtitle files; the recording has the file's name.

    Tags are removed; a voice (``<v Mary>``) is the speaker. A cue without words has no text.

    Args:
        repeats: what to do with words that live captions repeat. ``auto`` leaves out echoes (cues of some milliseconds
            that repeat the previous cue) and, in a file whose captions roll (`_rolls`), lines that are still on the
            screen; ``drop`` does so in every file, ``keep`` never. Cues that are left out have `Rejected.expected`;
            `Row.repeated` counts words that are left out.
    """
    files: Dict[str, Path] = {}
    for file in files_of(path, (".srt", ".vtt")):
        recording = unpacked(file).stem
        other = files.setdefault(recording, file)
        if other is file:
            yield from _rows(file, recording, repeats)
        else:
            place = Place(str(file), 1)
            yield Rejected(place, f"{other} is of recording {recording!r} too; left out", None, harmless=True)


def _rows(file: Path, recording: str, repeats: str) -> Iterator[RowOrRejected]:
    items: List[Union[Lost, _Caption]] = []
    for cue in cues_of(file):
        if isinstance(cue, Lost):
            items.append(cue)
            continue
        text = Text([])
        try:
            text = text if cue.problem else read_text(cue.payload)
        except BadRow as error:
            cue.problem = str(error)
        items.append(_Caption(cue, text))
    captions = [item for item in items if isinstance(item, _Caption)]
    before = dict(zip(map(id, captions[1:]), captions))
    rolls = repeats == DROP or (repeats == AUTO and _rolls(captions))
    for item in items:
        if isinstance(item, Lost):
            place = Place(str(file), item.line)
            yield Rejected(place, item.reason, Row(place, "", recording))
        else:
            yield _row(file, recording, item, before.get(id(item)), repeats != KEEP, rolls)


def _row(
    file: Path, recording: str, caption: _Caption, before: Optional[_Caption], echoes: bool, rolls: bool
) -> RowOrRejected:
    """Return the row of a cue, without echoes (if ``echoes``) or all that repeats the cue ``before`` (if ``rolls``)."""
    cue, words = caption.cue, caption.text.words
    place = Place(str(file), cue.line)
    row = Row(place, f"{safe_id(recording)}-{cue.line:06d}", recording, start=cue.start, end=cue.end)
    if cue.problem is not None:
        return Rejected(place, cue.problem, row)
    if echoes and caption.is_short and not words:
        return Rejected(place, f"empty, and not longer than {ECHO:g} s", row, harmless=True, expected=True)
    repeated = _repeated(before, caption, rolls) if before is not None and (rolls or echoes) else 0
    if repeated and repeated == len(words) and (rolls or caption.is_short):
        return Rejected(place, "repeats the cue before", row, harmless=True, expected=True)
    row.repeated = repeated if rolls else 0
    row.text = " ".join(words[row.repeated :]) or None
    row.speaker = caption.text.speaker
    return row


def _repeated(before: _Caption, caption: _Caption, rolls: bool = False) -> int:
    """Return how many words at the start of a cue repeat the last lines of the previous cue.

    Words in lines with time stamps are new if there is time to say them. After a pause, only such lines prove that
    the words before them are repeated.
    """
    if before.cue.problem or caption.cue.problem or before.text.speaker != caption.text.speaker:
        return 0
    old, words = before.text.words, caption.text.words
    lines = [] if caption.is_short else caption.text.lines
    stamped = next((i for i, line in enumerate(lines) if line.stamped), None)
    limit = sum(len(line.words) for line in lines[:stamped]) if stamped is not None else len(words)
    may_be_late = caption.is_short or (rolls and stamped is not None)
    if caption.cue.start < before.cue.start or not (may_be_late or caption.cue.start <= before.cue.end + CLOSE):
        return 0
    at = 0
    for line in before.text.lines:
        tail = old[at:]
        if len(tail) <= limit and words[: len(tail)] == tail:
            return len(tail)
        at += len(line.words)
    return 0


def _rolls(captions: Sequence[_Caption]) -> bool:
    """Whether the captions of a file roll: most begin with lines of the previous caption, and add to them.

    A caption that only repeats the previous one proves nothing, as words may be said twice ("no", "no"). A single
    caption must repeat a whole line of at least three words, follow an echo, or have time stamps; of several, one must
    repeat more than one word.
    """
    counts: List[int] = []  # words repeated by each caption that also adds words
    others = 0
    is_proved = is_likely = False
    for before, caption in zip(captions, captions[1:]):
        words, lines = caption.text.words, caption.text.lines
        repeated = _repeated(before, caption)
        if 0 < repeated < len(words):
            counts.append(repeated)
            ends = [sum(len(line.words) for line in lines[:i]) for i in range(1, len(lines))]
            if repeated in ends:  # a separate line is added
                is_proved = is_proved or before.is_short or any(line.stamped for line in lines)
                is_likely = is_likely or repeated >= 3
        elif words and before.text.words and not repeated and not caption.is_short:
            others += before.cue.start <= caption.cue.start <= before.cue.end + CLOSE
    if len(counts) <= others:
        return False
    return is_proved or is_likely or (len(counts) > 1 and max(counts) >= 2)

"""The text of a subtitle cue: markup taken out, character references read, the voice as the speaker.

A ``<`` that begins no tag is text (``a < b``, ``I <3 you``), although the tokenizer of the WebVTT standard would skip
what follows it. What may be a tag or words (``<laughs>``, ``<b and c>``) is refused: other readers disagree on it too.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass
from typing import List, Optional, Sequence

from tokenverse_pp.manifests.importing.rows import BadRow, shown

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
_OVERRIDE = re.compile(r"\{\\[^{}]*\}")  # of Advanced SubStation Alpha, such as {\an8}
_RUBY_TEXT = re.compile(r"<(r[tp])\b[^<>]*>.*?(?:</\1>|(?=</ruby>|<r[tp]\b)|\Z)", re.DOTALL)  # a reading, said once
_VOICE = re.compile(r"<v(?:\.[^\s<>]*)?\s([^<>]*)>")
_VOICED = re.compile(r"<v(?:\.[^\s<>]*)?\s[^<>]*>.*?(?:</v>|(?=<v[\s.])|\Z)", re.DOTALL)
_REFERENCE = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,40});")
_DASH = re.compile(r"\A[ \t]*[-\u2010-\u2014][ \t]+(?=\S)")  # before the words of another speaker
_BLANKS = re.compile(r"[ \t\r\n\f\v]+")
_MARK = "\0"  # stands for a time stamp; text that holds it is refused before


@dataclass(frozen=True)
class Line:
    """A line of a cue, without markup.

    Args:
        stamped: it has a time stamp for its words, as the words have that live captions add.
    """

    words: List[str]
    stamped: bool = False


@dataclass(frozen=True)
class Text:
    """What a cue says: its lines that hold words, and who says it, if that is told."""

    lines: List[Line]
    speaker: Optional[str] = None

    @property
    def words(self) -> List[str]:
        """The words of all lines; a no-break space is a part of a word."""
        return [word for line in self.lines for word in line.words]


def read_text(payload: Sequence[str]) -> Text:
    """Read the lines of a cue.

    Taken out are tags of WebVTT and SubRip, time stamps (``<00:00:01.500>``), overrides (``{\\an8}``), readings of ruby
    text, and a dash and space at the begin of a line, the mark of another speaker.

    >>> read_text(["<v Mary>Hello <i>you</i>,", "- 3 &lt; 4 &amp; I <3 it</v>"]).words
    ['Hello', 'you,', '3', '<', '4', '&', 'I', '<3', 'it']

    Raises:
        BadRow: for two voices, and for what may be a tag or text.
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
            lines.append(Line(words, stamped=_MARK in line))
    return Text(lines, speaker)


def _is_invisible(word: str) -> bool:
    """Whether there are but Unicode spaces and format characters, such as those of ``&nbsp;`` and ``&lrm;``."""
    return all(char.isspace() or unicodedata.category(char) == "Cf" for char in word)


def _words(text: str) -> List[str]:
    return [word for word in _BLANKS.split(text) if word]


def _unescaped(text: str) -> str:
    """Character references that end in a semicolon, read once; ``AT&T`` stays as it is."""
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

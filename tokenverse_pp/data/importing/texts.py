"""Entities that stand as marks within the text: ``[Paris](LOC)``, ``<NE>Paris</NE>``, ``<LOC>Paris</LOC>``.

The text of a row as the schema wants it, its entities carried along.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from tokenverse_pp.data.importing.rows import BadRow, Span, shown
from tokenverse_pp.data.normalise import NORMALISERS, ZERO_WIDTH_SPACE, visible_words

MARKUPS = ("brackets", "tags")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]\(([^()\[\]\s]*)\)")
_TAGS = re.compile(r"<(/?)([^\s<>/]+)(?:\s+type=[\"']?([^\s<>\"']+)[\"']?)?\s*>")
UNTYPED = ("NE", "ne")


def read_inline(text: str, markup: str) -> Tuple[str, List[Span]]:
    """Plain text, and its entities as spans of characters.

    ``brackets``: ``[words](TYPE)``, with ``()`` for no type. ``tags``: ``<TYPE>words</TYPE>``, ``<NE>words</NE>`` for
    no type, ``<NE type="TYPE">words</NE>``.

    >>> read_inline("in [New York](LOC) today", "brackets")
    ('in New York today', [(3, 11, 'LOC')])

    Raises:
        BadRow: for marks that are not closed, or lie in one another.
    """
    return _brackets(text) if markup == "brackets" else _tags(text)


def _brackets(text: str) -> Tuple[str, List[Span]]:
    plain, spans, done = "", [], 0
    for match in _BRACKETS.finditer(text):
        plain += text[done : match.start()]
        spans.append((len(plain), len(plain) + len(match[1]), match[2] or None))
        plain += match[1]
        done = match.end()
    plain += text[done:]
    if "[" in plain or "]" in plain:
        raise BadRow(f"field 'text': expected marks such as [Paris](LOC), found {shown(text)}")
    return plain, spans


def _tags(text: str) -> Tuple[str, List[Span]]:
    plain, done = "", 0
    spans: List[Span] = []
    opened: Optional[Tuple[int, str, Optional[str]]] = None
    for match in _TAGS.finditer(text):
        plain += text[done : match.start()]
        done = match.end()
        closes, name, kind = match[1], match[2], match[3]
        if not closes and opened is None:
            opened = (len(plain), name, kind or (None if name in UNTYPED else name))
        elif closes and opened is not None and opened[1] == name:
            spans.append((opened[0], len(plain), opened[2]))
            opened = None
        else:
            raise BadRow(f"field 'text': {match[0]} does not fit: expected marks such as <LOC>Paris</LOC>")
    plain += text[done:]
    if opened is not None or "<" in plain or ">" in plain:
        raise BadRow(f"field 'text': expected marks such as <LOC>Paris</LOC>, found {shown(text)}")
    return plain, spans


AS_IT_IS = "keep"
NAMES = (AS_IT_IS, *NORMALISERS)


def finish_text(
    text: str,
    spans: Optional[Sequence[Span]],
    normaliser: str = AS_IT_IS,
    language: Optional[str] = None,
    widen: bool = False,
) -> Tuple[str, Optional[List[Dict[str, Any]]]]:
    """Normalised text with single spaces, and its entities as the label schema has them.

    An entity takes whole words of the normalised text. What it leaves of its first and last word may be punctuation
    (``Paris,``); letters or digits (``l'Europe``) are an error, or are taken in with ``widen``.

    Args:
        spans: entities in characters of ``text``; None: nobody looked for them.
        normaliser: one of `NAMES`; ``keep`` changes nothing but spaces (see `visible_words`).
        language: for the normaliser.

    Raises:
        BadRow: naming the entity.
    """

    def words_of(part: str) -> List[str]:
        return visible_words(part) if normaliser == AS_IT_IS else NORMALISERS[normaliser](part, language).split()

    words = words_of(text)
    if spans is None:
        return " ".join(words), None
    at, bounds = 0, []
    for word in words:
        bounds.append((at, at + len(word)))
        at += len(word) + 1
    entities = []
    for start, end, kind in sorted(spans, key=lambda span: span[:2]):
        first, last = _locate(text, start, end, words, words_of, widen)
        entity: Dict[str, Any] = {"start": bounds[first][0], "end": bounds[last - 1][1]}
        entities.append({**entity, "type": kind} if kind is not None else entity)
    return " ".join(words), entities


def _locate(
    text: str, start: int, end: int, words: List[str], words_of: Callable[[str], List[str]], widen: bool
) -> Tuple[int, int]:
    """First word and one past the last of characters ``start`` to ``end``."""
    if not 0 <= start < end <= len(text):
        raise BadRow(f"field 'entities': span {start}..{end} lies outside of the text of {len(text)} characters")
    wide = _whole_words(text, start, end)
    left_over = text[wide[0] : start] + text[end : wide[1]]
    # What normalises to the same words in three pieces as in one lies on the borders of words.
    for a, b in ((start, end), wide):
        before, inside, after = words_of(text[:a]), words_of(text[a:b]), words_of(text[b:])
        if inside and before + inside + after == words:
            return len(before), len(before) + len(inside)
        if not widen and any(char.isalnum() for char in left_over):
            raise BadRow(
                f"field 'entities': {shown(text[start:end])} is a part of {shown(text[wide[0] : wide[1]])} "
                "(--widen-entities takes whole words)"
            )
    raise BadRow(f"field 'entities': {shown(text[start:end])} holds no word")


def _whole_words(text: str, start: int, end: int) -> Tuple[int, int]:
    while start > 0 and not _is_space(text[start - 1]) and not _is_space(text[start]):
        start -= 1
    while end < len(text) and not _is_space(text[end]) and not _is_space(text[end - 1]):
        end += 1
    return start, end


def _is_space(char: str) -> bool:
    return char.isspace() or char == ZERO_WIDTH_SPACE

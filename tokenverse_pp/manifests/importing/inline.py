"""Entities that stand as marks within the text: ``[Paris](LOC)``, ``<NE>Paris</NE>``, ``<LOC>Paris</LOC>``."""

from __future__ import annotations

import re
from typing import List, Optional, Tuple

from tokenverse_pp.manifests.importing.rows import BadRow, Span, shown

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

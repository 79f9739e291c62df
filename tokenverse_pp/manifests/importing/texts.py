"""The text of a row as the schema wants it, its entities carried along."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from tokenverse_pp.manifests.importing.rows import BadRow, Span, shown
from tokenverse_pp.manifests.normalise import NORMALISERS, ZERO_WIDTH_SPACE, visible_words

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

"""Entities from a list of phrases: longest match at word boundaries."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple

from tokenverse_pp.errors import UserError
from tokenverse_pp.files import PathLike
from tokenverse_pp.manifests.lines import BLANKS, number_of, stray_control, text_lines


class Span(NamedTuple):
    """An entity in a text: characters ``start`` to ``end``, its type, and how sure its finder is (0 to 1)."""

    start: int
    end: int
    type: str
    confidence: float


class Gazetteer:
    """Phrases with types.

    At each word the longest phrase that begins there is taken, and the search goes on behind it. Words are what
    spaces separate: ``paris`` is not found in ``parisien`` nor in ``d'paris``.

    Args:
        entries: (phrase, type, confidence); of a phrase that comes twice, the last counts.
        match_case: tell ``Paris`` from ``paris``.
    """

    def __init__(self, entries: Sequence[Tuple[str, str, float]], match_case: bool = False):
        self.match_case = match_case
        self._phrases: Dict[Tuple[str, ...], Tuple[str, float]] = {}
        self._longest: Dict[str, int] = {}  # words of the longest phrase, by the phrase's first word
        for phrase, kind, confidence in entries:
            words = tuple(self._fold(phrase).split())
            self._phrases[words] = (kind, confidence)
            self._longest[words[0]] = max(len(words), self._longest.get(words[0], 0))

    def _fold(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text)
        return text if self.match_case else text.casefold()

    def find(self, text: str) -> List[Span]:
        """The phrases in a text, in order, none overlapping another."""
        folded = self._fold(text).split()
        matches, at = [], 0
        while at < len(folded):
            length = self._match(folded, at, self._longest[folded[at]]) if folded[at] in self._longest else 0
            if length:
                matches.append((at, at + length))
            at += length or 1
        if not matches:
            return []
        words, starts = word_starts(text)
        return [
            Span(starts[first], starts[end - 1] + len(words[end - 1]), *self._phrases[tuple(folded[first:end])])
            for first, end in matches
        ]

    def _match(self, words: Sequence[str], at: int, longest: int) -> int:
        """Words of the longest phrase that begins at a word, 0 if none does."""
        for length in range(min(longest, len(words) - at), 0, -1):
            if tuple(words[at : at + length]) in self._phrases:
                return length
        return 0


def word_starts(text: str) -> Tuple[List[str], List[int]]:
    """The words of a text and the character at which each starts."""
    words, starts, at = text.split(), [], 0
    for word in words:
        starts.append(text.index(word, at))
        at = starts[-1] + len(word)
    return words, starts


def read_gazetteer(path: PathLike, match_case: bool = False, confidence: float = 1.0) -> Gazetteer:
    """Read a file of lines ``phrase TAB type``, or ``phrase TAB type TAB confidence``; UTF-8, ``#`` starts a remark.

    Args:
        confidence: of phrases whose line gives none.

    Raises:
        UserError: naming the line that is not so, or the file that has no phrase.
    """
    entries = []
    for number, line in text_lines(Path(path)):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip(BLANKS) for field in line.split("\t")]
        where = f"{path}, line {number}"
        stray = stray_control(line)
        if stray is not None:
            raise UserError(f"{where}: holds a {stray}; expected one phrase a line")
        if not 2 <= len(fields) <= 3 or not fields[0].strip() or not fields[1].strip():
            raise UserError(f"{where}: expected 'phrase TAB type' or 'phrase TAB type TAB confidence'")
        entries.append((fields[0], fields[1], _confidence(fields[2], where) if len(fields) == 3 else confidence))
    if not entries:
        raise UserError(f"{path}: expected lines 'phrase TAB type', found none")
    return Gazetteer(entries, match_case)


def _confidence(text: str, where: str) -> float:
    value = number_of(text)
    if value is None or not 0 <= value <= 1:
        raise UserError(f"{where}: expected a confidence of 0 to 1, found {text!r}")
    return value

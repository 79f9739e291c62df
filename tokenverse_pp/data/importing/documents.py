"""Align the text of entity documents with the text of a transcript, character by character.

Letters and digits must match. Case, accents (including the dot of an i), punctuation, spaces and invisible characters
may differ. Vowel signs of scripts such as Devanagari or Thai count as letters.

The document of a recording has the text of all its rows. Where the two differ, only rows whose text occurs exactly once
in the document keep their entities; the other rows are reported.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Collection, Dict, List, Optional, Sequence, Set, Tuple

import regex

from tokenverse_pp.data.importing.rows import Place, Row, Span

Key = List[Tuple[str, int]]
_IGNORABLE = regex.compile(r"\p{Default_Ignorable_Code_Point}|\p{Me}")  # variation selectors, enclosing keycaps, ..
# Canonical combining classes of marks above, below and through a letter, and of Hebrew, Arabic and Syriac points.
# Others (nukta, virama, kana voicing, Thai vowels and tones) make another letter or syllable.
_ACCENTS = frozenset([1, *range(10, 37), *range(200, 241)])
NOWHERE = -1


@dataclass
class Document:
    """A text with entities (spans of its characters).

    Args:
        error: what is wrong with the document as a whole. If it also has no text, it could not be read.
        refused: entities that cannot be used: first and last (exclusive) character, and the reason. Rows that they
            touch are not fully labelled.
    """

    place: Place
    name: Optional[str]
    text: str
    spans: List[Span]
    error: Optional[str] = None
    refused: List[Tuple[int, int, str]] = field(default_factory=list)


@dataclass
class Fit:
    """The entities of a document by row number, for the rows that its text fits.

    Args:
        problems: why the other rows have no entities.
        surplus: messages about text that is in no row.
    """

    entities: Dict[int, List[Span]] = field(default_factory=dict)
    problems: Dict[int, str] = field(default_factory=dict)
    surplus: List[str] = field(default_factory=list)


def letters(text: str) -> Key:
    """Return the letters and digits of a text, without case and accents, each with its index."""
    return [(part, i) for i, char in enumerate(text) for part in _parts(char)]


@lru_cache(maxsize=65536)
def _parts(char: str) -> str:
    folded = unicodedata.normalize("NFKD", char).casefold().replace("ı", "i")
    return "".join(part for part in folded if part.isalnum() or _is_letter_mark(part))


def _is_letter_mark(char: str) -> bool:
    is_mark = unicodedata.category(char)[0] == "M"
    return is_mark and unicodedata.combining(char) not in _ACCENTS and not _IGNORABLE.match(char)


def fit(document: Document, rows: Sequence[Row], optional: Collection[int] = (), missing: bool = False) -> Fit:
    """Return the entities of a document for rows in time order; the rows are not changed.

    Args:
        optional: numbers of rows that were rejected for another reason; the document may contain their text.
        missing: there may be further rows, so text that is in no row is not an error.
    """
    if document.error is not None:
        return Fit(problems={number: f"{document.place}: {document.error}" for number in range(len(rows))})
    return _Overlay(document, rows, optional, missing).fit()


class _Overlay:
    """The alignment of a document with rows: the position of each row's letters in the document."""

    def __init__(self, document: Document, rows: Sequence[Row], optional: Collection[int], missing: bool):
        self.document, self.rows, self.optional = document, rows, optional
        there = letters(document.text)
        self.text = "".join(part for part, _ in there)
        self.places = [at for _, at in there]
        self.here = [letters(row.text or "") for row in rows]
        self.keys = ["".join(part for part, _ in key) for key in self.here]
        self.starts: Dict[int, int] = {}
        self.unsure: Set[int] = set()  # rows whose text occurs at two places
        self.elsewhere: Set[int] = set()  # rows of channels that are not in the document
        if not self._fits_as_a_whole() and len(rows) > 1:
            self._find()
            self._drop_overlaps()
        unplaced = [i for i in optional if i not in self.starts]
        self.missing = missing or bool(unplaced) or any(row.text is None for row in rows)

    def fit(self) -> Fit:
        found = Fit()
        self._name_gaps(found)
        owner = [NOWHERE] * len(self.text)
        for number, start in self.starts.items():
            owner[start : start + len(self.keys[number])] = [number] * len(self.keys[number])
        entities: Dict[int, List[Span]] = {
            i: [] for i, row in enumerate(self.rows) if i in self.starts or (not self.keys[i] and row.text is not None)
        }
        for start, end, kind in self.document.spans:
            first, last = bisect_left(self.places, start), bisect_left(self.places, end) - 1
            touched = self._touched(start, end, owner)
            reason = "holds no letter" if last < first else "reaches from one turn into the next"
            for number in touched - {NOWHERE}:
                if last < first or len(touched) > 1:
                    where = f"{self.document.place}: entity {self.document.text[start:end]!r}"
                    found.problems.setdefault(number, f"{where} {reason}")
                else:
                    key, offset = self.here[number], self.starts[number]
                    entities[number].append((key[first - offset][1], key[last - offset][1] + 1, kind))
        for start, end, reason in self.document.refused:
            for number in self._touched(start, end, owner) - {NOWHERE}:
                found.problems.setdefault(number, reason)
        for number, row in enumerate(self.rows):
            if row.entities is not None:
                found.problems.setdefault(number, f"{self.document.place}: entities are given twice")
        found.entities = {i: spans for i, spans in entities.items() if i not in found.problems}
        return found

    def _touched(self, start: int, end: int, owner: Sequence[int]) -> Set[int]:
        """Return the rows that a span of the document touches; for a span without a letter, the row before it."""
        first, after = bisect_left(self.places, start), bisect_left(self.places, end)
        if first == after:
            first = min(max(first - 1, 0), max(len(owner) - 1, 0))
            after = first + 1
        return set(owner[first:after]) or ({0} if self.rows else set())

    def _fits_as_a_whole(self) -> bool:
        """Whether the document is all rows (by time, by file, or channel by channel), or those of one channel."""
        by_time = list(range(len(self.rows)))
        by_file = sorted(by_time, key=lambda i: (self.rows[i].place.file, self.rows[i].place.line))
        channels = [row.channel or "" for row in self.rows]
        by_channel = sorted(by_time, key=lambda i: channels[i])
        orders = [by_time, by_file, by_channel]
        orders += [[i for i in by_time if channels[i] == name] for name in sorted(set(channels))]
        for order in orders:
            if "".join(self.keys[i] for i in order) == self.text:
                at = 0
                for i in order:
                    self.starts[i] = at
                    at += len(self.keys[i])
                self.elsewhere = set(by_time) - set(order)
                return True
        return False

    def _find(self) -> None:
        """Find the rows in the letters of the document, as in patience diff."""
        todo = [(0, len(self.rows), 0, len(self.text))]  # (first row, last row, first letter, last letter)
        while todo:
            row, last_row, at, end = todo.pop()
            anchors = self._anchors(range(row, last_row), at, end)
            for number, start in anchors:
                self.starts[number] = start
                todo.append((row, number, at, start))
                row, at = number + 1, start + len(self.keys[number])
            if anchors:
                todo.append((row, last_row, at, end))
            else:
                todo.extend(self._from_both_ends(row, last_row, at, end))

    def _anchors(self, rows: range, at: int, end: int) -> List[Tuple[int, int]]:
        """Return rows whose text occurs once in these rows and once in these letters, in the order of both."""
        counts = Counter(self.keys[i] for i in rows)
        places = []
        for i in rows:
            if self.keys[i] and counts[self.keys[i]] == 1:
                found = self._occurrences(self.keys[i], at, end)
                if len(found) == 1:
                    places.append((i, found[0]))
        chain = [places[k] for k in _increasing([start for _, start in places])]
        return [
            pair
            for k, pair in enumerate(chain)
            if k == 0 or chain[k - 1][1] + len(self.keys[chain[k - 1][0]]) <= pair[1]
        ]

    def _occurrences(self, key: str, at: int, end: int) -> List[int]:
        """Return up to two positions at which a row's letters occur as complete words."""
        found: List[int] = []
        while len(found) < 2:
            at = self.text.find(key, at, end)
            if at < 0:
                break
            if self._is_border(at) and self._is_border(at + len(key)):
                found.append(at)
            at += 1
        return found

    def _is_border(self, at: int) -> bool:
        """Whether a space precedes a letter of the document, or the text begins or ends there."""
        if at in (0, len(self.places)):
            return True
        return any(char.isspace() for char in self.document.text[self.places[at - 1] + 1 : self.places[at]])

    def _from_both_ends(self, row: int, last_row: int, at: int, end: int) -> List[Tuple[int, int, int, int]]:
        """Match rows forwards from the first and backwards from the last; return what is left to search between."""
        whole = (row, last_row, at, end)
        forward: Dict[int, int] = {}
        backward: Dict[int, int] = {}
        while row < last_row and self._stands(row, at, end):
            forward[row] = at
            at += len(self.keys[row])
            row += 1
        first, before = whole[0], whole[2]
        while first < last_row and self._stands(last_row - 1, end - len(self.keys[last_row - 1]), end, before):
            last_row -= 1
            end -= len(self.keys[last_row])
            backward[last_row] = end
        for number in {*forward, *backward}:
            one, other = forward.get(number, NOWHERE), backward.get(number, NOWHERE)
            if one != other and NOWHERE not in (one, other):
                self.unsure.add(number)
            else:
                self.starts[number] = max(one, other)
        rest = (row, last_row, at, end)
        return [rest] if rest != whole and row < last_row and at < end else []

    def _stands(self, number: int, at: int, end: int, begin: int = 0) -> bool:
        key = self.keys[number]
        if at < begin or at + len(key) > end or not self.text.startswith(key, at):
            return False
        return not key or (self._is_border(at) and self._is_border(at + len(key)))

    def _drop_overlaps(self) -> None:
        """Mark rows that would share letters as ambiguous."""
        done, before = 0, NOWHERE
        for number in sorted(self.starts):
            if self.starts[number] < done:
                self.unsure |= {number, before}
            done, before = max(done, self.starts[number] + len(self.keys[number])), number
        for number in self.unsure:
            self.starts.pop(number, None)

    def _name_gaps(self, found: Fit) -> None:
        """Report the rows that were not found, and the text that is in no row."""
        placed = sorted((start, number) for number, start in self.starts.items() if self.keys[number])
        at, before = 0, NOWHERE
        unplaced = [i for i in range(len(self.rows)) if i not in self.starts and self.keys[i]]
        unplaced = [i for i in unplaced if i not in self.elsewhere]
        for start, number in [*placed, (len(self.text), len(self.rows))]:
            here = [i for i in unplaced if before < i < number]
            for i in here:
                found.problems[i] = self._difference(here, i, at, start)
            if at < start and not here and not self.missing:
                self._name_surplus(found, at, start, before, number)
            at, before = start + len(self.keys[number]) if number < len(self.rows) else start, number
        for i in unplaced:
            found.problems.setdefault(i, self._difference([i], i, 0, len(self.text)))

    def _difference(self, numbers: Sequence[int], number: int, at: int, end: int) -> str:
        if number in self.unsure:
            return f"{self.document.place}: its text stands there at more than one place"
        mine = "".join(self.keys[i] for i in numbers)
        there = self.text[at:end]
        same = next((k for k, (a, b) in enumerate(zip(mine, there)) if a != b), min(len(mine), len(there)))
        return (
            f"{self.document.place}: its text is not the transcript's: they differ at "
            f"{self._excerpt(at + same) or 'the end'!r}"
        )

    def _excerpt(self, letter: int) -> str:
        text = self.document.text
        at = self.places[letter] if letter < len(self.places) else len(text)
        word = max(text.rfind(space, 0, at) for space in " \n") + 1
        return " ".join(text[word : at + 30].split())

    def _name_surplus(self, found: Fit, at: int, end: int, before: int, after: int) -> None:
        """Report text between two rows that is in neither; if it is on the line of a row, that row is at fault."""
        left = before if at > 0 and before >= 0 and not self._line_ends(at) else NOWHERE
        right = after if end < len(self.text) and not self._line_ends(end) else NOWHERE
        excerpt = self._excerpt(at)
        for number in {left, right} - {NOWHERE}:
            found.problems.setdefault(
                number, f"{self.document.place}: its text is not the transcript's: they differ at {excerpt!r}"
            )
        if (left, right) == (NOWHERE, NOWHERE):
            found.surplus.append(f"{self.document.place}: no row has this part of its text: {excerpt!r}")

    def _line_ends(self, at: int) -> bool:
        return "\n" in self.document.text[self.places[at - 1] + 1 : self.places[at]]


def _increasing(values: Sequence[int]) -> List[int]:
    """Numbers of a longest strictly increasing subsequence.

    >>> _increasing([3, 0, 1, 5, 4])
    [1, 2, 4]
    """
    tails: List[int] = []
    last: List[int] = []
    previous: List[int] = []
    for number, value in enumerate(values):
        k = bisect_left(tails, value)
        tails[k : k + 1], last[k : k + 1] = [value], [number]
        previous.append(last[k - 1] if k else -1)
    chain, number = [], last[-1] if last else -1
    while number >= 0:
        chain.append(number)
        number = previous[number]
    return chain[::-1]

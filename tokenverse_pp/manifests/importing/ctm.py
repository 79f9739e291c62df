"""CTM: NIST's word time marks, ``recording channel start duration word [confidence [type [speaker]]]``.

lhotse reads CTM as alignments of turns that are there already (`SupervisionSet.with_alignment_from_ctm`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple, Union

from tokenverse_pp.manifests.importing.notation import OPTION, REFUSE, RESOLVE, read_word
from tokenverse_pp.manifests.importing.rows import BadRow, Place, Rejected, seconds, shown
from tokenverse_pp.manifests.importing.textfiles import expect, files_of, records_of, rejected
from tokenverse_pp.manifests.importing.words import Word
from tokenverse_pp.manifests.lines import fields, number_of

FORM = "recording channel start duration word [confidence [type [speaker]]]"
ALT_BEGIN, ALT, ALT_END = "<ALT_BEGIN>", "<ALT>", "<ALT_END>"
NO_CONFIDENCE = ("NA", "<NA>", "N/A", "-", "*")


def read_ctm(path: Path, notation: str = REFUSE) -> Iterator[Union[Word, Rejected]]:
    """The words of CTM files. Lines that begin with ``;;`` are comments.

    Alternatives stand between lines with the words ``<ALT_BEGIN>``, ``<ALT>`` and ``<ALT_END>``. A word that cannot be
    read but whose time is known has its ``problem``: then its turn cannot be used.

    Args:
        notation: see `tokenverse_pp.manifests.importing.notation`.
    """
    for file in files_of(path, (".ctm",)):
        open_groups: Dict[Tuple[str, str], _Alternatives] = {}
        for place, line in records_of(file, ";;", recording_at=0):
            if isinstance(line, Rejected):
                yield line
                continue
            try:
                yield from _items(place, line, notation, open_groups)
            except BadRow as error:
                yield rejected(place, error, line, recording_at=0)
        for group in open_groups.values():
            yield from group.unfinished()


@dataclass
class _Alternatives:
    """The words of a channel since ``<ALT_BEGIN>``, the first alternative apart from the others."""

    place: Place
    first: List[Word] = field(default_factory=list)
    others: List[Word] = field(default_factory=list)
    is_first: bool = True
    levels: int = 1
    nested: bool = False

    def add(self, word: Word) -> None:
        """Take a word into the alternative that is open."""
        (self.first if self.is_first else self.others).append(word)

    def finished(self, notation: str) -> Iterator[Word]:
        """The words that count, or all of them with the reason why they cannot be used."""
        if self.nested:
            yield from self._spoilt(f"alternatives within the alternatives that begin in line {self.place.line}")
        elif notation == RESOLVE:
            yield from self.first
        else:
            # Without times for the marks there is no way to keep them among the words.
            yield from self._spoilt(
                f"alternatives (<ALT_BEGIN> in line {self.place.line}): {OPTION} {RESOLVE} takes the first"
            )

    def unfinished(self) -> Iterator[Word]:
        """All words, with the reason why they cannot be used."""
        return self._spoilt(f"<ALT_BEGIN> in line {self.place.line} without <ALT_END>")

    def _spoilt(self, problem: str) -> Iterator[Word]:
        for word in [*self.first, *self.others]:
            word.problem = word.problem or problem
            yield word


def _items(place: Place, line: str, notation: str, open_groups: Dict[Tuple[str, str], _Alternatives]) -> Iterator[Word]:
    cells = fields(line)
    expect(len(cells) >= 5, FORM, line)
    key, mark = (cells[0], cells[1]), cells[4].upper()
    group = open_groups.get(key)
    if mark == ALT_BEGIN:
        if group is None:
            open_groups[key] = _Alternatives(place)
        else:
            group.levels, group.nested = group.levels + 1, True
    elif mark in (ALT, ALT_END):
        if group is None:
            raise BadRow(f"{mark} without {ALT_BEGIN}")
        group.levels -= mark == ALT_END
        group.is_first = False
        if not group.levels:
            del open_groups[key]
            yield from group.finished(notation)
    else:
        word = _word(place, line, cells, notation)
        if word is not None and group is not None:
            group.add(word)
        elif word is not None:
            yield word


def _word(place: Place, line: str, cells: List[str], notation: str) -> Optional[Word]:
    """A word; None for a mark that is left out."""
    start = seconds(cells[2], "start")
    word = Word(place, cells[0], cells[1], start, start, cells[4])
    try:
        word.end = start + seconds(cells[3], "duration")
        expect(len(cells) <= 8, FORM, line)
        if len(cells) > 5 and number_of(cells[5]) is None and cells[5].upper() not in NO_CONFIDENCE:
            raise BadRow(f"expected a confidence after the word, found {shown(cells[5])}: a word is one field")
        text = read_word(cells[4], cells[6] if len(cells) > 6 else None, notation)
    except BadRow as error:
        word.problem = str(error)
        return word
    if text is None:
        return None
    word.text = text
    return word

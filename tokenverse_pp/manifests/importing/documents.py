"""Entity files beside a transcript: their text is laid over the transcript's, letter by letter."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

from tokenverse_pp.manifests.importing.rows import BadRow, Place, Row, Span

Key = List[Tuple[str, int]]


@dataclass
class Document:
    """A text with entities (spans of its characters). ``error`` says what is wrong with it, if anything is."""

    place: Place
    name: Optional[str]
    text: str
    spans: List[Span]
    error: Optional[str] = None


def letters(text: str) -> Key:
    """Letters and digits, without case and accents, each with its place in the text."""
    found: Key = []
    for i, char in enumerate(text):
        for part in unicodedata.normalize("NFKD", char).casefold():
            if part.isalnum():
                found.append((part, i))
    return found


def lay_over(document: Document, rows: Sequence[Row]) -> None:
    """Give the rows (in time order) the entities of a document that has the text of all of them.

    Letters and digits must be the same; case, accents, punctuation and spaces may differ. A row without an entity
    gets an empty list: the document was annotated.

    Raises:
        BadRow: where the texts differ, an entity reaches from one row into the next, or a row has entities already.
    """
    if document.error is not None:
        raise BadRow(f"{document.place}: {document.error}")
    if any(row.entities is not None for row in rows):
        raise BadRow(f"{document.place}: entities are given twice")
    there = letters(document.text)
    here = [(char, row, i) for row in rows for char, i in letters(row.text or "")]
    if [char for char, _ in there] != [char for char, _, _ in here]:
        same = next((k for k, (a, b) in enumerate(zip(there, here)) if a[0] != b[0]), min(len(there), len(here)))
        mine = there[same][1] if same < len(there) else len(document.text)
        word = max(document.text.rfind(space, 0, mine) for space in " \n") + 1
        excerpt = " ".join(document.text[word : mine + 30].split())
        raise BadRow(f"{document.place}: its text is not the transcript's: they differ at {excerpt or 'the end'!r}")
    places = [at for _, at in there]
    found: Dict[int, List[Span]] = {id(row): [] for row in rows}
    for start, end, kind in document.spans:
        inside = range(bisect_left(places, start), bisect_left(places, end))
        if not inside:
            raise BadRow(f"{document.place}: entity {document.text[start:end]!r} holds no letter")
        (_, row, first), (_, last_row, last) = here[inside[0]], here[inside[-1]]
        if row is not last_row:
            raise BadRow(f"{document.place}: entity {document.text[start:end]!r} reaches from one turn into the next")
        found[id(row)].append((first, last + 1, kind))
    for row in rows:
        row.entities = found[id(row)]

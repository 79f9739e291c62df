"""Which entity document belongs to which rows."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, Optional, Sequence, Union

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.importing.brat import find_brat, read_brat
from tokenverse_pp.manifests.importing.conll import read_conll
from tokenverse_pp.manifests.importing.documents import Document, lay_over
from tokenverse_pp.manifests.importing.rows import BadRow, Place, Rejected, Row, RowOrRejected


class NamedDocuments:
    """Documents by name: that of a row's id, of its recording, or of its audio file.

    BRAT documents are read when they are asked for; CoNLL sentences are all in memory.
    """

    def __init__(self, documents: Dict[str, Union[Path, Document]]):
        self._documents = documents

    def attach(self, rows: Sequence[Row]) -> None:
        """Give the rows of one recording, in order of time, their entities.

        Raises:
            BadRow: where a document does not fit.
        """
        for row in rows:
            document = self._take(row.id)
            if document is not None:
                lay_over(document, [row])
        names = {row.recording for row in rows} | {Path(row.audio).stem for row in rows if row.audio}
        for name in sorted(name for name in names if name):
            document = self._take(name)
            if document is not None:
                lay_over(document, rows)

    def _take(self, name: str) -> Optional[Document]:
        found = self._documents.pop(name, None)
        return read_brat(found) if isinstance(found, Path) else found

    def unused(self) -> Iterator[Rejected]:
        """The documents that no row asked for."""
        for name, found in self._documents.items():
            place = Place(str(found), 1) if isinstance(found, Path) else found.place
            yield Rejected(place, f"no row and no recording has the name {name!r}")


class SentencesInOrder:
    """CoNLL sentences without names: one a row, in the order of the rows."""

    def __init__(self, documents: Iterator[Document]):
        self._documents = documents

    def attach(self, item: RowOrRejected) -> RowOrRejected:
        """The next row with the next sentence's entities; rejected where they do not fit."""
        document = next(self._documents, None)
        if isinstance(item, Rejected):
            return item
        if document is None:
            return Rejected(item.place, "--conll: no sentence is left for it", item)
        try:
            if document.name is not None:
                raise BadRow(f"{document.place}: expected a sentence without a name, like those before it")
            lay_over(document, [item])
        except BadRow as error:
            return Rejected(item.place, str(error), item)
        return item

    def unused(self) -> Iterator[Rejected]:
        """The sentences that are left."""
        for document in self._documents:
            yield Rejected(document.place, "no row is left for this sentence")


def open_documents(brat: Optional[Path], conll: Optional[Path]) -> Union[NamedDocuments, SentencesInOrder, None]:
    """The documents of --brat or --conll.

    Raises:
        UserError: where both are given, or a CoNLL file names a sentence twice.
    """
    if brat is not None and conll is not None:
        raise UserError("--brat and --conll: expected one of them")
    if brat is not None:
        return NamedDocuments(dict(find_brat(brat)))
    if conll is None:
        return None
    first: Optional[Document] = next(read_conll(conll), None)
    if first is None:
        raise UserError(f"{conll}: expected sentences (a token and its tag a line), found none")
    if first.name is None:
        return SentencesInOrder(read_conll(conll))
    return NamedDocuments(_by_name(read_conll(conll)))


def _by_name(documents: Iterator[Document]) -> Dict[str, Union[Path, Document]]:
    found: Dict[str, Union[Path, Document]] = {}
    for document in documents:
        if document.name is None or document.name in found:
            raise UserError(f"{document.place}: expected a sentence with a name of its own (`# id = NAME`)")
        found[document.name] = document
    return found

"""Match entity documents (BRAT, CoNLL) with the rows of a transcript."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, Generic, Iterable, Iterator, List, Optional, Sequence, Set, Tuple, TypeVar, Union

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.importing.brat_conll import REFUSE, find_brat, read_brat, read_conll
from tokenverse_pp.data.importing.documents import Document, fit, letters
from tokenverse_pp.data.importing.rows import Place, Rejected, Row, RowOrRejected, composed, shown

T = TypeVar("T")
WIDTHS = (8, 64, 512)  # how far rows and sentences are searched for the next pair that fits
LONG = 15  # minimum letters for one matching pair to resynchronise the texts; shorter texts need two pairs


@dataclass
class NamedDocuments:
    """Documents by name, which is that of a row's id, recording or audio file.

    BRAT documents are read on demand; CoNLL sentences are held in memory. ``nameless`` sentences are rejected.
    """

    documents: Dict[str, Union[Path, Document]]
    discontinuous: str = REFUSE
    nameless: Sequence[Rejected] = ()
    known: Set[str] = field(default_factory=set)  # names of rows that have documents
    unknown_rows: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def note(self, item: RowOrRejected) -> None:
        """Record the names of a row, even if it is rejected, so that its documents count as used."""
        row = item.row if isinstance(item, Rejected) else item
        if row is not None:
            self.known.update(name for name in (composed(row.id), *_recording_names([row])) if name in self.documents)
        elif isinstance(item, Rejected) and not item.harmless:
            self.unknown_rows += 1

    def attach(self, rows: Sequence[Row], rejected: Sequence[Row]) -> Tuple[Dict[int, str], List[Rejected]]:
        """Set the entities of the rows of one recording, given in time order.

        Args:
            rejected: further rows of the recording, whose text the document may contain.

        Returns:
            Why rows have no entities, by their number, and the parts of documents that are in no row.
        """
        problems: Dict[int, str] = {}
        surplus: List[Rejected] = []
        names = _recording_names([*rows, *rejected])
        for number, row in enumerate(rows):
            name = composed(row.id)
            document = self._take(name)
            if document is None:
                continue
            found = fit(document, [row])
            problem = [*found.problems.values(), *found.surplus]
            if problem and name in names and self._is_of_all(document, [*rows, *rejected]):
                self.documents[name] = document
            elif problem:
                problems[number] = problem[0]
            else:
                row.entities = found.entities.get(0)
        both = sorted([*rows, *rejected], key=lambda row: row.start or 0.0)
        numbers = {id(row): number for number, row in enumerate(rows)}
        optional = [k for k, row in enumerate(both) if id(row) not in numbers]
        for document in filter(None, map(self._take, sorted(names))):
            found = fit(document, both, optional, missing=self.unknown_rows > 0)
            for k, row in enumerate(both):
                if id(row) in numbers and k in found.problems:
                    problems.setdefault(numbers[id(row)], found.problems[k])
                elif id(row) in numbers and k in found.entities:
                    row.entities = found.entities[k]
            surplus += [Rejected(document.place, reason) for reason in found.surplus]
        return problems, surplus

    def _is_of_all(self, document: Document, rows: Sequence[Row]) -> bool:
        """Whether a document belongs to the whole recording, if a row and the recording have its name."""
        ordered = sorted(rows, key=lambda row: row.start or 0.0)
        return len(rows) > 1 and 2 * len(fit(document, ordered, missing=True).entities) >= len(rows)

    def _take(self, name: str) -> Optional[Document]:
        found = self.documents.pop(name, None)
        self.known.discard(name)
        return read_brat(found, self.discontinuous, self.notes) if isinstance(found, Path) else found

    def unused(self) -> Iterator[Rejected]:
        """Yield the documents without a row."""
        yield from self.nameless
        told = "no row that could be read and no recording" if self.unknown_rows else "no row and no recording"
        for name, found in self.documents.items():
            if name not in self.known:
                place = Place(str(found), 1) if isinstance(found, Path) else found.place
                yield Rejected(place, f"{told} has the name {name!r}")


def _recording_names(rows: Sequence[Row]) -> Set[str]:
    names = {row.recording for row in rows} | {Path(row.audio).stem for row in rows if row.audio}
    return {composed(name) for name in names if name}


class SentencesInOrder:
    """CoNLL sentences without names: one per row, in the order of the rows.

    Where a row and its sentence differ, both streams are searched for the next matching pair, so that a missing or
    additional sentence does not affect the other rows.
    """

    def __init__(self, documents: Iterator[Document]):
        self._sentences = _Ahead(documents, lambda document: _key(document.text or None))
        self._surplus: List[Rejected] = []

    def attach(self, items: Iterable[RowOrRejected]) -> Iterator[RowOrRejected]:
        """Yield the rows with the entities of their sentences; a row that does not fit its sentence is rejected."""
        rows: _Ahead[RowOrRejected] = _Ahead(items, _key_of_row)
        sentences = self._sentences
        while rows.fill(1):
            key = rows.key(0)
            if sentences.fill(1) and key is not None and key == sentences.key(0):
                yield _given(rows.pop(), sentences.pop())
            else:
                skipped, passed = _next_fit(rows, sentences)
                yield from self._unfitting(
                    [rows.pop() for _ in range(skipped)], [sentences.pop() for _ in range(passed)]
                )

    def _unfitting(self, rows: List[RowOrRejected], sentences: List[Document]) -> Iterator[RowOrRejected]:
        """Rows and sentences between two pairs that fit."""
        if len(rows) == len(sentences):
            yield from map(_given, rows, sentences)
            return
        for row in rows:
            if isinstance(row, Rejected) or row.text is None:
                yield row
            else:
                yield Rejected(row.place, self._expected(sentences), row)
        # A row that could not be read also has a sentence, which is not reported separately.
        unread = sum(isinstance(row, Rejected) and _key_of_row(row) is None for row in rows)
        for sentence in sentences[unread:]:
            reason = sentence.error or f"expected the next row's sentence, found {shown(sentence.text.strip())}"
            self._surplus.append(Rejected(sentence.place, reason))

    def _expected(self, sentences: Sequence[Document]) -> str:
        following = sentences[0] if sentences else (self._sentences.item(0) if self._sentences.fill(1) else None)
        if following is None:
            return "--conll: no sentence is left for it"
        found = shown(following.text.strip()) if following.text else "one that cannot be read"
        return f"--conll: expected the sentence of this row, found {found} ({following.place})"

    def unused(self) -> Iterator[Rejected]:
        """The sentences without a row."""
        yield from self._surplus
        while self._sentences.fill(1):
            yield Rejected(self._sentences.pop().place, "no row is left for this sentence")


class _Ahead(Generic[T]):
    """The items of an iterator with their keys, some of them read ahead."""

    def __init__(self, items: Iterable[T], key: Callable[[T], Optional[str]]):
        self._items = iter(items)
        self._key = key
        self._ahead: deque[Tuple[Optional[str], T]] = deque()

    def fill(self, count: int) -> int:
        """Read ahead up to ``count`` items; return the number available."""
        while len(self._ahead) < count:
            item = next(self._items, None)
            if item is None:
                break
            self._ahead.append((self._key(item), item))
        return min(len(self._ahead), count)

    def key(self, number: int) -> Optional[str]:
        return self._ahead[number][0]

    def item(self, number: int) -> T:
        return self._ahead[number][1]

    def pop(self) -> T:
        return self._ahead.popleft()[1]


def _key(text: Optional[str]) -> Optional[str]:
    return None if text is None else "".join(part for part, _ in letters(text))


def _key_of_row(item: RowOrRejected) -> Optional[str]:
    row = item.row if isinstance(item, Rejected) else item
    return _key(row.text) if row is not None else None


def _given(item: RowOrRejected, sentence: Document) -> RowOrRejected:
    """Return a row with the entities of its sentence; rejected if they do not fit."""
    if isinstance(item, Rejected) or item.text is None:
        return item
    found = fit(sentence, [item])
    problems = [*found.problems.values(), *found.surplus]
    if problems:
        return Rejected(item.place, problems[0], item)
    item.entities = found.entities.get(0)
    return item


def _next_fit(rows: _Ahead[RowOrRejected], sentences: _Ahead[Document]) -> Tuple[int, int]:
    """The numbers of rows and sentences to skip until a row matches its sentence again."""
    count = others = 0
    best: Optional[Tuple[int, int, int]] = None  # items skipped, matching pairs after them (negative), rows skipped
    for width in WIDTHS:
        before = (count, others)
        count, others = rows.fill(width), sentences.fill(width)
        places: Dict[str, List[int]] = {}
        for b in range(others):
            key = sentences.key(b)
            if key is not None:
                places.setdefault(key, []).append(b)
        best = None
        for a in range(count):
            for b in places.get(rows.key(a) or "", ()) if rows.key(a) is not None else ():
                if best is not None and a + b > best[0]:
                    break
                pairs = _pairs(rows, sentences, a, b)
                if pairs > 1 or a == b or len(rows.key(a) or "") >= LONG:
                    found = (a + b, -pairs, a)
                    best = found if best is None else min(best, found)
        if best is not None and best[0] <= width:
            return best[2], best[0] - best[2]
        if (count, others) == before:
            break
    if best is not None:
        return best[2], best[0] - best[2]
    # Nothing fits: pair them row by row, so that each row's difference is reported.
    both = min(count, others)
    return (both, both) if both else (count, others)


def _pairs(rows: _Ahead[RowOrRejected], sentences: _Ahead[Document], a: int, b: int) -> int:
    """Count consecutive pairs with equal letters from row ``a`` and sentence ``b``, up to 4; 4 if both end together."""
    pairs = 0
    while pairs < 4:
        has_row, has_sentence = rows.fill(a + 1) > a, sentences.fill(b + 1) > b
        if not has_row and not has_sentence:
            return 4
        if not has_row or not has_sentence:
            return pairs
        one, other = rows.key(a), sentences.key(b)
        if one is not None and other is not None and one != other:
            return pairs
        pairs, a, b = pairs + 1, a + 1, b + 1
    return pairs


def open_documents(
    brat: Optional[Path], conll: Optional[Path], discontinuous: str = REFUSE
) -> Union[NamedDocuments, SentencesInOrder, None]:
    """Open the documents of --brat or --conll (raises UserError if both are given, or there is no document).

    CoNLL sentences are matched by name unless most of them lack one.
    """
    if brat is not None and conll is not None:
        raise UserError("--brat and --conll: expected one of them")
    if brat is not None:
        return NamedDocuments(find_brat(brat), discontinuous)
    if conll is None:
        return None
    names = Counter(document.name is not None for document in read_conll(conll))
    if not names:
        raise UserError(f"{conll}: expected sentences (a token and its tag a line), found none")
    if names[False] > names[True]:
        return SentencesInOrder(read_conll(conll))
    return _by_name(read_conll(conll))


def _by_name(documents: Iterator[Document]) -> NamedDocuments:
    found: Dict[str, Union[Path, Document]] = {}
    nameless = []
    for document in documents:
        if document.name is None:
            reason = document.error or "expected a sentence with a name, as most have (`# id = NAME`)"
            nameless.append(Rejected(document.place, reason))
            continue
        first = found.setdefault(composed(document.name), document)
        if isinstance(first, Document) and (first.text, first.spans) != (document.text, document.spans):
            reason = f"another sentence, {first.place}, has the name {document.name!r} already"
            first.error = first.error or f"another sentence, {document.place}, has the name {document.name!r} as well"
            nameless.append(Rejected(document.place, reason))
    return NamedDocuments(found, nameless=nameless)

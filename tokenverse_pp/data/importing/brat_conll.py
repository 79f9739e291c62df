"""Entity documents in BRAT standoff format (NAME.txt and NAME.ann) and in CoNLL format.

BRAT: offsets count characters (code points) of the .txt file. Each entity line repeats its words, so wrong offsets are
detected. Line ends and a byte order mark may have changed since the annotation.

CoNLL: one token per line with its BIO tag in the last column, and an empty line after each sentence. Columns are
separated by tabs in files where most token lines contain one, otherwise by spaces and tabs. A no-break space is part
of a token.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.importing.documents import Document
from tokenverse_pp.data.importing.fields import bio_spans
from tokenverse_pp.data.importing.rows import BadRow, Place, composed, expect, files_of, lines_of, shown
from tokenverse_pp.data.lines import raw_lines, text_of

FORM = "T1<tab>TYPE start end<tab>words"
REFUSE, COVER, DROP = "refuse", "cover", "drop"
_OTHER_LINE = re.compile(r"[REAMN]\S*\t|[#*]")  # relations, events, attributes, normalisations, notes, equivalences
_BOM = "\ufeff"


class BratEntity(NamedTuple):
    """A ``T`` line; ``pieces`` are pairs of first and last (exclusive) character."""

    place: Place
    id: str
    type: str
    pieces: Tuple[Tuple[int, int], ...]
    words: str


def find_brat(folder: Path) -> Dict[str, Union[Path, Document]]:
    """Return the .ann files below a folder by name (raises UserError if there is none).

    Two files of one name are both invalid. A .txt without .ann was not annotated.
    """
    found: Dict[str, Union[Path, Document]] = {}
    paths: Dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        # macOS stores metadata of a file in ._NAME.
        if path.suffix.lower() != ".ann" or path.name.startswith("._") or not path.is_file():
            continue
        name = composed(path.stem)
        if name in paths:
            error = f"{paths[name]} has the same name; expected one document of a name"
            found[name] = Document(Place(str(path), 1), name, "", [], error)
        else:
            found[name] = paths[name] = path
    if not found:
        raise UserError(f"{folder}: expected BRAT documents (NAME.txt with NAME.ann), found no .ann")
    return found


def read_brat(path: Path, discontinuous: str = REFUSE, notes: Optional[Counter[str]] = None) -> Document:
    """Read one document. Only ``T`` lines are entities; relations, events, attributes and notes are skipped.

    Args:
        discontinuous: `REFUSE`, `COVER` or `DROP`. Pieces without a letter or digit between them count as one piece
            (brat splits an entity at a line end).
        notes: counter of the entities that ``cover`` and ``drop`` changed.
    """
    at = Place(str(path), 1)
    try:
        text = _text(path)
        entities = []
        for place, line in lines_of(path):
            at = place
            if not isinstance(line, str):
                raise BadRow(line.reason)
            if line.startswith("T"):
                entities.append(_entity(place, line))
            elif not _OTHER_LINE.match(line):
                raise BadRow(
                    f"expected `{FORM}`, or a line that begins with R, E, A, M, N, # or *; found {shown(line)}"
                )
        text, wrong = _as_counted(text, entities)
        if wrong is not None:
            at = wrong.place
            raise BadRow(_why_wrong(text, wrong, entities))
    except UserError as error:
        return Document(at, path.stem, "", [], str(error))
    document = Document(Place(str(path), 1), path.stem, text, [])
    for entity in _without_repeats(entities, document):
        _take(entity, document, discontinuous, notes if notes is not None else Counter())
    return document


def _text(path: Path) -> str:
    """Return the text of an .ann file's document. Line ends and a byte order mark are kept, as offsets count them."""
    files = [path.with_suffix(ending) for ending in (".txt", ".TXT", ".Txt")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise BadRow(f"{files[0]}: no such file")
    for number, line in raw_lines(file):
        text_of(line, f"{file}, line {number}")
    return file.read_bytes().decode("utf-8")


def _entity(place: Place, line: str) -> BratEntity:
    cells = line.split("\t", 2)
    expect(len(cells) == 3, FORM, line)
    kind, _, numbers = cells[1].strip(" ").partition(" ")
    pieces = []
    for piece in numbers.split(";"):
        bounds = piece.split()
        expect(len(bounds) == 2 and all(b.isascii() and b.isdigit() and len(b) < 10 for b in bounds), FORM, line)
        start, end = int(bounds[0]), int(bounds[1])
        expect(start < end, FORM + " with start < end", line)
        pieces.append((start, end))
    pieces.sort()
    expect(all(a[1] <= b[0] for a, b in zip(pieces, pieces[1:])), FORM + " with pieces that do not overlap", line)
    return BratEntity(place, cells[0], kind, tuple(pieces), cells[2])


def _words(text: str) -> str:
    return " ".join(composed(text).split())


def _fits(entity: BratEntity, piece_of: Callable[[int, int], str]) -> bool:
    return _words(" ".join(piece_of(*piece) for piece in entity.pieces)) == _words(entity.words)


def _as_counted(text: str, entities: List[BratEntity]) -> Tuple[str, Optional[BratEntity]]:
    """Return the variant of the text that fits the offsets, and None; or the text and the first entity that differs."""
    bare = (text[1:] if text.startswith(_BOM) else text).replace("\r\n", "\n")
    ways = [mark + bare.replace("\n", newline) for mark in ("", _BOM) for newline in ("\n", "\r\n")]
    first: Optional[BratEntity] = None
    for way in dict.fromkeys([text, *ways]):  # unchanged, then with LF or CRLF, without and with a BOM
        wrong = [entity for entity in entities if not _fits(entity, partial(_piece, way))]
        if not wrong:
            return way, None
        first = first or wrong[0]  # of the unchanged text
    return text, first


def _piece(text: str, start: int, end: int) -> str:
    return text[start:end]


def _why_wrong(text: str, wrong: BratEntity, entities: List[BratEntity]) -> str:
    utf16, utf8 = text.encode("utf-16-le"), text.encode("utf-8")
    ways: Dict[str, Callable[[int, int], str]] = {
        "UTF-16 code units": lambda start, end: utf16[2 * start : 2 * end].decode("utf-16-le", "replace"),
        "bytes": lambda start, end: utf8[start:end].decode("utf-8", "replace"),
    }
    for unit, piece_of in ways.items():
        if all(_fits(entity, piece_of) for entity in entities):
            return f"its offsets count {unit}; expected characters (code points), as brat counts"
    if wrong.pieces[-1][1] > len(text):
        return f"character {wrong.pieces[-1][1]} lies beyond the end of the text of {len(text)} characters"
    found = " ".join(text[start:end] for start, end in wrong.pieces)
    places = ", ".join(f"{start} to {end}" for start, end in wrong.pieces)
    return f"characters {places} are {found[:60]!r}, not {wrong.words[:60]!r}"


def _without_repeats(entities: List[BratEntity], document: Document) -> Iterator[BratEntity]:
    """The entities without repetition; different entities with the same id are rejected."""
    by_id: Dict[str, BratEntity] = {}
    seen = set()
    for entity in entities:
        first = by_id.setdefault(entity.id, entity)
        if (first.type, first.pieces) != (entity.type, entity.pieces):
            for one in (first, entity):
                reason = (
                    f"{entity.place}: {entity.id} is there twice, as {shown(first.words)} and {shown(entity.words)}"
                )
                document.refused.append((one.pieces[0][0], one.pieces[-1][1], reason))
        elif (entity.type, entity.pieces) not in seen:
            seen.add((entity.type, entity.pieces))
            yield entity


def _take(entity: BratEntity, document: Document, discontinuous: str, notes: Counter[str]) -> None:
    start, end = entity.pieces[0][0], entity.pieces[-1][1]
    gaps = "".join(document.text[a[1] : b[0]] for a, b in zip(entity.pieces, entity.pieces[1:]))
    if any(char.isalnum() for char in gaps):
        if discontinuous == REFUSE:
            reason = (
                f"{entity.place}: entity {shown(entity.words)} is in {len(entity.pieces)} pieces "
                "(--discontinuous cover takes all from the first to the last, drop leaves it out)"
            )
            document.refused.append((start, end, reason))
            return
        notes[f"discontinuous entities, {'dropped' if discontinuous == DROP else 'covered'}"] += 1
        if discontinuous == DROP:
            return
    document.spans.append((start, end, entity.type))


ENDINGS = (".conll", ".conllu", ".bio", ".iob", ".txt")
_ID = re.compile(r"#\s*(?:sent_id|id)\s*[=:]\s*(\S.*)")  # a comment `# id = X` names the row of a sentence
_COMMENT = re.compile(r"#(\s|$)")
_TAG = re.compile(r"O$|[BIELSU](-|$)")
_BLANKS = re.compile("[ \t]+")


@dataclass(frozen=True)
class _Layout:
    """The separator (tabs or spaces) and number of columns of most lines."""

    tabs: bool
    columns: int

    def cells(self, line: str) -> List[str]:
        return _cells(line, self.tabs and "\t" in line)

    def is_comment(self, line: str) -> bool:
        """Whether a line is a comment, and not the token ``#`` with its tag."""
        if not _COMMENT.match(line):
            return bool(_ID.match(line))
        cells = self.cells(line)
        return not (len(cells) == self.columns and cells[0] == "#" and _TAG.match(cells[-1]))


def read_conll(path: Path) -> Iterator[Document]:
    """Yield the sentences, named by their comment ``# id = NAME``, or None.

    If a line has more or fewer columns than most lines of its file, its sentence is invalid, as the last column may not
    be the tag.
    """
    for file in files_of(path, ENDINGS):
        layout = _layout(file)
        for lines, error in _blocks(file):
            document = _sentence(lines, error, layout)
            if document is not None:
                yield document


def _blocks(file: Path) -> Iterator[Tuple[List[Tuple[Place, str]], Optional[str]]]:
    """Yield the lines of each sentence with their places, and the reason if one cannot be read."""
    lines: List[Tuple[Place, str]] = []
    error: Optional[str] = None
    for number, raw in raw_lines(file):
        place = Place(str(file), number)
        line = ""
        try:
            line = text_of(raw, f"line {number}")
        except UserError as problem:
            error, line = error or str(problem), "?"
        blank = not line.strip() or line.startswith("-DOCSTART-")
        # A name after tokens also begins a sentence, in case the empty line before it is missing.
        if lines and (blank or (_ID.match(line) and not all(line.startswith("#") for _, line in lines))):
            yield lines, error
            lines, error = [], None
        if not blank:
            lines.append((place, line))
    if lines:
        yield lines, error


def _cells(line: str, tabs: bool) -> List[str]:
    line = line.strip(" \t\r")
    return [cell.strip(" ") for cell in line.split("\t")] if tabs else _BLANKS.split(line)


def _layout(file: Path) -> _Layout:
    columns = {True: Counter[int](), False: Counter[int]()}
    with_tab = count = 0
    for lines, error in _blocks(file):
        for _, line in lines if error is None else ():
            if not (_COMMENT.match(line) or _ID.match(line)):
                count += 1
                with_tab += "\t" in line.strip(" \t\r")
                for tabs, counts in columns.items():
                    counts[len(_cells(line, tabs))] += 1
    tabs = 2 * with_tab > count
    return _Layout(tabs, columns[tabs].most_common(1)[0][0] if count else 0)


def _sentence(lines: List[Tuple[Place, str]], error: Optional[str], layout: _Layout) -> Optional[Document]:
    name: Optional[str] = None
    tokens: List[Tuple[Place, List[str]]] = []
    for place, line in lines:
        if layout.is_comment(line):
            match = _ID.match(line)
            name = match[1].strip() if match else name
        else:
            tokens.append((place, layout.cells(line)))
    if not tokens:
        return None
    place = tokens[0][0]
    if error is not None:
        return Document(place, name, "", [], error)
    text, starts = "", []
    for _, cells in tokens:
        starts.append(len(text))
        text += cells[0] + " "
    spans = []
    try:
        for where, cells in tokens:
            if len(cells) < 2:
                raise BadRow(f"line {where.line}: expected a token and its tag")
            if len(cells) != layout.columns:
                raise BadRow(
                    f"line {where.line}: expected {layout.columns} columns, as most lines have, found {len(cells)}"
                )
        for first, end, kind in bio_spans(cells[-1] for _, cells in tokens):
            spans.append((starts[first], starts[end - 1] + len(tokens[end - 1][1][0]), kind))
    except UserError as problem:
        error = str(problem)
    return Document(place, name, text, spans, error)

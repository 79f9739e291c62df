"""CoNLL files of entities: a token a line, its BIO tag in the last column, an empty line after each sentence.

Columns are separated by tabs, in a file whose token lines all have one, or else by spaces and tabs. A no-break space is
part of a token.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.importing.documents import Document
from tokenverse_pp.manifests.importing.fields import bio_spans
from tokenverse_pp.manifests.importing.rows import BadRow, Place
from tokenverse_pp.manifests.importing.textfiles import files_of
from tokenverse_pp.manifests.lines import raw_lines, text_of

ENDINGS = (".conll", ".conllu", ".bio", ".iob", ".txt")
_ID = re.compile(r"#\s*(?:sent_id|id)\s*[=:]\s*(\S.*)")  # a comment `# id = X` names the row of a sentence
_COMMENT = re.compile(r"#(\s|$)")
_TAG = re.compile(r"O$|[BIELSU](-|$)")
_BLANKS = re.compile("[ \t]+")


@dataclass(frozen=True)
class _Layout:
    """What most lines of a file have: tabs between columns or spaces, and how many columns."""

    tabs: bool
    columns: int

    def cells(self, line: str) -> List[str]:
        return _cells(line, self.tabs and "\t" in line)

    def is_comment(self, line: str) -> bool:
        """Whether a line is a comment; a token may be a ``#``, then a tag stands beside it."""
        if not _COMMENT.match(line):
            return bool(_ID.match(line))
        cells = self.cells(line)
        return not (len(cells) == self.columns and cells[0] == "#" and _TAG.match(cells[-1]))


def read_conll(path: Path) -> Iterator[Document]:
    """The sentences; the name of each is its comment's ``# id = NAME``, and None where it has none.

    A line with fewer or more columns than most lines of its file is an error of its sentence: its last column may be
    another one than the tag.
    """
    for file in files_of(path, ENDINGS):
        layout = _layout(file)
        for lines, error in _blocks(file):
            document = _sentence(lines, error, layout)
            if document is not None:
                yield document


def _blocks(file: Path) -> Iterator[Tuple[List[Tuple[Place, str]], Optional[str]]]:
    """The lines of each sentence, with places; and why one of them cannot be read, if so."""
    lines: List[Tuple[Place, str]] = []
    error: Optional[str] = None
    for number, raw in raw_lines(file):
        place = Place(str(file), number)
        line = ""
        try:
            line = text_of(raw, str(place))
        except UserError as problem:
            error, line = error or str(problem), "?"
        blank = not line.strip() or line.startswith("-DOCSTART-")
        # A name after tokens begins a sentence too, where the empty line before it is missing.
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
                raise BadRow(f"{where}: expected a token and its tag")
            if len(cells) != layout.columns:
                raise BadRow(f"{where}: expected {layout.columns} columns, as most lines have, found {len(cells)}")
        for first, end, kind in bio_spans(cells[-1] for _, cells in tokens):
            spans.append((starts[first], starts[end - 1] + len(tokens[end - 1][1][0]), kind))
    except UserError as problem:
        error = str(problem)
    return Document(place, name, text, spans, error)

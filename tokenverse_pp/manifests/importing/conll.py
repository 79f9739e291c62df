"""CoNLL files of entities: a token a line, its BIO tag in the last column, an empty line after each sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.importing.documents import Document
from tokenverse_pp.manifests.importing.fields import bio_spans
from tokenverse_pp.manifests.importing.rows import Place
from tokenverse_pp.manifests.importing.textfiles import files_of
from tokenverse_pp.manifests.lines import raw_lines, text_of

ENDINGS = (".conll", ".conllu", ".bio", ".iob", ".txt")
_ID = re.compile(r"#\s*(?:sent_id|id)\s*[=:]\s*(\S+)")  # a comment `# id = X` names the row of a sentence
_COMMENT = re.compile(r"#(\s|$)")


def read_conll(path: Path) -> Iterator[Document]:
    """The sentences; the name of each is its comment's ``# id = NAME``, and None where it has none."""
    for file in files_of(path, ENDINGS):
        lines: List[Tuple[Place, str]] = []
        error: Optional[str] = None
        for number, raw in raw_lines(file):
            place = Place(str(file), number)
            line = ""
            try:
                line = text_of(raw, str(place))
            except UserError as problem:
                error, line = error or str(problem), "?"
            if line.strip() and not line.startswith("-DOCSTART-"):
                lines.append((place, line))
            elif lines:
                yield from _sentence(lines, error)
                lines, error = [], None
        yield from _sentence(lines, error)


def _sentence(lines: List[Tuple[Place, str]], error: Optional[str]) -> Iterator[Document]:
    name: Optional[str] = None
    tokens: List[Tuple[Place, List[str]]] = []
    for place, line in lines:
        # A token may be a `#`: then a tag stands beside it.
        if _COMMENT.match(line) and (_ID.match(line) or not tokens):
            match = _ID.match(line)
            name = match[1] if match else name
        else:
            tokens.append((place, line.split()))
    if not tokens:
        return
    place = tokens[0][0]
    short = next((where for where, cells in tokens if len(cells) < 2), None)
    if error is None and short is not None:
        error = f"{short}: expected a token and its tag"
    text, starts = "", []
    for _, cells in tokens:
        starts.append(len(text))
        text += cells[0] + " "
    spans = []
    if error is None:
        try:
            for first, end, kind in bio_spans(cells[-1] for _, cells in tokens):
                spans.append((starts[first], starts[end - 1] + len(tokens[end - 1][1][0]), kind))
        except UserError as problem:
            error = str(problem)
    yield Document(place, name, text, spans, error)

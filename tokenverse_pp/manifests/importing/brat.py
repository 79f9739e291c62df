"""BRAT standoff entities: NAME.txt and NAME.ann beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Tuple

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.importing.documents import Document
from tokenverse_pp.manifests.importing.rows import BadRow, Place, Span
from tokenverse_pp.manifests.importing.textfiles import expect, lines_of
from tokenverse_pp.manifests.lines import raw_lines, text_of

FORM = "T1<tab>TYPE start end<tab>words"


def find_brat(folder: Path) -> Dict[str, Path]:
    """The .ann files of a folder by name. A .txt without .ann was not annotated.

    Raises:
        UserError: where there is none, or two have one name.
    """
    found: Dict[str, Path] = {}
    for path in sorted(folder.rglob("*.ann")):
        if path.stem in found:
            raise UserError(f"{path}: {found[path.stem]} has the same name; expected one document of a name")
        found[path.stem] = path
    if not found:
        raise UserError(f"{folder}: expected BRAT documents (NAME.txt with NAME.ann), found no .ann")
    return found


def read_brat(path: Path) -> Document:
    """One document. Relations, events, attributes and notes are passed over: only ``T`` lines are entities."""
    at = Place(str(path), 1)
    spans: List[Span] = []
    try:
        text = _text(path.with_suffix(".txt"))
        for place, line in lines_of(path):
            at = place
            if not isinstance(line, str):
                raise BadRow(line.reason)
            if line.startswith("T"):
                spans.append(_span(line, text))
    except UserError as error:
        return Document(at, path.stem, "", [], str(error))
    return Document(Place(str(path), 1), path.stem, text, spans)


def _text(path: Path) -> str:
    # Offsets count the characters of the file, so line ends stay as they are.
    if not path.is_file():
        raise BadRow(f"{path}: no such file")
    lines = []
    for number, line in raw_lines(path):
        lines.append(text_of(line, f"{path}, line {number}"))
    newline = "\r\n" if path.read_bytes()[:65536].count(b"\r\n") else "\n"
    return newline.join(lines)


def _span(line: str, text: str) -> Tuple[int, int, str]:
    cells = line.split("\t")
    expect(len(cells) == 3, FORM, line)
    kind, _, numbers = cells[1].partition(" ")
    if ";" in numbers:
        raise BadRow(f"expected an entity in one piece, found {cells[1]!r}")
    bounds = numbers.split()
    expect(len(bounds) == 2 and all(b.isascii() and b.isdigit() and len(b) < 10 for b in bounds), FORM, line)
    start, end = int(bounds[0]), int(bounds[1])
    if " ".join(text[start:end].split()) != " ".join(cells[2].split()) or end <= start:
        raise BadRow(f"characters {start} to {end} are {text[start:end][:60]!r}, not {cells[2][:60]!r}")
    return start, end, kind

"""The transcript files of a corpus as lhotse's recipes can read them.

A recipe fails as a whole where one row of a table is broken: a carriage return within a cell, a cell too few, bytes
that are not UTF-8. Here such rows are found first. Where there are any, the recipe is given a copy of the corpus
(links, and the tables without the bad rows), and the bad rows are listed with what is left out.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from lhotse import RecordingSet

from tokenverse_pp.data.lines import BOM, fields, number_of, raw_lines, stray_control

LINE_SEPARATORS = str.maketrans("\u2028\u2029", "  ")  # at which str.splitlines() splits


@dataclass(frozen=True)
class Form:
    """What a row of a table looks like.

    Args:
        delimiter: None: a name, blanks, a text.
        cells: how many there are; 0: as many as in the header.
        quoting: as the csv module reads it by default.
        numbers: columns of the header that hold decimal numbers.
    """

    delimiter: Optional[str] = "\t"
    cells: int = 0
    quoting: bool = False
    numbers: Tuple[str, ...] = ()

    def split(self, text: str) -> Optional[List[str]]:
        """The cells of a row; None where its quoting is broken."""
        if self.delimiter is None:
            return fields(text, maxsplit=1)
        if not self.quoting:
            return text.split(self.delimiter)
        try:
            return next(csv.reader([text], delimiter=self.delimiter, strict=True), [])
        except csv.Error:
            return None


@dataclass
class Table:
    """A file of transcripts that was looked through: what is wrong with which of its lines."""

    path: Path
    form: Form
    bad: Dict[int, str] = field(default_factory=dict)
    changed: bool = False  # it can be read, but not by the recipe

    def left_out(self) -> List[Dict[str, object]]:
        """The bad rows, as `LeftOut` lists turns."""
        return [{"id": f"{self.path}, line {n}", "seconds": 0.0, "reason": why} for n, why in self.bad.items()]

    def write(self, target: Path) -> None:
        """Write a copy without the bad rows."""
        if not self.bad and not self.changed:
            shutil.copy(self.path, target)
            return
        with gzip.open(target, "wb", compresslevel=1) if target.name.endswith(".gz") else open(target, "wb") as file:
            for number, line in raw_lines(self.path):
                if number not in self.bad:
                    file.write(line.decode("utf-8").translate(LINE_SEPARATORS).encode("utf-8") + b"\n")


def check_table(path: Path, form: Form) -> Table:
    """Look a table through."""
    table = Table(path, form)
    opened = gzip.open(path) if path.name.endswith(".gz") else open(path, "rb")
    with opened as file:
        table.changed = file.read(len(BOM)) == BOM
    header: List[str] = []
    for number, line in raw_lines(path):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            table.bad[number] = "not UTF-8"
            continue
        problem = _problem(text, form, header) if text.strip() else None
        if problem is not None:
            table.bad[number] = problem
        elif not header and not form.cells:
            header = form.split(text) or []
        table.changed = table.changed or text.translate(LINE_SEPARATORS) != text
    return table


def _problem(text: str, form: Form, header: Sequence[str]) -> Optional[str]:
    stray = stray_control(text)
    if stray is not None:
        return f"holds a {stray}"
    cells = form.split(text)
    if cells is None:
        return "broken quoting"
    wanted = form.cells or len(header) or len(cells)
    if len(cells) != wanted:
        return f"expected {wanted} cells, found {len(cells)}"
    for name, cell in zip(header, cells):
        if name in form.numbers and number_of(cell.strip()) is None:
            return f"column {name}: expected a number, found {cell[:60]!r}"
    return None


@contextlib.contextmanager
def readable(corpus_dir: Path, tables: Sequence[Table], linked: Sequence[str] = ()) -> Iterator[Path]:
    """A folder for a recipe: the corpus itself where all rows are good, otherwise a copy without the bad ones.

    Args:
        linked: names of folders that can be linked as a whole, since the recipe does not search them for files.
    """
    replaced = {os.path.abspath(table.path): table for table in tables if table.bad or table.changed}
    if not replaced:
        yield corpus_dir
        return
    with tempfile.TemporaryDirectory(prefix="tokenverse_pp-") as folder:
        for root, names, files in os.walk(os.path.abspath(corpus_dir), followlinks=True):
            here = Path(folder, os.path.relpath(root, os.path.abspath(corpus_dir)))
            here.mkdir(exist_ok=True)
            for name in [*files, *(name for name in names if name in linked)]:
                path = os.path.join(root, name)
                if path in replaced:
                    replaced[path].write(here / name)
                else:
                    os.symlink(path, here / name)
            names[:] = [name for name in names if name not in linked]
        yield Path(folder)


def in_corpus(recordings: RecordingSet, folder: Path, corpus_dir: Path) -> RecordingSet:
    """Recordings whose files lie in the corpus, not in the copy that the recipe read."""
    if folder != corpus_dir:
        for recording in recordings:
            for source in recording.sources:
                inside = os.path.relpath(source.source, folder)
                if not inside.startswith(".."):
                    source.source = str(corpus_dir / inside)
    return recordings

"""CSV, TSV and JSON lines: one row a line."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Set

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.importing.fields import FieldMap
from tokenverse_pp.manifests.importing.rows import Place, Rejected, Row, RowOrRejected, shown
from tokenverse_pp.manifests.lines import MAX_LINE, raw_lines, text_of
from tokenverse_pp.manifests.reading import json_of

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")


def read_table(path: Path, fields: FieldMap, delimiter: Optional[str] = None) -> Iterator[RowOrRejected]:
    """The rows of a table, one at a time; ``.gz`` is unpacked.

    CSV has quoting and may have line ends within quotes; TSV has no quoting (as Common Voice writes it).

    Args:
        delimiter: another one than the name's ending says.

    Raises:
        UserError: where the file as a whole cannot be read (header, columns that were named, broken quoting).
    """
    name = path.name[:-3] if path.name.endswith(".gz") else path.name
    ending = Path(name).suffix.lower()
    if ending in JSON_LINES:
        return _json_rows(path, fields, Path(name).stem)
    if delimiter is None and ending not in DELIMITERS:
        known = ", ".join([*DELIMITERS, *JSON_LINES])
        raise UserError(f"{path}: expected a table ({known}, also with .gz), or --delimiter")
    return _delimited_rows(path, fields, Path(name).stem, delimiter or DELIMITERS[ending])


def _json_rows(path: Path, fields: FieldMap, stem: str) -> Iterator[RowOrRejected]:
    seen: Set[str] = set()
    number = 0
    for number, line in raw_lines(path):
        if not line.strip():
            continue
        place = Place(str(path), number)
        try:
            data = json_of(text_of(line, str(place)), str(place))
        except UserError as error:
            yield Rejected(place, _without(place, error))
            continue
        if not isinstance(data, dict):
            yield Rejected(place, f"expected a JSON object, found {shown(data)}")
            continue
        seen.update(data)
        yield fields.row(place, f"{stem}-{number}", data)
    if number:
        fields.check(sorted(seen), str(path))


def _delimited_rows(path: Path, fields: FieldMap, stem: str, delimiter: str) -> Iterator[RowOrRejected]:
    # What is not UTF-8 is carried through the csv module and told of with its row.
    csv.field_size_limit(min(MAX_LINE, sys.maxsize))
    lines = (line.decode("utf-8", "surrogateescape") + "\n" for _, line in raw_lines(path))
    if delimiter == "\t":
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise UserError(f"{path}: empty; expected a header line with the names of the columns")
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise UserError(f"{path}, line 1: column {twice!r} is there twice")
        fields.check(header, str(path))
        done = reader.line_num
        for cells in reader:
            place = Place(str(path), done + 1)
            done = reader.line_num
            if cells:
                yield _cells_row(place, f"{stem}-{place.line}", fields, header, cells)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not a table: {error}") from None


def _cells_row(place: Place, default_id: str, fields: FieldMap, header: List[str], cells: List[str]) -> RowOrRejected:
    text = "".join(cells)
    if "\0" in text:
        return Rejected(place, "expected text, found a NUL byte")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return Rejected(place, "not UTF-8")
    if len(cells) != len(header):
        return Rejected(place, f"expected {len(header)} cells, found {len(cells)}")
    return fields.row(place, default_id, dict(zip(header, cells)))


def _without(place: Place, error: UserError) -> str:
    return str(error).replace(f"{place}: ", "", 1)


def read_recordings(path: Path, fields: FieldMap, delimiter: Optional[str] = None) -> Dict[str, Row]:
    """A table with one row a recording, in memory, by its field ``recording``, or else by its audio file's name.

    Raises:
        UserError: for a row that cannot be read, has neither, or names a recording again: with its line.
    """
    found: Dict[str, Row] = {}
    for item in read_table(path, fields, delimiter):
        if isinstance(item, Rejected):
            raise UserError(str(item))
        name = item.recording or (Path(item.audio).stem if item.audio else None)
        if name is None or name in found:
            raise UserError(f"{item.place}: field 'recording': expected a name of its own, found {shown(name)}")
        found[name] = item
    return found

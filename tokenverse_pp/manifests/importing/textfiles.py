"""Annotation files of one record a line: which files, and their lines with places."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple, Union

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.importing.rows import BadRow, Place, Rejected, Row, shown
from tokenverse_pp.manifests.lines import BLANKS, CONTROL, fields, raw_lines, stray_control, text_of


def files_of(path: Path, endings: Sequence[str]) -> List[Path]:
    """A file itself; of a folder all files below it with these endings, in order of their names.

    Raises:
        UserError: where there is none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in endings)
    if not found:
        raise UserError(f"{path}: no file in it ends in {' or '.join(endings)}")
    return found


def lines_of(path: Path) -> Iterator[Tuple[Place, Union[str, Rejected]]]:
    """Lines that are not blank, with their places; one that is no text is rejected."""
    for number, line in raw_lines(path):
        if line.strip():
            place = Place(str(path), number)
            try:
                yield place, text_of(line, "")
            except UserError as error:
                yield place, Rejected(place, str(error).lstrip(": "))


def records_of(
    path: Path, comment: str = "", recording_at: Optional[int] = None
) -> Iterator[Tuple[Place, Union[str, Rejected]]]:
    """`lines_of` for files of ASCII fields (see `fields`), without blanks at the ends of the lines.

    Lines with control characters are rejected: a carriage return within a line may end another record.

    Args:
        comment: lines that begin with it are passed over.
        recording_at: the number of the field that is the recording, where one is.
    """
    for place, line in lines_of(path):
        if isinstance(line, Rejected):
            yield place, line
            continue
        line = line.strip(BLANKS)
        if not line or (comment and line.startswith(comment)):
            continue
        stray = stray_control(line)
        if stray is not None:
            error = BadRow(f"holds a {stray}; expected one record a line")
            # After a carriage return there may be a record of another recording.
            at = recording_at if "\r" not in line else None
            yield place, Rejected(place, str(error)) if at is None else rejected(place, error, line, at)
        else:
            yield place, line


def rejected(place: Place, error: BadRow, line: str, recording_at: int) -> Rejected:
    """A line that cannot be mapped; its recording is the cell with this number, if there is one."""
    cells = fields(line)
    known = len(cells) > recording_at and not CONTROL.search(cells[recording_at])
    row = Row(place, "", cells[recording_at]) if known else None
    return Rejected(place, str(error), row)


def safe_id(name: str) -> str:
    """A name from the data as part of an id and of a file name: no separators of folders."""
    return name.replace("/", "-").replace("\\", "-")


def expect(condition: bool, form: str, line: str) -> None:
    """Raise BadRow unless a line has the right form."""
    if not condition:
        raise BadRow(f"expected `{form}`, found {shown(line)}")

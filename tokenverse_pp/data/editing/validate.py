"""Checking a manifest of any length against the label schema, one cut at a time."""

from __future__ import annotations

from typing import Any, Iterator

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import PathLike
from tokenverse_pp.data.audio.checks import check_audio
from tokenverse_pp.data.labels import check_cut, labelled_cut
from tokenverse_pp.data.lines import NameSet
from tokenverse_pp.data.manifests import ManifestRow, cut_of, scan_rows


def first_problems(path: PathLike, limit: int, audio: bool = False, bar: Any = None) -> Iterator[str]:
    """The first problems of a manifest, as `manifest_problems` gives them; the last line says how many more there are.

    A file that cannot be read (on) is a problem like any other.
    """
    found, held = 0, ""
    try:
        for problem in manifest_problems(path, audio, bar):
            found += 1
            if found <= limit:
                if held:
                    yield held
                held = problem  # until it is known whether it is the last
    except UserError as error:
        if held:
            yield held
        found, limit, held = 0, 0, str(error)
    if held:
        yield held + (f" (and {found - limit} more)" if found > limit else "")


def manifest_problems(path: PathLike, audio: bool = False, bar: Any = None) -> Iterator[str]:
    """Every problem of a manifest, as lines that name the file, the line and the cut.

    Args:
        audio: decode all the audio as well (slow).
        bar: progress bar to move by the bytes that were read.

    Raises:
        UserError: where the file is missing or cannot be read on.
    """
    seen, number = NameSet(), 0
    for row in scan_rows(path, bar):
        number += 1
        if row.problem:
            yield f"{row.where}: {row.problem}"
            continue
        if not seen.add(row.id):
            yield f"{row.where}: cut {row.id}: field 'id': another cut has it already"
        yield from _row_problems(row, audio)
    if not number:
        yield f"{path}: expected cuts, found none"


def _row_problems(row: ManifestRow, audio: bool) -> Iterator[str]:
    try:
        for problem in check_cut(labelled_cut(row)):
            yield f"{row.where}: cut {row.id}: {problem}"
        if audio:
            for problem in check_audio(cut_of(row.data, row.where)):
                yield f"{row.where}: cut {row.id}: {problem}"
    except UserError as error:  # lhotse cannot read the row
        yield str(error)

"""CTM: NIST's word time marks, ``recording channel start duration word [confidence ..]``.

lhotse reads CTM as alignments of turns that are there already (`SupervisionSet.with_alignment_from_ctm`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Union

from tokenverse_pp.manifests.importing.rows import BadRow, Place, Rejected, seconds
from tokenverse_pp.manifests.importing.textfiles import expect, files_of, lines_of, rejected
from tokenverse_pp.manifests.importing.words import Word

FORM = "recording channel start duration word [confidence]"


def read_ctm(path: Path) -> Iterator[Union[Word, Rejected]]:
    """The words of CTM files. Lines that begin with ``;;`` are comments."""
    for file in files_of(path, (".ctm",)):
        for place, line in lines_of(file):
            if isinstance(line, Rejected):
                yield line
            elif not line.startswith(";;"):
                try:
                    yield _word(place, line)
                except BadRow as error:
                    yield rejected(place, error, line, recording_at=0)


def _word(place: Place, line: str) -> Word:
    cells = line.split()
    expect(len(cells) >= 5, FORM, line)
    begin = seconds(cells[2], "start")
    return Word(place, cells[0], cells[1], begin, begin + seconds(cells[3], "duration"), cells[4])

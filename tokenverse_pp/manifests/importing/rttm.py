"""RTTM: NIST's rich transcription time marks; here the speaker turns, and the words where there are any.

lhotse reads RTTM too (`SupervisionSet.from_rttm`), but neither names lines nor tells of what it leaves out; the tests
compare with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Union

from tokenverse_pp.manifests.importing.rows import BadRow, Place, Rejected, Row, RowOrRejected, seconds
from tokenverse_pp.manifests.importing.textfiles import expect, files_of, lines_of, rejected, safe_id
from tokenverse_pp.manifests.importing.words import Word

FORM = "SPEAKER recording channel start duration <NA> <NA> speaker <NA> <NA>"
KINDS = (
    *("SEGMENT", "SPEAKER", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT", "IP", "SU", "CB", "A/P"),
    *("NOSCORE", "NO_RT_METADATA", "SPKR-INFO"),
)


def read_rttm(path: Path) -> Iterator[Union[RowOrRejected, Word]]:
    """Turns from ``SPEAKER`` lines, words from ``LEXEME`` lines; the other kinds that NIST defines say nothing here."""
    for file in files_of(path, (".rttm",)):
        for place, line in lines_of(file):
            if isinstance(line, Rejected):
                yield line
            elif not line.startswith(";"):
                try:
                    yield from _item(place, line)
                except BadRow as error:
                    yield rejected(place, error, line, recording_at=1)


def _item(place: Place, line: str) -> Iterator[Union[Row, Word]]:
    cells = line.split()
    kind = cells[0].upper()
    expect(kind in KINDS, FORM, line)
    if kind not in ("SPEAKER", "LEXEME"):
        return
    expect(len(cells) in (9, 10), FORM, line)
    _, recording, channel, start, duration, text, _, speaker = cells[:8]
    begin = seconds(start, "start")
    end = begin + seconds(duration, "duration")
    name = None if speaker == "<NA>" else speaker
    if kind == "LEXEME":
        yield Word(place, recording, channel, begin, end, text, name)
    else:
        yield Row(place, f"{safe_id(recording)}-{place.line:06d}", recording, None, channel, begin, end, speaker=name)

"""RTTM: NIST's rich transcription time marks; here the speaker turns, and the words where there are any.

lhotse reads RTTM too (`SupervisionSet.from_rttm`), but neither names lines nor tells of what it leaves out; the tests
compare with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, List, Optional, Union

from tokenverse_pp.manifests.importing.notation import REFUSE, read_word
from tokenverse_pp.manifests.importing.rows import BadRow, Place, Rejected, Row, RowOrRejected, seconds, shown
from tokenverse_pp.manifests.importing.textfiles import expect, files_of, records_of, rejected, safe_id
from tokenverse_pp.manifests.importing.words import Word
from tokenverse_pp.manifests.lines import fields, number_of

FORM = "SPEAKER recording channel start duration <NA> <NA> speaker <NA> <NA>"
WORD_FORM = "LEXEME recording channel start duration word type speaker confidence <NA>"
KINDS = (
    *("SEGMENT", "SPEAKER", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT", "IP", "SU", "CB", "A/P"),
    *("NOSCORE", "NO_RT_METADATA", "SPKR-INFO"),
)
NOTHING = "<NA>"


def read_rttm(path: Path, notation: str = REFUSE) -> Iterator[Union[RowOrRejected, Word]]:
    """Turns from ``SPEAKER`` lines, words from ``LEXEME`` lines; the other kinds that NIST defines say nothing here.

    Lines that begin with ``;`` are comments. The last one or two of the ten fields may be missing.

    Args:
        notation: see `tokenverse_pp.manifests.importing.notation`.
    """
    for file in files_of(path, (".rttm",)):
        for place, line in records_of(file, ";", recording_at=1):
            if isinstance(line, Rejected):
                yield line
                continue
            item: Union[RowOrRejected, Word, None]
            try:
                item = _item(place, line, notation)
            except BadRow as error:
                item = rejected(place, error, line, recording_at=1)
            if item is not None:
                yield item


def _item(place: Place, line: str, notation: str) -> Union[Row, Word, None]:
    """A turn or a word; None for a line of another kind, and for a mark that is left out."""
    cells = fields(line)
    kind = cells[0].upper()
    expect(kind in KINDS, FORM, line)
    if kind not in ("SPEAKER", "LEXEME"):
        return None
    expect(8 <= len(cells) <= 10, WORD_FORM if kind == "LEXEME" else FORM, line)
    recording, channel, start, duration, text, subtype, speaker = cells[1:8]
    begin = seconds(start, "start")
    name = None if speaker.upper() == NOTHING else speaker
    if kind == "LEXEME":
        return _word(Word(place, recording, channel, begin, begin, text, name), duration, subtype, cells, notation)
    end = begin + seconds(duration, "duration")
    # A word here is the speaker's name in the wrong place, or half of one with spaces in it.
    expect(text.upper() == subtype.upper() == NOTHING and _has_confidence(cells), FORM, line)
    return Row(place, f"{safe_id(recording)}-{place.line:06d}", recording, None, channel, begin, end, speaker=name)


def _word(word: Word, duration: str, subtype: str, cells: List[str], notation: str) -> Optional[Word]:
    try:
        word.end = word.start + seconds(duration, "duration")
        if word.text.upper() == NOTHING:
            raise BadRow("a word that nobody wrote down")
        if not _has_confidence(cells):
            raise BadRow(f"expected a confidence or <NA>, found {shown(cells[8])}")
        text = read_word(word.text, None if subtype.upper() == NOTHING else subtype, notation)
    except BadRow as error:
        word.problem = str(error)
        return word
    if text is None:
        return None
    word.text = text
    return word


def _has_confidence(cells: List[str]) -> bool:
    return len(cells) < 9 or cells[8].upper() in (NOTHING, "NA") or number_of(cells[8]) is not None

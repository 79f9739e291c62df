"""Read NIST's formats CTM, STM and RTTM.

- CTM: ``recording channel start duration word [confidence [type [speaker]]]``, one word per line.
- STM: ``recording channel speaker start end [<label>] text``, one turn per line.
- RTTM: speaker turns, and words if the file has them.

lhotse reads CTM only as alignments of existing turns (`SupervisionSet.with_alignment_from_ctm`) and RTTM
(`SupervisionSet.from_rttm`) without line numbers or a list of what it leaves out. The tests compare with lhotse.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple, Union

from tokenverse_pp.data.importing.notation import OPTION, REFUSE, RESOLVE, read_word, read_words, split_label
from tokenverse_pp.data.importing.rows import (
    BadRow,
    ImportedWord,
    Place,
    Rejected,
    Row,
    RowOrRejected,
    expect,
    files_of,
    read_records,
    safe_id,
    seconds,
    shown,
)
from tokenverse_pp.data.lines import BLANKS, fields, number_of

CTM_FORM = "recording channel start duration word [confidence [type [speaker]]]"
ALT_BEGIN, ALT, ALT_END = "<ALT_BEGIN>", "<ALT>", "<ALT_END>"
NO_CONFIDENCE = ("NA", "<NA>", "N/A", "-", "*")
NOBODY = (*NO_CONFIDENCE, "NULL", "UNKNOWN")


def read_ctm(path: Path, notation: str = REFUSE) -> Iterator[Union[ImportedWord, Rejected]]:
    """Yield the words of CTM files. Lines that begin with ``;;`` are comments.

    Alternatives are enclosed by lines with the words ``<ALT_BEGIN>``, ``<ALT>`` and ``<ALT_END>``. A word with a known
    time that cannot be read gets a ``problem``, and its turn cannot be used. For ``notation`` see
    `tokenverse_pp.data.importing.notation`.
    """
    for file in files_of(path, (".ctm",)):
        open_groups: Dict[Tuple[str, str], _Alternatives] = {}
        yield from read_records(file, ";;", [0, 1], partial(_items, notation=notation, open_groups=open_groups))
        for group in open_groups.values():
            yield from group.spoilt(f"<ALT_BEGIN> in line {group.place.line} without <ALT_END>")


@dataclass
class _Alternatives:
    """The words of a channel since ``<ALT_BEGIN>``, with the first alternative separate from the others."""

    place: Place
    first: List[ImportedWord] = field(default_factory=list)
    others: List[ImportedWord] = field(default_factory=list)
    is_first: bool = True
    levels: int = 1
    nested: bool = False

    def finished(self, notation: str) -> Iterator[ImportedWord]:
        """The selected words, or all words with the reason why they cannot be used."""
        if self.nested:
            yield from self.spoilt(f"alternatives within the alternatives that begin in line {self.place.line}")
        elif notation == RESOLVE:
            yield from self.first
        else:
            # Without times for the marks there is no way to keep them among the words.
            yield from self.spoilt(
                f"alternatives (<ALT_BEGIN> in line {self.place.line}): {OPTION} {RESOLVE} takes the first"
            )

    def spoilt(self, problem: str) -> Iterator[ImportedWord]:
        """All words, with the reason why they cannot be used."""
        for word in [*self.first, *self.others]:
            word.problem = word.problem or problem
            yield word


def _items(
    place: Place, line: str, notation: str, open_groups: Dict[Tuple[str, str], _Alternatives]
) -> Iterator[ImportedWord]:
    cells = fields(line)
    expect(len(cells) >= 5, CTM_FORM, line)
    key, mark = (cells[0], cells[1]), cells[4].upper()
    group = open_groups.get(key)
    if mark == ALT_BEGIN:
        if group is None:
            open_groups[key] = _Alternatives(place)
        else:
            group.levels, group.nested = group.levels + 1, True
    elif mark in (ALT, ALT_END):
        if group is None:
            raise BadRow(f"{mark} without {ALT_BEGIN}")
        group.levels -= mark == ALT_END
        group.is_first = False
        if not group.levels:
            del open_groups[key]
            yield from group.finished(notation)
    else:
        word = _word(place, line, cells, notation)
        if word is not None and group is not None:
            (group.first if group.is_first else group.others).append(word)
        elif word is not None:
            yield word


def _word(place: Place, line: str, cells: List[str], notation: str) -> Optional[ImportedWord]:
    """Return a word, or None for a mark that is left out."""
    start = seconds(cells[2], "start")

    def text() -> Optional[str]:
        expect(len(cells) <= 8, CTM_FORM, line)
        if len(cells) > 5 and number_of(cells[5]) is None and cells[5].upper() not in NO_CONFIDENCE:
            raise BadRow(f"expected a confidence after the word, found {shown(cells[5])}: a word is one field")
        return read_word(cells[4], cells[6] if len(cells) > 6 else None, notation)

    speaker = cells[7] if len(cells) == 8 and cells[7].upper() not in NOBODY else None
    return _finished(ImportedWord(place, cells[0], cells[1], start, start, cells[4], speaker), cells[3], text)


def _finished(word: ImportedWord, duration: str, read_text: Callable[[], Optional[str]]) -> Optional[ImportedWord]:
    """Return a word with its end and text, or with its problem if one cannot be read; None if it has no text."""
    try:
        word.end = word.start + seconds(duration, "duration")
        text = read_text()
    except BadRow as error:
        word.problem = str(error)
        return word
    word.text = text or ""
    return word if text is not None else None


STM_FORM = "recording channel speaker start end [<label>] text"
IGNORED = "ignore_time_segment_in_scoring"
GAP = "inter_segment_gap"


def read_stm(path: Path, notation: str = REFUSE) -> Iterator[RowOrRejected]:
    """Yield the turns of STM files. Lines that begin with ``;;`` are comments. For ``notation`` see `read_ctm`.

    A segment with the text ``ignore_time_segment_in_scoring`` is speech without a transcript: it is rejected, and its
    recording cannot be one cut. A segment without words (a gap, a noise) is rejected as harmless, and with ``resolve``
    also as `Rejected.expected`.
    """
    for file in files_of(path, (".stm",)):
        yield from read_records(file, ";;", [0, 1], lambda place, line: [_row(place, line, notation)])


def _row(place: Place, line: str, notation: str) -> RowOrRejected:
    cells = fields(line, maxsplit=5)
    expect(len(cells) >= 5, STM_FORM, line)
    recording, channel, speaker, start, end, *rest = cells
    begin, stop = seconds(start, "start"), seconds(end, "end")
    _, text = split_label(rest[0] if rest else "")
    if text.strip(BLANKS).lower() == IGNORED:
        raise BadRow("a segment that is marked as not to be scored has no transcript")
    words = [] if text.strip(BLANKS).lower() == GAP else read_words(text, notation)
    if not " ".join(words).split():  # empty, or only Unicode spaces
        reason = "its text is empty: a gap between turns, or a sound that is no word"
        return Rejected(place, reason, harmless=True, expected=notation == RESOLVE)
    return Row(
        place,
        f"{safe_id(recording)}-{place.line:06d}",
        recording,
        channel=channel,
        start=begin,
        end=stop,
        text=" ".join(words),
        speaker=speaker,
    )


RTTM_FORM = "SPEAKER recording channel start duration <NA> <NA> speaker <NA> <NA>"
WORD_FORM = "LEXEME recording channel start duration word type speaker confidence <NA>"
KINDS = (
    *("SEGMENT", "SPEAKER", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT", "IP", "SU", "CB", "A/P"),
    *("NOSCORE", "NO_RT_METADATA", "SPKR-INFO"),
)
NOTHING = "<NA>"


def read_rttm(path: Path, notation: str = REFUSE) -> Iterator[Union[RowOrRejected, ImportedWord]]:
    """Yield turns from ``SPEAKER`` lines and words from ``LEXEME`` lines; NIST's other line types are skipped.

    Lines that begin with ``;`` are comments. The last one or two of the ten fields may be missing. For ``notation`` see
    `tokenverse_pp.data.importing.notation`.
    """
    for file in files_of(path, (".rttm",)):
        for item in read_records(file, ";", [1, 2], lambda place, line: [_item(place, line, notation)]):
            if item is not None:
                yield item


def _item(place: Place, line: str, notation: str) -> Union[Row, ImportedWord, None]:
    """Return a turn or a word; None for a line of another type or a mark that is left out."""
    cells = fields(line)
    kind = cells[0].upper()
    expect(kind in KINDS, RTTM_FORM, line)
    if kind not in ("SPEAKER", "LEXEME"):
        return None
    expect(8 <= len(cells) <= 10, WORD_FORM if kind == "LEXEME" else RTTM_FORM, line)
    recording, channel, start, duration, text, subtype, speaker = cells[1:8]
    begin = seconds(start, "start")
    name = None if speaker.upper() == NOTHING else speaker
    if kind == "LEXEME":

        def words() -> Optional[str]:
            if text.upper() == NOTHING:
                raise BadRow("a word that was not transcribed")
            if not _has_confidence(cells):
                raise BadRow(f"expected a confidence or <NA>, found {shown(cells[8])}")
            return read_word(text, None if subtype.upper() == NOTHING else subtype, notation)

        return _finished(ImportedWord(place, recording, channel, begin, begin, text, name), duration, words)
    end = begin + seconds(duration, "duration")
    # A word here is a misplaced speaker name, or half of a name that contains a space.
    expect(text.upper() == subtype.upper() == NOTHING and _has_confidence(cells), RTTM_FORM, line)
    return Row(place, f"{safe_id(recording)}-{place.line:06d}", recording, None, channel, begin, end, speaker=name)


def _has_confidence(cells: List[str]) -> bool:
    return len(cells) < 9 or cells[8].upper() in (NOTHING, "NA") or number_of(cells[8]) is not None

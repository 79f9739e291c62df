"""Read Kaldi data folders: wav.scp, and segments, text, utt2spk and utt2lang if they exist.

lhotse reads them too (`lhotse.kaldi.load_kaldi_data_dir`), but runs the pipes of wav.scp, drops recordings that it
cannot read, and reports no line numbers. The tests compare with it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Set, Tuple, Union

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.importing.rows import (
    Place,
    Rejected,
    Row,
    RowOrRejected,
    expect,
    lines_of,
    read_records,
    records_of,
    seconds,
)
from tokenverse_pp.data.lines import fields, number_of

Table = Dict[str, Tuple[Place, str]]


def read_kaldi(folder: Path) -> Iterator[RowOrRejected]:
    """Yield a row for each line of ``segments``, or of ``wav.scp`` if there are no segments.

    A pipe in wav.scp is passed on; whether it may run is decided when the audio is opened. Lines of text, utt2spk and
    utt2lang that name no utterance are rejected; if there are segments, words of such a line may be in any recording.
    An utterance with an empty line of text is also rejected, as harmless: it has no words that a cut of its recording
    could miss.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a Kaldi data folder with wav.scp")
    bad: List[Rejected] = []
    audio = _table(folder / "wav.scp", bad, needed=True)
    names = ("text", "utt2spk", "utt2lang")
    text, speakers, languages = (_table(folder / name, bad) for name in names)
    has_text = (folder / "text").is_file()
    # An utterance whose line is missing for this reason is rejected separately.
    yield from (replace(item, harmless=True) for item in bad)
    unread = any(item.place.file == str(folder / "text") for item in bad)
    no_text = f"no line in {folder / 'text'}" + (" that can be read" if unread else "")
    seen: Set[str] = set()
    segments = folder / "segments"
    whole = (Row(place, name, name) for name, (place, _) in audio.items())
    utterances: Iterable[RowOrRejected] = _segments(segments) if segments.is_file() else whole
    for item in utterances:
        row = item.row if isinstance(item, Rejected) else item
        if row is not None and row.recording in audio:
            row.audio = audio[row.recording][1]
        if isinstance(item, Rejected):
            yield item
            continue
        if item.id in seen:
            yield Rejected(item.place, f"utterance {item.id!r} is there twice", item)
            continue
        seen.add(item.id)
        if item.recording not in audio:
            yield Rejected(item.place, f"recording {item.recording!r} is not in wav.scp", item, harmless=True)
            continue
        item.text = _get(text, item.id)
        item.speaker, item.language = _get(speakers, item.id), _get(languages, item.id)
        if item.id in text and item.text is None:
            yield Rejected(text[item.id][0], f"utterance {item.id!r}: its text is empty", harmless=True)
        else:
            yield Rejected(item.place, no_text, item) if has_text and item.text is None else item
    known = _utterances(segments)
    for table in (text, speakers, languages):
        for key, (place, _) in table.items():
            if key not in seen:
                is_heard = table is text and known and key not in known and _get(text, key) is not None
                yield Rejected(place, f"there is no utterance {key!r}", harmless=not is_heard)


def read_wav_scp(path: Path) -> Tuple[Dict[str, Union[Row, Rejected]], List[Rejected]]:
    """Return the recordings of a wav.scp by name, and the lines that cannot be read or repeat a recording."""
    bad: List[Rejected] = []
    table = _table(path, bad, needed=True)
    rows: Dict[str, Union[Row, Rejected]] = {
        name: Row(place, name, name, audio) for name, (place, audio) in table.items()
    }
    return rows, [replace(item, harmless=True) for item in bad]


def _table(path: Path, bad: List[Rejected], needed: bool = False) -> Table:
    table: Table = {}
    if not needed and not path.is_file():
        return table
    for place, line in records_of(path):
        if isinstance(line, Rejected):
            bad.append(line)
            continue
        key, *rest = fields(line, maxsplit=1)
        if key in table:
            bad.append(Rejected(place, f"{key!r} is there twice"))
        else:
            table[key] = (place, rest[0] if rest else "")
    return table


def _get(table: Table, key: str) -> Optional[str]:
    """Return a table's text for a name; None if it is missing, empty or only Unicode spaces."""
    return table[key][1] if key in table and table[key][1].strip() else None


def _utterances(path: Path) -> Set[str]:
    """Return the names of the utterances in ``segments``, including those whose line is rejected."""
    lines = (line for _, line in lines_of(path) if isinstance(line, str)) if path.is_file() else ()
    return {name for line in lines for name in fields(line)[:1]}


def _segments(path: Path) -> Iterator[RowOrRejected]:
    def read(place: Place, line: str) -> List[Row]:
        cells = fields(line)
        is_channel = len(cells) == 4 or (cells[4:5] and cells[4].isdecimal() and cells[4].isascii())
        expect(len(cells) in (4, 5) and bool(is_channel), "utterance recording start end [channel]", line)
        # An end of -1 is the end of the recording (kaldi-asr.org, extract-segments).
        end = None if number_of(cells[3]) == -1 else seconds(cells[3], "end")
        channel = str(int(cells[4]) + 1) if len(cells) == 5 else None  # counted from 0, as in extract-segments
        return [Row(place, cells[0], cells[1], None, channel, seconds(cells[2], "start"), end)]

    return read_records(path, "", [1], read)

"""Kaldi data folders: wav.scp, and segments, text, utt2spk, utt2lang, reco2dur where they are there.

lhotse reads them too (`lhotse.kaldi.load_kaldi_data_dir`), but runs what wav.scp's pipes say, drops recordings that
it cannot read, and names no lines; the tests compare with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, Optional, Set, Tuple

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.importing.rows import BadRow, Place, Rejected, Row, RowOrRejected, seconds
from tokenverse_pp.manifests.importing.textfiles import expect, lines_of, rejected

Table = Dict[str, Tuple[Place, str]]


def read_kaldi(folder: Path) -> Iterator[RowOrRejected]:
    """A row for each line of ``segments``, or of ``wav.scp`` where there are no segments.

    A pipe in wav.scp goes through as it is: whether it may be run is decided where the audio is opened. Lines of
    text, utt2spk and utt2lang that name no utterance are rejected.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a Kaldi data folder with wav.scp")
    bad: List[Rejected] = []
    audio = _table(folder / "wav.scp", bad, needed=True)
    names = ("text", "utt2spk", "utt2lang")
    text, speakers, languages = (_table(folder / name, bad) for name in names)
    has_text = (folder / "text").is_file()
    yield from bad
    seen: Set[str] = set()
    utterances = _segments(folder / "segments") if (folder / "segments").is_file() else _whole(audio)
    for item in utterances:
        if isinstance(item, Rejected):
            yield item
            continue
        if item.id in seen:
            yield Rejected(item.place, f"utterance {item.id!r} is there twice", item)
            continue
        seen.add(item.id)
        if item.recording not in audio:
            yield Rejected(item.place, f"recording {item.recording!r} is not in wav.scp", item)
            continue
        item.audio = audio[item.recording][1]
        item.text = _get(text, item.id)
        item.speaker, item.language = _get(speakers, item.id), _get(languages, item.id)
        yield Rejected(item.place, f"no line in {folder / 'text'}", item) if has_text and item.text is None else item
    for table in (text, speakers, languages):
        for key, (place, _) in table.items():
            if key not in seen:
                yield Rejected(place, f"there is no utterance {key!r}", harmless=True)


def read_wav_scp(path: Path) -> Dict[str, Row]:
    """The recordings of a wav.scp, by name.

    Raises:
        UserError: for a line that cannot be read.
    """
    bad: List[Rejected] = []
    table = _table(path, bad, needed=True)
    if bad:
        raise UserError(str(bad[0]))
    return {name: Row(place, name, name, audio) for name, (place, audio) in table.items()}


def _table(path: Path, bad: List[Rejected], needed: bool = False) -> Table:
    table: Table = {}
    if not needed and not path.is_file():
        return table
    for place, line in lines_of(path):
        if isinstance(line, Rejected):
            bad.append(line)
            continue
        key, *rest = line.split(maxsplit=1)
        if key in table:
            bad.append(Rejected(place, f"{key!r} is there twice"))
        else:
            table[key] = (place, rest[0].strip() if rest else "")
    return table


def _get(table: Table, key: str) -> Optional[str]:
    return table[key][1] or None if key in table else None


def _segments(path: Path) -> Iterator[RowOrRejected]:
    for place, line in lines_of(path):
        if isinstance(line, Rejected):
            yield line
            continue
        try:
            cells = line.split()
            expect(len(cells) == 4, "utterance recording start end", line)
            # An end of -1 is the recording's (kaldi-asr.org, extract-segments).
            end = None if cells[3] in ("-1", "-1.0", "-1.00") else seconds(cells[3], "end")
            yield Row(place, cells[0], cells[1], start=seconds(cells[2], "start"), end=end)
        except BadRow as error:
            yield rejected(place, error, line, recording_at=1)


def _whole(audio: Table) -> Iterator[Row]:
    for name, (place, _) in audio.items():
        yield Row(place, name, name)

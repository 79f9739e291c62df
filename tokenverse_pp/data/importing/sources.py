"""Options of an import, and the rows that they describe, completed from the other given files."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Literal, Mapping, Optional, Set, Tuple, Union

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.importing.audio import AudioFinder, AudioOut
from tokenverse_pp.data.importing.fields import AS_IT_IS, FieldMap, fill, finish_text, read_inline
from tokenverse_pp.data.importing.kaldi import read_kaldi, read_wav_scp
from tokenverse_pp.data.importing.nist import read_ctm, read_rttm, read_stm
from tokenverse_pp.data.importing.rows import (
    BadRow,
    ImportedWord,
    Rejected,
    Row,
    RowOrRejected,
    Speakers,
    Words,
    decoded_name,
    shown,
)
from tokenverse_pp.data.importing.subtitles import read_subtitles
from tokenverse_pp.data.importing.tables import is_hub_name, read_dataset, read_recordings, read_table
from tokenverse_pp.data.importing.transcripts import read_transcripts

ROW, RECORDING = "row", "recording"
TURN_SOURCES = ("table", "kaldi", "hf", "stm", "subtitles", "transcripts")
SOURCES = (*TURN_SOURCES[1:], "rttm", "ctm")  # options of one path each


@dataclass(frozen=True)
class ImportOptions:
    """The options of `tokenverse-pp manifest import`.

    Exactly one of `TURN_SOURCES` gives the turns; if none is set, ``rttm`` does, or else ``ctm``.
    """

    table: Tuple[Path, ...] = ()
    """CSV, TSV or JSONL, one turn per row; may be repeated."""
    kaldi: Optional[Path] = None
    """Kaldi data folder."""
    hf: Optional[Path] = None
    """Hugging Face data set: a folder (save_to_disk, parquet), or a name on the hub (owner/name) to download. An
    audiofolder is a table: --table metadata.csv --column audio=file_name."""
    hf_config: Optional[str] = None
    """Configuration of the Hugging Face data set, if there are several."""
    hf_split: Optional[str] = None
    """Split of the Hugging Face data set, if there are several."""
    hf_only: bool = False
    """Download only the split of a data set on the hub; the library caches it separately from the whole data set."""
    hf_cache: Optional[Path] = None
    """Folder for the library's copy of the data set's folder. Default: a temporary one."""
    stm: Optional[Path] = None
    """STM file, or a folder of them."""
    subtitles: Optional[Path] = None
    """SRT or WebVTT file named like its recording, or a folder of them."""
    transcripts: Optional[Path] = None
    """JSON of `transcribe`: a file, JSON lines, or a folder of them."""
    repeats: Literal["auto", "drop", "keep"] = "auto"
    """Cues and lines that repeat the previous cue: auto drops them in live captions that echo or roll."""
    rttm: Optional[Path] = None
    """Alone: the turns, with the words of its LEXEME lines unless --ctm gives words. With another source: the speakers
    of its turns."""
    ctm: Optional[Path] = None
    """Words with times, for turns without text. Alone: turns are made of these words."""
    nist_notation: Literal["refuse", "resolve", "keep"] = "refuse"
    """Marks in STM, CTM and RTTM such as { uh / um }, (%HESITATION), <unk>: refuse such turns, resolve the marks (first
    alternative, no sounds), or keep them as words."""
    pause: float = 1.0
    """With --ctm alone: seconds without a word after which a new turn begins."""
    brat: Optional[Path] = None
    """Folder of BRAT documents NAME.txt + NAME.ann."""
    conll: Optional[Path] = None
    """CoNLL file or folder: token .. BIO tag, one sentence per row."""
    discontinuous: Literal["refuse", "cover", "drop"] = "refuse"
    """BRAT entities in several pieces: refuse the row, cover all from first to last piece, or drop the entity."""
    inline: Optional[Literal["brackets", "tags"]] = None
    """How entities are marked in the text."""
    widen: bool = False
    """Extend entities that are part of a word to the whole word."""
    recordings: Optional[Path] = None
    """Table (recording, audio, language, ..) or wav.scp with the audio of each recording."""
    audio_dir: Optional[Path] = None
    """Base folder of audio paths, which may not lead out of it. Default: the data's folder."""
    audio_out: Optional[Path] = None
    """New folder for audio that must be written. Default: OUTPUT_audio."""
    sampling_rate: Optional[int] = 16000
    """Audio with another rate is rewritten at this rate (Hz); None: the rate is kept."""
    allow_pipes: bool = False
    """Run the commands of a wav.scp. To load this audio later, --allow-commands is needed."""
    fields: FieldMap = field(default_factory=FieldMap)
    """Mapping from columns to fields, and the unit of times."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Field values for rows that lack them."""
    delimiter: Optional[str] = None
    """Cell delimiter of tables, such as ';'. Default: by the extension .csv or .tsv."""
    normaliser: str = AS_IT_IS
    """Text normaliser: keep, words, cased, none."""
    written: bool = False
    """The texts have punctuation and capitals: use the unnormalised texts as labels for punct. Needs --normaliser
    words."""
    jobs: int = 1
    """Threads that read, convert and write audio."""
    per: Literal["row", "recording"] = "row"
    """Make one cut per row, or one cut of all rows of a recording."""
    skip_bad: bool = False
    """If rows cannot be mapped, write the others."""
    rejected: Optional[Path] = None
    """Write the rows that cannot be mapped to this TSV file."""

    @property
    def turns(self) -> str:
        """The option that gives the turns (raises UserError if there is none, or more than one)."""
        given = [name for name in TURN_SOURCES if getattr(self, name)]
        if len(given) > 1:
            raise UserError(
                f"--{given[0]} and --{given[1]} both give turns: expected one of them "
                "(--recordings takes a table or a wav.scp that only says which audio there is)"
            )
        given = given or [name for name in ("rttm", "ctm") if getattr(self, name)]
        if not given:
            raise UserError(f"nothing to import: expected one of --{', --'.join(TURN_SOURCES)}, --rttm, --ctm")
        return given[0]

    @property
    def source(self) -> Path:
        """The file or folder that gives the turns, for messages."""
        path = getattr(self, self.turns)
        return path[0] if isinstance(path, tuple) else path

    @property
    def folder(self) -> Path:
        """Base folder of relative audio paths: --audio-dir, or else the folder of the data that names the audio."""
        if self.audio_dir is not None:
            return self.audio_dir
        for path in (self.recordings, *self.table[:1]):
            if path is not None:
                return path.parent
        for path in (getattr(self, name) for name in SOURCES):
            if path is not None:
                return path if path.is_dir() else path.parent
        return Path()


def rows_of(
    options: ImportOptions, audio_out: AudioOut, finder: AudioFinder, notes: Counter[str]
) -> Iterator[RowOrRejected]:
    """Yield all rows, completed from recordings, constants, speaker turns, words and inline marks.

    ``notes`` counts what the user should know of rows that are not rejected.
    """
    turns = options.turns
    recordings, bad = _recordings(options)
    rttm: List[object] = list(read_rttm(options.rttm, options.nist_notation)) if options.rttm is not None else []
    ctm: List[object] = list(read_ctm(options.ctm, options.nist_notation)) if options.ctm is not None else []
    if turns != "rttm" and not any(isinstance(item, (Row, Rejected)) for item in rttm):
        _refuse_empty(options.rttm, "SPEAKER lines")
    if turns != "ctm" and not ctm:
        _refuse_empty(options.ctm, "words")
    if not recordings and not bad:
        _refuse_empty(options.recordings, "recordings")
    # LEXEME lines of an RTTM file are used only if it gives the turns, and no CTM has the same words.
    lexemes = rttm if turns == "rttm" and options.ctm is None else ()
    timed = [item for item in [*lexemes, *ctm] if isinstance(item, ImportedWord)]
    if turns != "ctm":
        for item in ctm:  # speaker names may differ between files
            if isinstance(item, ImportedWord):
                item.speaker = None
    words = Words(timed) if timed or options.ctm is not None else None
    speaker_turns = [item for item in rttm if isinstance(item, Row)]
    speakers = Speakers(speaker_turns) if options.rttm is not None and turns != "rttm" else None
    listed: Optional[Set[Optional[str]]] = None  # the files of the recordings
    yield from bad
    unread = (item for item in [*rttm, *ctm] if isinstance(item, Rejected))
    for item in chain(unread, _turns(turns, options, audio_out, speaker_turns, words)):
        row = item.row if isinstance(item, Rejected) else item
        if row is not None:
            told = recordings.get(_name_in(recordings, row) or "")
            if isinstance(told, Row):
                names = ("audio", "channel", "speaker", "language", "endpoint", "tasks", "custom")
                fill(row, {name: getattr(told, name) for name in names})
            elif told is not None:
                fill(row, {"audio": told.row.audio if told.row is not None else None})
                if isinstance(item, Row):
                    item = Rejected(row.place, f"its recording cannot be read: {told}", row)
            elif recordings and row.recording is not None and row.audio is None and isinstance(item, Row):
                # The table may list some recordings only; the others are found by their names.
                file = finder.file(row)
                if listed is None:
                    listed = {finder.file(told) for told in recordings.values() if isinstance(told, Row)}
                if file is None or file in listed:
                    reason = f"recording {row.recording!r} is not in {options.recordings}"
                    reason += "" if file is None else f", which has {file} under another name"
                    item = Rejected(row.place, reason, row, harmless=file is None)
            fill(row, options.constants)
        if isinstance(item, Row):
            try:
                known = [told.speaker if isinstance(told, Row) else None, options.constants.get("speaker")]
                _complete(item, speakers, words, known, options.inline)
            except BadRow as error:
                item = Rejected(item.place, str(error), item)
        if row is not None and recordings:
            row.recording = _name_in(recordings, row)  # last, as other files are searched by the original name
        if turns == "subtitles" and isinstance(item, Row) and not _has_words(item, options.normaliser):
            # No cut is incomplete without an empty cue.
            found = "nothing" if item.text is None else shown(item.text)
            item = Rejected(item.place, f"field 'text': expected words, found {found}", item, harmless=True)
        yield item
    for item in words.unused() if words is not None else ():
        # Words of a recording without audio are in no cut.
        has_audio = item.row is not None and finder.file(item.row) is not None
        yield item if has_audio else replace(item, harmless=True)
    if speakers is not None:
        yield from speakers.unused()
        speakers.count_elsewhere(notes)


def _refuse_empty(path: Optional[Path], what: str) -> None:
    """Raise UserError for a file that is to complete the rows and has nothing to complete them with."""
    if path is not None:
        raise UserError(f"{path}: holds no {what}; nothing was written")


def _complete(
    row: Row, speakers: Optional[Speakers], words: Optional[Words], known: List[Optional[str]], inline: Optional[str]
) -> None:
    """Set the speaker, words and marked entities of a turn (raises BadRow).

    ``known``: speakers to take if the RTTM has none.
    """
    if speakers is not None:
        speakers.give(row)
        row.speaker = next((name for name in [row.speaker, *known] if name is not None), None)
    if words is not None:
        words.give(row)
    if inline is not None and row.text is not None:
        if row.entities is not None:
            raise BadRow("field 'entities': given twice, by themselves and as marks in the text")
        row.text, row.entities = read_inline(row.text, inline)


def _has_words(row: Row, normaliser: str) -> bool:
    """Whether the normaliser leaves words of a text: of ``♪``, ``words`` and ``cased`` leave none in any language.

    A letter that it leaves tells it: texts are normalised when cuts are made, with their language, and not here too.
    """
    text = row.text or ""
    return any(_is_left(char, normaliser) for char in text if char.isalnum()) or _is_left(text, normaliser)


@functools.lru_cache(maxsize=10000)
def _is_left(text: str, normaliser: str) -> bool:
    return bool(finish_text(text, None, normaliser)[0])


def _turns(
    name: str, options: ImportOptions, audio_out: AudioOut, speaker_turns: List[Row], words: Optional[Words]
) -> Iterable[RowOrRejected]:
    path = options.source
    fields = replace(options.fields, needs_text=words is None)
    readers: Dict[str, Callable[[], Iterable[RowOrRejected]]] = {
        "table": lambda: (row for table in options.table for row in read_table(table, fields, options.delimiter)),
        "kaldi": lambda: read_kaldi(path),
        "hf": lambda: read_dataset(
            path, fields, options.hf_split, audio_out, options.hf_config, options.hf_cache, options.hf_only
        ),
        "stm": lambda: read_stm(path, options.nist_notation),
        "subtitles": lambda: read_subtitles(path, options.repeats),
        "transcripts": lambda: read_transcripts(path),
        "rttm": lambda: speaker_turns,
        "ctm": lambda: words.turns(options.pause) if words is not None else (),
    }
    return readers[name]()


def _recordings(options: ImportOptions) -> Tuple[Dict[str, Union[Row, Rejected]], List[Rejected]]:
    """The recordings that --recordings names, and its rows that cannot be read."""
    path = options.recordings
    if path is None:
        return {}, []
    if path.name == "wav.scp" or path.suffix == ".scp":
        return read_wav_scp(path)
    # Columns named by options are those of the table of turns, if there is one.
    fields = FieldMap() if options.table or options.hf is not None else options.fields
    return read_recordings(path, fields, options.delimiter)


def _name_in(recordings: Mapping[str, Union[Row, Rejected]], row: Row) -> Optional[str]:
    """Return the name of a row's recording in the table of recordings; in the row it may be percent-encoded."""
    if row.recording is None or row.recording in recordings:
        return row.recording
    decoded = decoded_name(row.recording)
    return decoded if decoded in recordings else row.recording


def check_paths(options: ImportOptions) -> None:
    """Check that the files and folders named by the options exist (raises UserError)."""
    for name in (*SOURCES, "recordings", "brat", "conll", "audio_dir"):
        path = getattr(options, name)
        if path is not None and not path.exists() and not (name == "hf" and is_hub_name(path)):
            raise UserError(f"--{name.replace('_', '-')}: {path}: no such file or folder")
    if options.fields.columns and not (options.table or options.hf or options.recordings):
        raise UserError("--column: expected a table as well (--table, --hf or --recordings)")
    for path in options.table:
        if not path.is_file():
            raise UserError(f"--table: {path}: no such file")

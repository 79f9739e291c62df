"""Run an import: group rows by recording, make cuts, and write a manifest and a report on every row.

Rows pass through a temporary SQLite file, so a table need not be sorted or fit into memory.
"""

from __future__ import annotations

import os
import pickle
import re
import sqlite3
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from lhotse import MonoCut, Recording, SupervisionSegment
from tqdm import tqdm

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import canonical_tag, language_problem
from tokenverse_pp.data.corpora.common import Say
from tokenverse_pp.data.importing.annotations import NamedDocuments, SentencesInOrder, open_documents
from tokenverse_pp.data.importing.audio import AudioFinder, AudioOut
from tokenverse_pp.data.importing.fields import finish_text
from tokenverse_pp.data.importing.rows import (
    OVERSHOOT,
    BadRow,
    Ledger,
    Place,
    Rejected,
    Row,
    RowOrRejected,
    same_channel,
    shown,
)
from tokenverse_pp.data.importing.sources import RECORDING, ImportOptions, check_paths, rows_of
from tokenverse_pp.data.labels import check_cut
from tokenverse_pp.data.lines import NameSet
from tokenverse_pp.data.manifests import ORIGINAL_RECORDING, check_output, writing_rows
from tokenverse_pp.tasks.registry import BUILT_IN, REGISTRY


def by_recording(items: Iterable[Tuple[str, float, RowOrRejected]]) -> Iterator[List[RowOrRejected]]:
    """Group (key, seconds, row) items by key, in the order of the keys' first items; each group is in time order."""
    with tempfile.TemporaryDirectory(prefix="tokenverse_pp-") as folder:
        base = sqlite3.connect(Path(folder) / "rows.db")
        try:
            base.execute("PRAGMA journal_mode = OFF")
            base.execute("CREATE TABLE firsts (key BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
            base.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, key BLOB, start REAL, item BLOB)")
            for number, (key, start, item) in enumerate(items):
                base.execute("INSERT OR IGNORE INTO firsts VALUES (?, ?)", (_bytes(key), number))
                base.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", (number, _bytes(key), start, pickle.dumps(item)))
            found = base.execute(
                "SELECT firsts.number, item FROM rows JOIN firsts USING (key) "
                "ORDER BY firsts.number, start, rows.number"
            )
            for _, group in groupby(found, key=lambda pair: pair[0]):
                yield [pickle.loads(item) for _, item in group]  # our own pickles, in our own folder
        finally:
            base.close()


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


MOST_FIRSTS = 100_000  # maximum stretches of audio whose places are kept, until one is repeated
NEEDS = {"scd": "speaker", "endp": "endpoint", "ner": "entities", "lid": "language"}
_TURN = re.compile(r"supervision (\d+), ")


def tasks_of(rows: Sequence[Row]) -> List[str]:
    """The tasks that the rows of a cut are labelled for.

    If any row names tasks, these are the tasks that all rows name; otherwise each task whose field all rows have, tasks
    of plugins included.
    """
    named = [row.tasks for row in rows if row.tasks is not None]
    if named:
        first = named[0] if len(named) == len(rows) else ["asr"]
        return [name for name in first if all(name in tasks for tasks in named)]
    found = ["asr"] + [name for name, field in NEEDS.items() if all(getattr(row, field) is not None for row in rows)]
    if all(isinstance(row.custom.get("written"), str) for row in rows):
        found.append("punct")
    for name, task in sorted(REGISTRY.items()):
        fields = task.own_fields if name not in BUILT_IN else ()
        if fields and all(row.custom.get(field) is not None for row in rows for field in fields):
            found.append(name)
    return found


def _bounds(row: Row, recording: Recording) -> Tuple[float, float]:
    start = row.start if row.start is not None else 0.0
    end = row.end if row.end is not None else recording.duration
    if end > recording.duration + OVERSHOOT or start >= recording.duration:
        raise BadRow(f"field 'end': {start:g} to {end:g} s is not inside the recording of {recording.duration:.3f} s")
    end = min(end, recording.duration)
    if end <= start:
        raise BadRow(f"field 'end': expected it after the start, found {start:g} to {end:g} s")
    return start, end


def audio_folder(output: Path, options: ImportOptions) -> Path:
    """The new folder for audio that an import into ``output`` must write."""
    return options.audio_out or output.parent / f"{output.name.split('.')[0]}_audio"


def import_manifest(output: Path, options: ImportOptions, say: Say = print) -> Ledger:
    """Read a corpus according to the options, write its cuts to ``output``, and return the counts.

    Raises:
        UserError: if a row cannot be mapped, unless ``options.skip_bad``. In this case only the list of rejected rows
            is written, if ``options.rejected`` is set.
    """
    check_output(output)
    check_paths(options)  # before anything is opened
    audio_out = AudioOut(audio_folder(output, options))
    ledger = Ledger()
    done = False
    try:
        with writing_rows(output) as writer:
            for cut, rows in import_cuts(options, ledger, audio_out):
                writer.write(cut.to_dict())
                ledger.kept += len(rows)
                ledger.repeated_words += sum(row.repeated for row in rows)
                ledger.cuts += 1
                ledger.cuts_by_task.update(cut.custom["tasks"])
            if not ledger.cuts or (ledger.bad and not options.skip_bad):
                raise ledger.refusal(options.source)
        done = True
    finally:
        if options.rejected is not None and (done or ledger.rejected):
            ledger.write_rejected(options.rejected)
        if not done:
            audio_out.remove()
    ledger.report(output, say)
    return ledger


def import_cuts(options: ImportOptions, ledger: Ledger, audio_out: AudioOut) -> Iterator[Tuple[MonoCut, Sequence[Row]]]:
    """Yield the cuts of an import with their rows, without writing them; all other rows go to the ledger."""
    return _Import(options, ledger, audio_out).cuts()


@dataclass
class _Import:
    """The state of one import."""

    options: ImportOptions
    ledger: Ledger
    audio_out: AudioOut

    def __post_init__(self) -> None:
        options = self.options
        self.finder = AudioFinder(options.folder, options.sampling_rate, options.allow_pipes, self.audio_out)
        self.documents = open_documents(options.brat, options.conll, options.discontinuous)
        self.row_ids, self.cut_ids, self.stretches = NameSet(), NameSet(), NameSet()
        self.firsts: Dict[str, Tuple[Place, Optional[str]]] = {}  # places and channels of the first stretches
        self.together = options.per == RECORDING
        self.spoilt: Dict[Optional[str], Place] = {}  # files with a rejected row of unknown channel

    def cuts(self) -> Iterator[Tuple[MonoCut, Sequence[Row]]]:
        """Yield cuts with the rows they are made of; other rows go to the ledger."""
        if self.together or isinstance(self.documents, NamedDocuments):
            groups: Iterator[List[RowOrRejected]] = by_recording(self._keyed())
        else:
            groups = ([item] for item in self._items())
        for group in groups:
            yield from self._cuts_of(group)
        if self.documents is not None:
            self._reject_more(self.documents.unused())
        if isinstance(self.documents, NamedDocuments):
            self.ledger.notes.update(self.documents.notes)

    def _items(self) -> Iterator[RowOrRejected]:
        """Yield and count every row; one without readable audio or with a repeated id is rejected."""
        read = rows_of(self.options, self.audio_out, self.finder, self.ledger.notes)
        rows = self.documents.attach(read) if isinstance(self.documents, SentencesInOrder) else read
        for item in tqdm(self._ahead(rows), desc="import", unit=" rows", disable=None, leave=False):
            self.ledger.read += 1
            if isinstance(item, Rejected):
                self._check_unknown(item)
            else:
                item = self._opened(item)
            if isinstance(self.documents, NamedDocuments):
                self.documents.note(item)
            yield item

    def _ahead(self, rows: Iterable[RowOrRejected]) -> Iterator[RowOrRejected]:
        """Yield the rows in batches; threads first open and convert their audio, which fills the finder's caches."""
        if self.options.jobs == 1:
            yield from rows
            return
        rows = iter(rows)
        with ThreadPoolExecutor(self.options.jobs) as pool:
            while batch := list(islice(rows, 16 * self.options.jobs)):
                # One row per file: two threads must not write the same file.
                files = {(item.audio, item.recording): item for item in batch if isinstance(item, Row)}
                list(pool.map(self._channel_of, files.values()))
                yield from batch

    def _opened(self, row: Row) -> RowOrRejected:
        try:
            self.finder.recording(row)
        except BadRow as error:
            return Rejected(row.place, str(error), row)
        if not self.row_ids.add(row.id):
            return Rejected(row.place, f"field 'id': another row has {row.id!r} already", row)
        return row

    def _check_unknown(self, item: Rejected) -> None:
        """Raise UserError if the recording of a rejected row is unknown: the cut that needs it cannot be left out."""
        if not self.together or not self.options.skip_bad or item.harmless:
            return
        # A bad line without audio may also give a wrong recording name, if no file of that name is found.
        if item.row is None or (item.row.audio is None and self.finder.file(item.row) is None):
            raise UserError(
                f"{item}: its recording is not known, so that --skip-bad cannot leave out the cut that it belongs to; "
                "correct it, or use --one-cut-per row"
            )

    def _keyed(self) -> Iterator[Tuple[str, float, RowOrRejected]]:
        for number, item in enumerate(self._items()):
            row = item.row if isinstance(item, Rejected) else item
            key = f"\0{number}"
            if row is not None and isinstance(self.documents, NamedDocuments):
                # A document has all channels of its recording, which resampling writes to separate files.
                key = os.path.normpath(row.audio) if row.audio else row.recording or key
            elif row is not None:
                key = self._channel_of(row) or key
            if isinstance(item, Rejected) and row is not None and not item.harmless and not self._channel_of(row):
                self.spoilt.setdefault(self.finder.file(row), item.place)
            yield key, (row.start or 0.0) if row is not None else 0.0, item

    def _channel_of(self, row: Row) -> Optional[str]:
        """Return the audio file and channel of a row, or None if the audio cannot be opened."""
        try:
            recording, channel = self.finder.recording(row)
        except BadRow:
            return None
        return f"{recording.sources[0].source}\0{channel}"

    def _cuts_of(self, group: List[RowOrRejected]) -> Iterator[Tuple[MonoCut, Sequence[Row]]]:
        rows = [item for item in group if isinstance(item, Row)]
        bad = [item for item in group if isinstance(item, Rejected)]
        for item in bad:
            self.ledger.reject(item)
        if not rows:
            return
        problems: Dict[int, str] = {}
        surplus: List[Rejected] = []
        if isinstance(self.documents, NamedDocuments):
            problems, surplus = self.documents.attach(rows, [item.row for item in bad if item.row is not None])
        reasons = {id(rows[number]): reason for number, reason in problems.items()}
        if self.together:
            if surplus and not reasons:  # the cuts would lack words that were annotated
                reasons = {id(row): surplus[0].reason for row in rows}
            yield from self._whole_cuts(rows, [item for item in bad if not item.harmless], reasons)
            return
        self._reject_more(surplus)
        for row in rows:
            if id(row) in reasons:
                self.ledger.reject(Rejected(row.place, reasons[id(row)]))
            else:
                cut = self._cut([row])
                if cut is not None:
                    yield cut, [row]

    def _whole_cuts(
        self, rows: List[Row], bad: List[Rejected], reasons: Mapping[int, str]
    ) -> Iterator[Tuple[MonoCut, Sequence[Row]]]:
        """Yield the cut of each channel in which nothing was rejected."""
        parts: Dict[Optional[str], List[Row]] = {}
        for row in rows:
            parts.setdefault(self._channel_of(row), []).append(row)
        for channel, part in parts.items():
            culprits = [item.place for item in bad if item.row is not None and self._channel_of(item.row) == channel]
            culprits += [row.place for row in part if id(row) in reasons]
            spoilt = self.spoilt.get(self.finder.file(part[0]))
            culprits += [spoilt] if spoilt is not None else []
            if not culprits:
                cut = self._cut(part)
                if cut is not None:
                    yield cut, part
            for row in part if culprits else ():
                others = f"in one cut with {culprits[0]}, which cannot be mapped"
                reason = reasons.get(id(row))
                self.ledger.reject(Rejected(row.place, reason or others, follows=reason is None))

    def _cut(self, rows: List[Row]) -> Optional[MonoCut]:
        try:
            cut = self._made(rows)
            if not self.cut_ids.add(cut.id):
                raise BadRow(f"field 'recording': another recording has the name {cut.id!r} already")
            source = cut.recording.sources[0].source
            stretch = f"{source}\0{cut.channel}\0{cut.start}\0{cut.duration}"
            if not self.stretches.add(stretch):
                self.ledger.again += 1
                self.ledger.first_again = self.ledger.first_again or self._again(rows[0], self.firsts.get(stretch))
                self.firsts.clear()
            elif not self.ledger.again and len(self.firsts) < MOST_FIRSTS:
                self.firsts[stretch] = rows[0].place, rows[0].channel
            return cut
        except BadRow as error:
            bad, others = error.turn, f"in one cut with {rows[error.turn].place}, which cannot be mapped"
            for i, row in enumerate(rows):
                self.ledger.reject(Rejected(row.place, str(error) if i == bad else others, follows=i != bad))
            return None

    def _again(self, row: Row, first: Optional[Tuple[Place, Optional[str]]]) -> str:
        """Return the place of a row that repeats earlier audio, with a hint, or with the earlier place if known."""
        if self.options.turns in ("table", "hf") and row.start is None and row.end is None:
            return f"{row.place} (--column start=COLUMN --column end=COLUMN, if they are parts of it)"
        if first is None:
            return str(row.place)
        place, channel = first
        are_same = same_channel(channel, row.channel)
        labels = "" if are_same else f", of channel {shown(channel)}; this one is of {shown(row.channel)}"
        return f"{row.place} (as {place}{labels})"

    def _made(self, rows: Sequence[Row]) -> MonoCut:
        """Make a cut of a single turn, or of the complete recording with these turns in time order.

        Raises:
            BadRow: if the recording cannot be opened, or a row is invalid.
        """
        recording, channel = self.finder.recording(rows[0])
        name, begin, duration = rows[0].id, 0.0, recording.duration
        if self.together:
            name = recording.id if recording.num_channels == 1 else f"{recording.id}-{channel + 1}"
        turns = []
        for i, row in enumerate(rows):
            try:
                if len(rows) > 1 and (row.start is None or row.end is None):
                    raise BadRow(f"fields 'start' and 'end': expected, as the recording has {len(rows)} rows")
                start, end = _bounds(row, recording)
                if not self.together:
                    begin, duration = start, round(end - start, 8)
                turns.append(self._turn(row, recording, channel, start, end, begin))
            except BadRow as error:
                raise BadRow(str(error), i) from None
        custom: Dict[str, Any] = {"tasks": tasks_of(rows)}
        original = self.finder.original(rows[0])
        if original is not None:
            custom[ORIGINAL_RECORDING] = original
        cut = MonoCut(name, begin, duration, channel, turns, recording=recording, custom=custom)
        problems = check_cut(cut)
        if problems:
            match = _TURN.match(problems[0])
            raise BadRow(_TURN.sub("", problems[0], count=1), int(match[1]) if match else 0)
        return cut

    def _turn(
        self, row: Row, recording: Recording, channel: int, start: float, end: float, offset: float
    ) -> SupervisionSegment:
        if row.text is None or not row.text.strip():
            raise BadRow("field 'text': expected words, found nothing")
        language = None
        if row.language is not None:
            problem = language_problem(row.language)
            if problem:
                raise BadRow(f"field 'language': {problem}")
            language = canonical_tag(row.language)  # fr for FRA, pt-BR for pt_br
        text, entities = finish_text(row.text, row.entities, self.options.normaliser, language, self.options.widen)
        if self.options.written:
            row.custom["written"] = " ".join(row.text.split())
        custom: Dict[str, Any] = dict(row.custom)
        if entities is not None:
            custom["entities"] = entities
        if row.endpoint is not None:
            custom["endpoint"] = row.endpoint
        return SupervisionSegment(
            id=row.id,
            recording_id=recording.id,
            start=round(start - offset, 8),
            duration=round(end - start, 8),
            channel=channel,
            text=text,
            language=language,
            speaker=row.speaker,
            custom=custom or None,
        )

    def _reject_more(self, items: Iterable[Rejected]) -> None:
        for item in items:
            self.ledger.read += 1
            self.ledger.reject(item)

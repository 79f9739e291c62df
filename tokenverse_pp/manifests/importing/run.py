"""The whole import: rows in, a manifest and an account of every row out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from lhotse import MonoCut
from tqdm import tqdm

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.ids import NameSet
from tokenverse_pp.manifests.importing.annotations import (
    Attached,
    NamedDocuments,
    SentencesInOrder,
    open_documents,
)
from tokenverse_pp.manifests.importing.audio import AudioFinder
from tokenverse_pp.manifests.importing.audio_out import AudioOut
from tokenverse_pp.manifests.importing.cuts import CutMaker, reject_group
from tokenverse_pp.manifests.importing.grouping import by_recording
from tokenverse_pp.manifests.importing.ledger import Ledger
from tokenverse_pp.manifests.importing.options import RECORDING, ImportOptions
from tokenverse_pp.manifests.importing.rows import BadRow, Rejected, Row, RowOrRejected
from tokenverse_pp.manifests.importing.sources import check_paths, rows_of
from tokenverse_pp.manifests.rows import check_output, writing_rows

Say = Callable[[str], None]


def import_manifest(output: Path, options: ImportOptions, say: Say = print) -> Ledger:
    """Read a corpus as the options say and write its cuts to ``output``.

    Raises:
        UserError: where anything cannot be mapped, unless ``options.skip_bad``; then nothing is written but the list
            of the rejected rows, if one is wanted.
    """
    check_output(output)
    check_paths(options)
    audio_out = AudioOut(options.audio_out or output.parent / f"{output.name.split('.')[0]}_audio")
    ledger = Ledger()
    done = False
    try:
        with writing_rows(output) as writer:
            for cut, rows in _Import(options, ledger, audio_out).cuts():
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


@dataclass
class _Import:
    """One import under way."""

    options: ImportOptions
    ledger: Ledger
    audio_out: AudioOut

    def __post_init__(self) -> None:
        options = self.options
        self.finder = AudioFinder(options.folder, options.sampling_rate, options.allow_pipes, self.audio_out)
        self.maker = CutMaker(self.finder, options.normaliser, options.widen)
        self.documents = open_documents(options.brat, options.conll, options.discontinuous)
        self.row_ids, self.cut_ids = NameSet(), NameSet()
        self.together = options.per == RECORDING

    def cuts(self) -> Iterator[Tuple[MonoCut, Sequence[Row]]]:
        """Cuts with the rows they are made of; the others go to the ledger."""
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
        """Every row, counted; with a known audio file and an id of its own."""
        read = rows_of(self.options, self.audio_out)
        rows = self.documents.attach(read) if isinstance(self.documents, SentencesInOrder) else read
        for item in tqdm(rows, desc="import", unit=" rows", disable=None, leave=False):
            self.ledger.read += 1
            if isinstance(item, Row):
                item = self._opened(item)
            if isinstance(item, Rejected) and item.row is None:
                self._check_unknown(item)
            if isinstance(self.documents, NamedDocuments):
                self.documents.note(item)
            yield item

    def _opened(self, row: Row) -> RowOrRejected:
        try:
            self.finder.recording(row)
        except BadRow as error:
            return Rejected(row.place, str(error), row)
        if not self.row_ids.add(row.id):
            return Rejected(row.place, f"field 'id': another row has {row.id!r} already", row)
        return row

    def _check_unknown(self, item: Rejected) -> None:
        """A row of an unknown recording cannot be left out of a cut that may need it."""
        if self.together and self.options.skip_bad and not item.harmless:
            raise UserError(
                f"{item}: its recording is not known, so that --skip-bad cannot leave out the cut that it belongs to; "
                "mend it, or use --one-cut-per row"
            )

    def _keyed(self) -> Iterator[Tuple[str, float, RowOrRejected]]:
        for number, item in enumerate(self._items()):
            row = item.row if isinstance(item, Rejected) else item
            key = f"\0{number}"
            if row is not None and isinstance(self.documents, NamedDocuments):
                # A document has all channels of its recording, which resampling writes to files of their own.
                key = os.path.normpath(row.audio) if row.audio else row.recording or key
            elif row is not None:
                key = self._channel_of(row) or key
            yield key, (row.start or 0.0) if row is not None else 0.0, item

    def _channel_of(self, row: Row) -> Optional[str]:
        """The audio file and channel of a row, None where they are not to be had."""
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
        attached = Attached()
        if isinstance(self.documents, NamedDocuments):
            attached = self.documents.attach(rows, [item.row for item in bad if item.row is not None])
        reasons = {id(rows[number]): reason for number, reason in attached.problems.items()}
        if self.together:
            if attached.surplus and not reasons:  # the cuts would lack words that were annotated
                reasons = {id(row): attached.surplus[0].reason for row in rows}
            yield from self._whole_cuts(rows, [item for item in bad if not item.harmless], reasons)
            return
        self._reject_more(iter(attached.surplus))
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
        """The cut of each channel, if nothing in it was rejected."""
        parts: Dict[Optional[str], List[Row]] = {}
        for row in rows:
            parts.setdefault(self._channel_of(row), []).append(row)
        for channel, part in parts.items():
            culprits = [item.place for item in bad if item.row is not None and self._channel_of(item.row) == channel]
            culprits += [row.place for row in part if id(row) in reasons]
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
            cut = self.maker.of_recording(rows) if self.together else self.maker.of_row(rows[0])
            if not self.cut_ids.add(cut.id):
                raise BadRow(f"field 'recording': another recording has the name {cut.id!r} already")
            return cut
        except BadRow as error:
            for item in reject_group(rows, error):
                self.ledger.reject(item)
            return None

    def _reject_more(self, items: Iterator[Rejected]) -> None:
        for item in items:
            self.ledger.read += 1
            self.ledger.reject(item)

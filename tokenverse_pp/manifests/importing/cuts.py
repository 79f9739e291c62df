"""Rows -> cuts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from lhotse import MonoCut, Recording, SupervisionSegment

from tokenverse_pp.languages import canonical_tag, language_problem
from tokenverse_pp.manifests.importing.audio import AudioFinder
from tokenverse_pp.manifests.importing.rows import BadRow, Rejected, Row
from tokenverse_pp.manifests.importing.texts import AS_IT_IS, finish_text
from tokenverse_pp.manifests.labels import check_cut

OVERSHOOT = 0.1  # seconds by which annotators' turns may end after their recording
NEEDS = {"scd": "speaker", "endp": "endpoint", "ner": "entities", "lid": "language"}
_TURN = re.compile(r"supervision (\d+), ")


@dataclass(frozen=True)
class CutMaker:
    """Makes cuts of rows that have found their audio.

    Args:
        normaliser, widen: see `finish_text`.
    """

    finder: AudioFinder
    normaliser: str = AS_IT_IS
    widen: bool = False

    def of_row(self, row: Row) -> MonoCut:
        """A cut that is this turn and nothing else (raises BadRow)."""
        recording, channel = self.finder.recording(row)
        start, end = _bounds(row, recording)
        turn = self._turn(row, recording, channel, start, end, offset=start)
        return _checked(row.id, start, round(end - start, 8), channel, recording, [turn], [row])

    def of_recording(self, rows: Sequence[Row]) -> MonoCut:
        """A cut that is the whole recording, with these turns in order of time.

        Raises:
            BadRow: for all of them. ``culprit`` of `BadTurn` says which.
        """
        recording, channel = self.finder.recording(rows[0])
        turns = []
        for i, row in enumerate(rows):
            try:
                if len(rows) > 1 and (row.start is None or row.end is None):
                    raise BadRow(f"fields 'start' and 'end': expected, as the recording has {len(rows)} rows")
                start, end = _bounds(row, recording)
                turns.append(self._turn(row, recording, channel, start, end, offset=0.0))
            except BadRow as error:
                raise BadTurn(str(error), i) from None
        name = recording.id if recording.num_channels == 1 else f"{recording.id}-{channel + 1}"
        return _checked(name, 0.0, recording.duration, channel, recording, turns, rows)

    def _turn(
        self, row: Row, recording: Recording, channel: int, start: float, end: float, offset: float
    ) -> SupervisionSegment:
        if row.text is None or not row.text.strip():
            raise BadRow("field 'text': expected words, found nothing")
        language = _language(row)
        text, entities = finish_text(row.text, row.entities, self.normaliser, language, self.widen)
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


def _language(row: Row) -> Optional[str]:
    """A row's code in its canonical form: ``fr`` for ``FR`` and ``fra``, ``pt-BR`` for ``pt_br`` (raises BadRow)."""
    if row.language is None:
        return None
    problem = language_problem(row.language)
    if problem:
        raise BadRow(f"field 'language': {problem}")
    return canonical_tag(row.language)


class BadTurn(BadRow):
    """A row that spoils the cut it is in: ``culprit`` is its number among the cut's rows."""

    def __init__(self, reason: str, culprit: int):
        super().__init__(reason)
        self.culprit = culprit


def tasks_of(rows: Sequence[Row]) -> List[str]:
    """The tasks that the rows of a cut are labelled for.

    What the rows say themselves counts (a task that all of them name); otherwise each task whose field all of
    them have.
    """
    named = [row.tasks for row in rows if row.tasks is not None]
    if named:
        first = named[0] if len(named) == len(rows) else ["asr"]
        return [name for name in first if all(name in tasks for tasks in named)]
    return ["asr"] + [name for name, field in NEEDS.items() if all(getattr(row, field) is not None for row in rows)]


def reject_group(rows: Sequence[Row], error: BadRow) -> List[Rejected]:
    """The rows of a cut that cannot be made, each with its reason."""
    culprit = error.culprit if isinstance(error, BadTurn) else 0
    bad = Rejected(rows[culprit].place, str(error))
    others = f"in one cut with {bad.place}, which cannot be mapped"
    return [bad if i == culprit else Rejected(row.place, others, follows=True) for i, row in enumerate(rows)]


def _bounds(row: Row, recording: Recording) -> Tuple[float, float]:
    start = row.start if row.start is not None else 0.0
    end = row.end if row.end is not None else recording.duration
    if end > recording.duration + OVERSHOOT or start >= recording.duration:
        raise BadRow(f"field 'end': {start:g} to {end:g} s is not inside the recording of {recording.duration:.3f} s")
    end = min(end, recording.duration)
    if end <= start:
        raise BadRow(f"field 'end': expected it after the start, found {start:g} to {end:g} s")
    return start, end


def _checked(
    name: str,
    start: float,
    duration: float,
    channel: int,
    recording: Recording,
    turns: List[SupervisionSegment],
    rows: Sequence[Row],
) -> MonoCut:
    """A cut that keeps the label schema (raises BadTurn)."""
    cut = MonoCut(name, start, duration, channel, turns, recording=recording, custom={"tasks": tasks_of(rows)})
    problems = check_cut(cut)
    if problems:
        match = _TURN.match(problems[0])
        raise BadTurn(_TURN.sub("", problems[0], count=1), int(match[1]) if match else 0)
    return cut

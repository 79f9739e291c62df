"""Import transcripts written by `tokenverse-pp transcribe --format json`, with one turn per sentence of a speaker.

A transcript has the labels of every task, so corrected output of a model can be used for training. A turn ends at a
speaker change and at an endpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, List, Set, Tuple, Union

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import json_of
from tokenverse_pp.data.importing.rows import (
    BadRow,
    Place,
    Rejected,
    Row,
    RowOrRejected,
    Span,
    files_of,
    lines_of,
    safe_id,
    shown,
    unpacked,
)
from tokenverse_pp.tasks.result import Transcript

JSON_LINES = (".jsonl", ".ndjson")
SHORTEST = 0.001  # minimum seconds of a turn, e.g. if its only word is at the end of the audio
ENDPOINT = "[ENDP]"


def read_transcripts(path: Path) -> Iterator[RowOrRejected]:
    """Yield the turns of transcripts from files with one transcript as JSON, or one per line.

    The field ``name`` of a transcript is its recording. Speakers are ``turn1``, ``turn2``, .., as the model recognises
    speaker changes, not speakers. Labels of a task that was not decoded are missing, not empty.
    """
    for file in files_of(path, (".json", *JSON_LINES)):
        for place, data in _texts(file):
            if isinstance(data, Rejected):
                yield data
                continue
            try:
                transcript = Transcript.from_dict(json_of(data, "transcript"))
            except UserError as error:
                yield Rejected(place, str(error))
                continue
            yield from _rows(place, transcript)


def _texts(file: Path) -> Iterator[Tuple[Place, Union[str, Rejected]]]:
    """The JSON texts of a file, each with the line at which it begins."""
    lines = ((place, line) for place, line in lines_of(file) if isinstance(line, Rejected) or line.strip())
    if unpacked(file).suffix.lower() in JSON_LINES:
        yield from lines
        return
    found = list(lines)
    texts = [line for _, line in found if isinstance(line, str)]
    if len(texts) == len(found) and texts:
        try:
            json_of(texts[0], "")
        except UserError:  # one transcript over several lines
            found = [(found[0][0], "\n".join(texts))]
    yield from found


def _rows(place: Place, transcript: Transcript) -> Iterator[RowOrRejected]:
    recording = transcript.name
    if not transcript.words:
        yield Rejected(place, "a transcript without words", Row(place, "", recording), harmless=True)
        return
    try:
        bounds = _bounds(transcript)
    except BadRow as error:
        yield Rejected(place, str(error), Row(place, "", recording))
        return
    for number, (first, stop, speaker) in enumerate(bounds, start=1):
        row = Row(place, f"{safe_id(recording)}-{number:04d}", recording)
        try:
            _fill(row, transcript, first, stop)
        except BadRow as error:
            yield Rejected(place, f"words {first + 1} to {stop}: {error}", row)
            continue
        row.speaker = speaker if "scd" in transcript.tasks else None
        yield row


def _bounds(transcript: Transcript) -> List[Tuple[int, int, str]]:
    """Return the first word, last word (exclusive) and speaker of each turn.

    Raises:
        BadRow: if a word is in no turn or in two, or no mark gives the positions of the endpoints.
    """
    ends = _endpoints(transcript)
    if transcript.endpoints and not ends:
        raise BadRow(f"field 'marks': expected {ENDPOINT} for each of the endpoints, found none")
    found, at = [], 0
    for turn in transcript.spans():
        if turn.first != at:
            raise BadRow(
                f"field 'turns': expected each word in one turn, found turn {turn.number} from {turn.first} on"
            )
        at = turn.stop
        stops = sorted({end for end in ends if turn.first < end < turn.stop} | {turn.stop})
        found += [(a, b, f"turn{turn.number}") for a, b in zip([turn.first, *stops], stops)]
    if at != len(transcript.words):
        raise BadRow(f"field 'turns': expected each word in one turn, found none for words {at + 1} and on")
    return found


def _endpoints(transcript: Transcript) -> Set[int]:
    """Return the number of words before each endpoint."""
    return {mark.position for mark in transcript.marks if mark.text == ENDPOINT and "endp" in transcript.tasks}


def _fill(row: Row, transcript: Transcript, first: int, stop: int) -> None:
    """Set the fields of a row from words ``first`` to ``stop`` of the transcript (raises BadRow)."""
    text, bounds = "", []
    for word in transcript.words[first:stop]:
        text = f"{text} {word.text}" if text else word.text
        bounds.append((len(text) - len(word.text), len(text)))
    row.text = text or None
    last = transcript.duration or float("inf")
    row.start = max(min(transcript.words[first].start, last - SHORTEST), 0.0)
    row.end = max(min(transcript.words[stop - 1].end, last), row.start + SHORTEST)
    if "ner" in transcript.tasks:
        row.entities = _entities(transcript, first, stop, bounds)
    if "endp" in transcript.tasks:
        row.endpoint = stop in _endpoints(transcript)
    if "punct" in transcript.tasks:
        row.custom["written"] = transcript.written_text(first, stop)
    row.language = transcript.language


def _entities(transcript: Transcript, first: int, stop: int, bounds: List[Tuple[int, int]]) -> List[Span]:
    found: List[Span] = []
    for entity in transcript.entities:
        if first <= entity.first and entity.stop <= stop:
            found.append((bounds[entity.first - first][0], bounds[entity.stop - 1 - first][1], entity.type))
        elif entity.first < stop and first < entity.stop:
            raise BadRow(f"field 'entities': {shown(entity.text)} reaches from one turn into the next")
    return found

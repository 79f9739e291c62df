"""Conversational corpora: long recordings with turns, written as cuts of several turns.

Also converts any manifest of turns (cuts, or recordings and supervisions) into conversations.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

from lhotse import RecordingSet, SupervisionSet
from lhotse.audio import Recording
from lhotse.cut import Cut, MonoCut
from lhotse.supervision import SupervisionSegment
from lhotse.utils import fastcopy

from tokenverse_pp.base.errors import CONTROL, UserError
from tokenverse_pp.base.files import is_finite
from tokenverse_pp.base.languages import checked_language
from tokenverse_pp.data.corpora.common import (
    CorpusPart,
    LeftOut,
    Say,
    at_16_khz,
    stem,
    write_checked_files,
    write_parts,
)
from tokenverse_pp.data.editing.conversations import (
    DEFAULT_OPTIONS,
    ConversationOptions,
    ReadWords,
    TurnWords,
    conversation_cuts,
)
from tokenverse_pp.data.labels import LABEL_SOURCE, type_problems
from tokenverse_pp.data.manifests import load_whole, read_cuts, shortened
from tokenverse_pp.data.normalise import NORMALISERS
from tokenverse_pp.tasks.registry import REGISTRY

MIXED_TASKS = ("asr", "scd", "endp", "lid")
SIDES = 2  # of a telephone call
ONE_SPEAKER_TASKS = ("asr", "endp", "lid")  # a channel of its own has no speaker changes to learn


@dataclass(frozen=True)
class Track:
    """One channel of a recording and its turns (times from the recording's start)."""

    prefix: str
    recording: Recording
    channel: int
    turns: Sequence[SupervisionSegment]
    custom: Dict[str, Any] = field(default_factory=dict)  # other custom fields of its cuts


def by_recording(part: CorpusPart) -> Dict[str, List[SupervisionSegment]]:
    """The turns of a part by recording id, sorted by it, each with the part's language."""
    turns: Dict[str, List[SupervisionSegment]] = {
        recording.id: [] for recording in sorted(part.recordings, key=lambda r: r.id)
    }
    for turn in part.supervisions:
        turns[turn.recording_id].append(fastcopy(turn, language=part.language))
    return turns


def mixed_tracks(part: CorpusPart, folder: Path, jobs: int) -> Iterator[Track]:
    """One track per recording: its only channel, or the mean of all channels."""
    recordings = at_16_khz(part.recordings, folder, jobs)
    for recording_id, turns in by_recording(part).items():
        yield Track(recording_id, recordings[recording_id], 0, turns)


def side_tracks(
    part: CorpusPart, folder: Path, jobs: int, side_of: Callable[[SupervisionSegment], int]
) -> Iterator[Track]:
    """One track per side of a telephone call, written to a separate file."""
    sides = [at_16_khz(part.recordings, folder, jobs, channel) for channel in range(SIDES)]
    for recording_id, turns in by_recording(part).items():
        for channel, recordings in enumerate(sides):
            recording = recordings[recording_id]
            yield Track(recording.id, recording, 0, [turn for turn in turns if side_of(turn) == channel])


def channel_tracks(part: CorpusPart) -> Iterator[Track]:
    """One track per channel of recordings with one file per channel (headsets)."""
    recordings = {recording.id: recording for recording in part.recordings}
    for recording_id, turns in by_recording(part).items():
        for channel in sorted({turn.channel for turn in turns}):
            here = [turn for turn in turns if turn.channel == channel]
            yield Track(f"{recording_id}-{channel}", recordings[recording_id], channel, here)


def write_dialogues(
    parts: Sequence[CorpusPart],
    output_dir: Path,
    corpus: str,
    tasks: Sequence[str],
    tracks_of: Callable[[CorpusPart], Iterable[Track]],
    read_words: ReadWords,
    options: ConversationOptions,
    say: Say = print,
) -> Dict[str, Path]:
    """Windows of all tracks -> the files by part; see `write_parts` and `tokenverse_pp.data.editing.conversations`."""
    options.check()

    def to_cuts(part: CorpusPart, left_out: LeftOut) -> Iterator[MonoCut]:
        custom = {"tasks": list(tasks), "corpus": corpus}
        for track in tracks_of(part):
            yield from conversation_cuts(
                track.recording, track.turns, options, read_words, left_out.add, custom, track.channel, track.prefix
            )

    return write_parts(parts, output_dir, to_cuts, say)


def tracks_of_cuts(cuts: Iterable[Cut], where: str) -> Iterator[Track]:
    """The turns of cuts that follow one another and share recording and channel, with times from the recording's start.

    Raises:
        UserError: for a cut that is not one channel of one recording, for cuts of one recording that do not follow one
            another, and for supervisions of one id.
    """
    seen: Set[Tuple[str, int]] = set()
    for (recording_id, channel), group in groupby(_mono(cuts, where), key=lambda cut: (cut.recording.id, cut.channel)):
        if (recording_id, channel) in seen:
            raise UserError(f"{where}: the cuts of recording {recording_id} do not follow one another: sort them")
        seen.add((recording_id, channel))
        turns: List[SupervisionSegment] = []
        recording: Optional[Recording] = None
        custom: Optional[Dict[str, Any]] = None
        for cut in group:
            recording = cut.recording
            custom = _shared(custom, cut, where)
            turns += [fastcopy(turn, start=round(cut.start + turn.start, 8)) for turn in cut.supervisions]
        assert recording is not None
        yield replace(_track(recording, channel, turns, where), custom=custom or {})


def _shared(custom: Optional[Dict[str, Any]], cut: MonoCut, where: str) -> Dict[str, Any]:
    """The custom fields that all cuts of a recording share, except tasks; their label sources must agree."""
    here = {key: value for key, value in (cut.custom or {}).items() if key != "tasks"}
    if custom is None:
        return here
    if custom.get(LABEL_SOURCE) != here.get(LABEL_SOURCE):
        raise UserError(f"{where}: cut {cut.id}, field 'custom.{LABEL_SOURCE}': not that of the cut before it")
    return {key: value for key, value in custom.items() if key in here and here[key] == value}


def tracks_of_supervisions(recordings: RecordingSet, supervisions: SupervisionSet, where: str) -> Iterator[Track]:
    """The turns of each recording and channel, in the order of the recordings.

    Raises:
        UserError: for a supervision of a recording that is not there or of several channels, and for two of one id.
    """
    by_place: Dict[Tuple[str, int], List[SupervisionSegment]] = {}
    known = {recording.id: recording for recording in recordings}
    for turn in supervisions:
        if turn.recording_id not in known:
            raise UserError(f"{where}: supervision {turn.id}: no recording {turn.recording_id!r}")
        channels = turn.channel if isinstance(turn.channel, list) else [turn.channel]
        if len(channels) != 1:
            raise UserError(f"{where}: supervision {turn.id}, field 'channel': expected one, found {channels}")
        _check_fields(known[turn.recording_id], channels[0], [turn], where)
        by_place.setdefault((turn.recording_id, channels[0]), []).append(turn)
    for recording_id, recording in known.items():
        for channel in recording.channel_ids or [0]:
            if (recording_id, channel) in by_place:
                yield _track(recording, channel, by_place[recording_id, channel], where)


def _mono(cuts: Iterable[Cut], where: str) -> Iterator[MonoCut]:
    for cut in cuts:
        if not isinstance(cut, MonoCut) or cut.recording is None:
            raise UserError(
                f"{where}: cut {cut.id}: expected one channel of one recording, found a {type(cut).__name__}"
            )
        here = f"{where}: cut {cut.id}"
        if not is_finite(cut.start):
            raise UserError(f"{here}: field 'start': expected seconds, found {shortened(repr(cut.start), 80)}")
        _check_fields(cut.recording, cut.channel, cut.supervisions, here)
        yield cut


def _check_fields(recording: Recording, channel: Any, turns: Iterable[SupervisionSegment], where: str) -> None:
    """Check the types of fields, which lhotse does not check (raises UserError)."""
    problems = []
    if not _is_name(recording.id):
        problems.append(f"field 'recording.id': expected a name, found {recording.id!r}")
    if not is_finite(recording.duration):
        problems.append(f"field 'recording.duration': expected seconds, found {recording.duration!r}")
    if not isinstance(recording.channel_ids, list) or type(channel) is not int:
        problems.append(f"field 'channel': expected a number, found {channel!r} of {recording.channel_ids!r}")
    for turn in turns:
        if not _is_name(turn.id):
            problems.append(f"supervision {turn.id!r}: field 'id': expected a name")
        problems += type_problems(f"supervision {turn.id}", turn)
        entities = turn.custom.get("entities") if isinstance(turn.custom, dict) else None
        if entities is not None and not (isinstance(entities, list) and all(isinstance(e, dict) for e in entities)):
            problems.append(f"supervision {turn.id}, field 'custom.entities': expected a list, found {entities!r}")
    if problems:
        raise UserError(f"{where}: {shortened(problems[0])}")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and not CONTROL.search(value)


def _track(recording: Recording, channel: int, turns: Sequence[SupervisionSegment], where: str) -> Track:
    ids = [turn.id for turn in turns]
    if len(set(ids)) < len(ids):
        double = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"{where}: recording {recording.id}: two supervisions have the id {double}")
    prefix = recording.id if recording.num_channels == 1 else f"{recording.id}-{channel}"
    return Track(prefix, recording, channel, turns)


def read_tracks(turns: Path, recordings: Optional[Path] = None) -> Iterator[Track]:
    """Tracks of a manifest of cuts or, with ``recordings``, of supervisions.

    Raises:
        UserError: for a file that is missing or is not what it should be.
    """
    if recordings is None:
        return tracks_of_cuts(read_cuts(turns), str(turns))
    return tracks_of_supervisions(_load(recordings, RecordingSet), _load(turns, SupervisionSet), str(turns))


def _load(path: Path, kind: type):  # type: ignore[no-untyped-def]  # RecordingSet or SupervisionSet, as asked for
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a {kind.__name__}")
    try:
        manifest = load_whole(str(path))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path}: not a lhotse manifest: {reason}") from error
    if not isinstance(manifest, kind):
        raise UserError(f"{path}: expected a {kind.__name__}, found a {type(manifest).__name__}")
    return manifest


def read_words(turn: SupervisionSegment, normaliser: str, language: Optional[str]) -> TurnWords:
    """Words of a turn. It is complete if its label ``endpoint`` or its last sign ``. ? !`` says so."""
    custom = turn.custom or {}
    try:
        text = NORMALISERS[normaliser](turn.text or "", turn.language or language)
    except UserError as error:
        raise UserError(f"supervision {turn.id}: --normaliser {normaliser}: {error}") from None
    if custom.get("entities") and text != turn.text:
        raise UserError(f"supervision {turn.id}: --normaliser {normaliser} would move its entities")
    last = (turn.text or "").rstrip()[-1:]
    endpoint = custom.get("endpoint")
    signs = True if last in (".", "?", "!", "…") else False if last in (",", ";", ":", "-") else None
    return TurnWords(text, endpoint if isinstance(endpoint, bool) else signs, custom.get("entities"))


def write_conversations(
    turns: Path,
    output: Path,
    recordings: Optional[Path] = None,
    tasks: Sequence[str] = ("asr", "scd", "endp"),
    options: ConversationOptions = DEFAULT_OPTIONS,
    normaliser: str = "none",
    language: Optional[str] = None,
    say: Say = print,
) -> None:
    """Windows of all turns -> ``output``, and what is in none of them -> ``<output's name>.left_out.jsonl`` beside it.

    Args:
        turns: cuts (whole recordings, or a cut a turn), or supervisions.
        recordings: of the supervisions.
        tasks: what the turns are labelled for; endp is labelled here.
        language: of turns that name none.

    Raises:
        UserError: naming file and supervision. Nothing is written then.
    """
    options.check()
    unknown = [name for name in tasks if name not in REGISTRY]
    if unknown:
        raise UserError(f"--tasks: unknown task {unknown[0]!r}, expected some of {', '.join(REGISTRY)}")
    language = checked_language(language, "--language") if language else None
    words = partial(read_words, normaliser=normaliser, language=language)
    left_out = LeftOut()

    def cuts() -> Iterator[MonoCut]:
        for track in read_tracks(turns, recordings):
            spoken = [fastcopy(turn, language=turn.language or language) for turn in track.turns]
            yield from conversation_cuts(
                track.recording,
                spoken,
                options,
                words,
                left_out.add,
                {**track.custom, "tasks": list(tasks)},
                track.channel,
                track.prefix,
            )

    write_checked_files({output: (cuts(), left_out)}, output.with_name(f"{stem(output)}.left_out.jsonl"), say)

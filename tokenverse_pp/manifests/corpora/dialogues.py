"""Cuts of several turns, for corpora of conversations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence

from lhotse.audio import Recording
from lhotse.cut import MonoCut
from lhotse.supervision import SupervisionSegment
from lhotse.utils import fastcopy

from tokenverse_pp.manifests.conversations import ConversationOptions, ReadWords, conversation_cuts
from tokenverse_pp.manifests.corpora.audio import at_16_khz
from tokenverse_pp.manifests.corpora.parts import LeftOut, Part, Say, write_parts

MIXED_TASKS = ("asr", "scd", "endp", "lid")
SIDES = 2  # of a telephone call
ONE_SPEAKER_TASKS = ("asr", "endp", "lid")  # a channel of its own has no speaker changes to learn


@dataclass(frozen=True)
class Track:
    """What is heard together: one channel of a recording, and the turns on it (times from the recording's start)."""

    prefix: str
    recording: Recording
    channel: int
    turns: Sequence[SupervisionSegment]
    custom: Dict[str, Any] = field(default_factory=dict)  # what its cuts say besides their tasks


def by_recording(part: Part) -> Dict[str, List[SupervisionSegment]]:
    """The turns of a part by recording id, sorted by it, each with the part's language."""
    turns: Dict[str, List[SupervisionSegment]] = {
        recording.id: [] for recording in sorted(part.recordings, key=lambda r: r.id)
    }
    for turn in part.supervisions:
        turns[turn.recording_id].append(fastcopy(turn, language=part.language))
    return turns


def mixed_tracks(part: Part, folder: Path, jobs: int) -> Iterator[Track]:
    """One track a recording: its only channel, or the mean of all."""
    recordings = at_16_khz(part.recordings, folder, jobs)
    for recording_id, turns in by_recording(part).items():
        yield Track(recording_id, recordings[recording_id], 0, turns)


def side_tracks(part: Part, folder: Path, jobs: int, side_of: Callable[[SupervisionSegment], int]) -> Iterator[Track]:
    """One track a side of a telephone call, written to a file of its own."""
    sides = [at_16_khz(part.recordings, folder, jobs, channel) for channel in range(SIDES)]
    for recording_id, turns in by_recording(part).items():
        for channel, recordings in enumerate(sides):
            recording = recordings[recording_id]
            yield Track(recording.id, recording, 0, [turn for turn in turns if side_of(turn) == channel])


def channel_tracks(part: Part) -> Iterator[Track]:
    """One track a channel of recordings that hold a file for each (headsets)."""
    recordings = {recording.id: recording for recording in part.recordings}
    for recording_id, turns in by_recording(part).items():
        for channel in sorted({turn.channel for turn in turns}):
            here = [turn for turn in turns if turn.channel == channel]
            yield Track(f"{recording_id}-{channel}", recordings[recording_id], channel, here)


def write_dialogues(
    parts: Sequence[Part],
    output_dir: Path,
    corpus: str,
    tasks: Sequence[str],
    tracks_of: Callable[[Part], Iterable[Track]],
    read_words: ReadWords,
    options: ConversationOptions,
    say: Say = print,
) -> Dict[str, Path]:
    """Windows of all tracks -> the files by part; see `write_parts` and `tokenverse_pp.manifests.conversations`."""
    options.check()

    def to_cuts(part: Part, left_out: LeftOut) -> Iterator[MonoCut]:
        custom = {"tasks": list(tasks), "corpus": corpus}
        for track in tracks_of(part):
            yield from conversation_cuts(
                track.recording, track.turns, options, read_words, left_out.add, custom, track.channel, track.prefix
            )

    return write_parts(parts, output_dir, to_cuts, say)

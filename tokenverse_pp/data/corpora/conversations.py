"""Conversational corpora: long recordings with turns, written as cuts of several turns, labelled for asr, endp and lid.

This module reads AMI (meetings of four speakers), and has the functions that telephone calls
(`tokenverse_pp.data.corpora.telephone`) and earnings calls share with it. If several speakers share a channel, the cuts
are also labelled for scd.
"""

from __future__ import annotations

import bisect
import re
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections import defaultdict
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from lhotse.cut import MonoCut
from lhotse.supervision import SupervisionSegment
from lhotse.utils import fastcopy

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.corpora.common import (
    NO_AUDIO,
    CorpusPart,
    LeftOut,
    Preparation,
    at_16_khz,
    is_written,
    lhotse_recipe,
    require,
    write_parts,
)
from tokenverse_pp.data.corpora.resume import ALL, CorpusGroup, in_groups
from tokenverse_pp.data.editing.conversations import (
    DEFAULT_OPTIONS,
    ConversationOptions,
    Track,
    TurnWords,
    conversation_cuts,
)
from tokenverse_pp.data.normalise import NORMALISERS, Normaliser

MIXED_TASKS = ("asr", "scd", "endp", "lid")
ONE_SPEAKER_TASKS = ("asr", "endp", "lid")  # a channel with one speaker has no speaker changes to learn


def turns_by_recording(part: CorpusPart) -> Dict[str, List[SupervisionSegment]]:
    """Return the turns of a part by recording id, sorted by id, each with the part's language."""
    turns: Dict[str, List[SupervisionSegment]] = {name: [] for name in sorted(r.id for r in part.recordings)}
    for turn in part.supervisions:
        turns[turn.recording_id].append(fastcopy(turn, language=part.language))
    return turns


def mixed_tracks(part: CorpusPart, folder: Path, jobs: int) -> Iterator[Track]:
    """Yield one track per recording: its only channel, or the mean of all channels, written to ``folder/<part>``."""
    recordings = at_16_khz(part.recordings, folder / part.name, jobs)
    for name, turns in turns_by_recording(part).items():
        yield Track(name, recordings[name], 0, turns)


def write_dialogues(
    run: Preparation,
    parts: Sequence[CorpusPart],
    corpus: str,
    tasks: Sequence[str],
    tracks_of: Callable[[CorpusPart, Path, int], Iterable[Track]],
    read_words: Callable[..., TurnWords],
    options: ConversationOptions,
) -> Dict[str, Path]:
    """Write the windows of all tracks (see `tokenverse_pp.data.editing.conversations`) and return the files by part.

    Args:
        tracks_of: called with a part, the folder of converted audio and the number of processes.
        read_words: called with a turn, and the run's ``normaliser`` and ``written``.
    """
    custom = {"tasks": list(tasks), "corpus": corpus}
    words = partial(read_words, normaliser=NORMALISERS[run.normaliser], written=run.written)

    def to_cuts(part: CorpusPart, left_out: LeftOut) -> Iterator[MonoCut]:
        for track in tracks_of(part, run.output_dir / "audio", run.jobs):
            yield from conversation_cuts(track, options, words, left_out.add, custom)

    return write_parts(run, parts, to_cuts)


MICS = {"ihm-mix": "*.Mix-Headset.wav", "sdm": "*.Array1-01.wav", "mdm8-bf": "*_MDM8.wav", "ihm": "*.Headset-?.wav"}
AMI_SPLITS = ("train", "dev", "test")
AMI_ANNOTATIONS = "ami_public_manual_1.6.2"
AMI_LAYOUT = (
    "<meeting>/audio/<meeting>.{Mix-Headset,Array1-01,Headset-<n>}.wav or beamformed/<meeting>/<meeting>_MDM8.wav, "
    f"at any depth, for meetings of train, dev and test, and the annotations {AMI_ANNOTATIONS} (folder or .zip)"
)
_HEADSET = re.compile(r"\.Headset-([0-9])\.wav$")
COLLAR = 0.011  # maximum seconds between the end of a word and the mark after it; annotated to 10 ms
Marks = Dict[Tuple[str, str], List[Tuple[float, str]]]


def prepare_ami(
    run: Preparation,
    mic: str = "ihm-mix",
    partition: str = "full-corpus-asr",
    annotations: Optional[Path] = None,
    options: ConversationOptions = DEFAULT_OPTIONS,
) -> Dict[str, Path]:
    """Write meetings to ``cuts_{train,dev,test}.jsonl.gz`` as windows of turns. A turn is a sentence or a segment.

    Args:
        mic: ``ihm-mix`` (sum of the headsets), ``sdm`` (one distant microphone), ``mdm8-bf`` (beamformed), or ``ihm``:
            each headset by itself, not labelled for scd.
        partition: which partition on AMI's web page splits the meetings.
        annotations: folder or zip of the annotations, if they are not in the corpus's folder.
    """
    tasks, tracks = (ONE_SPEAKER_TASKS, headset_tracks) if mic == "ihm" else (MIXED_TASKS, mixed_tracks)

    def prepare(_: str) -> Dict[str, Path]:
        parts, marks = _read_ami(run.corpus_dir, mic, partition, annotations)
        return write_dialogues(run, parts, f"ami-{mic}", tasks, tracks, partial(read_ami_words, marks=marks), options)

    given = {"mic": mic, "partition": partition, "annotations": annotations, "windows": asdict(options)}
    read = [run.corpus_dir, *([annotations] if annotations is not None else [])]
    return in_groups(run, "ami", {ALL: CorpusGroup(AMI_SPLITS, read)}, prepare, given)


def _read_ami(
    corpus_dir: Path, mic: str, partition: str, annotations: Optional[Path]
) -> Tuple[List[CorpusPart], Marks]:
    """Return the turns of the splits, and the punctuation."""
    from lhotse.recipes.ami import PARTITIONS
    from lhotse.recipes.ami import prepare_ami as recipe

    require(corpus_dir, [f"**/{MICS[mic]}"], AMI_LAYOUT)
    with tempfile.TemporaryDirectory() as folder:
        place = _annotations(corpus_dir, annotations, Path(folder))
        with lhotse_recipe("ami", corpus_dir, AMI_LAYOUT):
            # The recipe's normalisers drop the punctuation that endpoints are read from.
            manifests = recipe(
                corpus_dir, place, mic=mic, partition=partition, normalize_text="none", keep_punctuation=True
            )
            marks = sentence_marks(place)
            channels = headsets_of(place) if mic == "ihm" else {}
        meetings = {path.name.split(".")[0] for path in (place / "segments").glob("*.segments.xml")}
    names = {split: sorted(meetings & set(PARTITIONS[partition][split])) for split in AMI_SPLITS}
    return [_part(split, manifests[split], names[split], channels) for split in AMI_SPLITS], marks


def _part(
    name: str, manifests: Dict[str, Any], recordings: Iterable[str], headsets: Mapping[str, Set[int]]
) -> CorpusPart:
    """Return a part; its ``unread`` lists recordings with a transcript but without audio, or without that of a headset.

    lhotse takes a headset's position among the files as its number. If a file is missing, a speaker would get the audio
    of another, and the turns of the last speaker would be dropped silently.

    Args:
        headsets: meeting -> the numbers of its speakers' headsets, if each is a channel.
    """
    found = {recording.id for recording in manifests["recordings"]}  # lhotse drops those without audio silently
    unread = [(name, NO_AUDIO) for name in recordings if name not in found]
    for recording in manifests["recordings"]:
        files = [_HEADSET.search(str(source.source)) for source in recording.sources]
        there = {int(file[1]) for file in files if file is not None}
        lacking = (set(range(len(there))) | headsets.get(recording.id, set())) - there
        if lacking:
            unread.append((recording.id, f"its audio of Headset-{min(lacking)} is not there"))
    whole = found - {name for name, _ in unread}
    return CorpusPart(
        name,
        manifests["recordings"].filter(lambda recording: recording.id in whole),
        manifests["supervisions"].filter(lambda turn: turn.recording_id in whole),
        "en",
        unread,
    )


def headset_tracks(part: CorpusPart, folder: Path, jobs: int) -> Iterator[Track]:
    """Yield one track per channel of recordings with one file per channel; the audio is not converted."""
    recordings = {recording.id: recording for recording in part.recordings}
    for name, turns in turns_by_recording(part).items():
        for channel in sorted({turn.channel for turn in turns}):
            here = [turn for turn in turns if turn.channel == channel]
            yield Track(f"{name}-{channel}", recordings[name], channel, here)


def _annotations(corpus_dir: Path, given: Optional[Path], folder: Path) -> Path:
    """Return the folder of the annotations. A zip is unpacked to ``folder``: lhotse would write into the corpus."""
    for path in [given] if given is not None else [corpus_dir / AMI_ANNOTATIONS, corpus_dir / f"{AMI_ANNOTATIONS}.zip"]:
        if path.is_dir():
            require(path, ["corpusResources/meetings.xml", "segments/*.xml", "words/*.xml"], AMI_LAYOUT)
            return path
        if path.is_file():
            with lhotse_recipe("ami", path, AMI_LAYOUT), zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
            return folder
    raise UserError(f"{given or corpus_dir}: no annotations; expected {AMI_LAYOUT}")


def _speakers(annotations: Path) -> Iterator[Tuple[str, Mapping[str, str]]]:
    """Yield the meeting and the attributes of each speaker."""
    for meeting in ElementTree.parse(annotations / "corpusResources" / "meetings.xml").getroot():
        for speaker in meeting:
            yield meeting.attrib["observation"], speaker.attrib


def headsets_of(annotations: Path) -> Dict[str, Set[int]]:
    """Return meeting -> the numbers of its speakers' headsets."""
    headsets: Dict[str, Set[int]] = defaultdict(set)
    for meeting, speaker in _speakers(annotations):
        headsets[meeting].add(int(speaker["channel"]))
    return dict(headsets)


def sentence_marks(annotations: Path) -> Marks:
    """Return the punctuation marks of the annotations by (meeting, speaker), as (seconds, mark) in time order.

    lhotse ends a supervision at each full stop and drops the stop.
    """
    speakers = {(meeting, about["nxt_agent"]): about["global_name"] for meeting, about in _speakers(annotations)}
    marks: Marks = defaultdict(list)
    for path in sorted((annotations / "words").glob("*.words.xml")):
        meeting_id, agent, _ = path.stem.split(".")
        if (meeting_id, agent) not in speakers:
            continue
        for word in ElementTree.parse(path).getroot():
            if word.tag == "w" and word.get("punc") and "endtime" in word.attrib:
                mark = (float(word.attrib["endtime"]), (word.text or "").strip())
                marks[meeting_id, speakers[meeting_id, agent]].append(mark)
    return {key: sorted(found) for key, found in marks.items()}


def read_ami_words(turn: SupervisionSegment, marks: Marks, normaliser: Normaliser, written: bool) -> TurnWords:
    """Return the words of a turn; it is complete if and only if it ends in ``. ? !``.

    Args:
        written: also return the written text.
    """
    here = marks.get((turn.recording_id, turn.speaker), [])
    first = bisect.bisect_left(here, (turn.end - COLLAR, ""))
    last = bisect.bisect_right(here, (turn.end + COLLAR, "\uffff"))
    last_marks = [mark for _, mark in here[first:last]]
    complete = any(mark in (".", "?", "!") for mark in last_marks)
    text = normaliser(turn.text or "", turn.language)
    shown = (turn.text or "").rstrip()
    shown += "".join(mark for mark in last_marks if not shown.endswith(mark))  # lhotse drops full stops
    return TurnWords(text, complete, written=shown if written and is_written(shown, text) else None)

"""AMI meetings of four speakers, labelled for asr, scd, endp and lid (headset channels: without scd)."""

from __future__ import annotations

import bisect
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from lhotse.supervision import SupervisionSegment

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.corpora import conversations as dialogues
from tokenverse_pp.data.corpora.common import CorpusPart, Say, lhotse_recipe, require
from tokenverse_pp.data.editing.conversations import DEFAULT_OPTIONS, ConversationOptions, TurnWords
from tokenverse_pp.data.normalise import NORMALISERS, Normaliser

MICS = {"ihm-mix": "*.Mix-Headset.wav", "sdm": "*.Array1-01.wav", "mdm8-bf": "*_MDM8.wav", "ihm": "*.Headset-?.wav"}
PARTITIONS = ("full-corpus-asr", "full-corpus", "scenario-only")
SPLITS = ("train", "dev", "test")
ANNOTATIONS = "ami_public_manual_1.6.2"
LAYOUT = (
    "<meeting>/audio/<meeting>.{Mix-Headset,Array1-01,Headset-<n>}.wav or beamformed/<meeting>/<meeting>_MDM8.wav, "
    f"at any depth, for meetings of train, dev and test, and the annotations {ANNOTATIONS} (folder or .zip)"
)
COLLAR = 0.011  # seconds between the end of a word and the sign behind it; annotated to 10 ms
Marks = Dict[Tuple[str, str], List[Tuple[float, str]]]


def prepare_ami(
    corpus_dir: Path,
    output_dir: Path,
    mic: str = "ihm-mix",
    partition: str = "full-corpus-asr",
    annotations: Optional[Path] = None,
    options: ConversationOptions = DEFAULT_OPTIONS,
    normaliser: str = "words",
    jobs: int = 1,
    say: Say = print,
) -> Dict[str, Path]:
    """Meetings -> ``cuts_{train,dev,test}.jsonl.gz`` of windows of turns, each as long as a sentence or a segment.

    Args:
        mic: ``ihm-mix`` (sum of the headsets), ``sdm`` (one distant microphone), ``mdm8-bf`` (beamformed), or ``ihm``:
            each headset by itself, not labelled for scd.
        partition: how AMI's own page splits the meetings.
        annotations: folder or zip of the annotations, where they are not in ``corpus_dir``.

    Raises:
        UserError: where the folder is no AMI.
    """
    from lhotse.recipes.ami import prepare_ami as recipe

    require(corpus_dir, [f"**/{MICS[mic]}"], LAYOUT)
    with tempfile.TemporaryDirectory() as folder:
        place = _annotations(corpus_dir, annotations, Path(folder))
        with lhotse_recipe("ami", corpus_dir, LAYOUT):
            # Its normalisers drop the punctuation that we read endpoints from.
            manifests = recipe(
                corpus_dir, place, mic=mic, partition=partition, normalize_text="none", keep_punctuation=True
            )
            marks = sentence_marks(place)
    parts = [CorpusPart(split, **manifests[split], language="en") for split in SPLITS]
    one_speaker = mic == "ihm"

    def tracks(part: CorpusPart):  # type: ignore[no-untyped-def]
        if one_speaker:
            return dialogues.channel_tracks(part)
        return dialogues.mixed_tracks(part, output_dir / "audio" / part.name, jobs)

    return dialogues.write_dialogues(
        parts,
        output_dir,
        f"ami-{mic}",
        dialogues.ONE_SPEAKER_TASKS if one_speaker else dialogues.MIXED_TASKS,
        tracks,
        partial(read_words, marks=marks, normaliser=NORMALISERS[normaliser]),
        options,
        say,
    )


def _annotations(corpus_dir: Path, given: Optional[Path], folder: Path) -> Path:
    """The folder of the annotations; a zip is unpacked into ``folder``, as lhotse would write into the corpus."""
    for path in [given] if given is not None else [corpus_dir / ANNOTATIONS, corpus_dir / f"{ANNOTATIONS}.zip"]:
        if path.is_dir():
            require(path, ["corpusResources/meetings.xml", "segments/*.xml", "words/*.xml"], LAYOUT)
            return path
        if path.is_file():
            with lhotse_recipe("ami", path, LAYOUT), zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
            return folder
    raise UserError(f"{given or corpus_dir}: no annotations; expected {LAYOUT}")


def sentence_marks(annotations: Path) -> Marks:
    """Punctuation marks of the annotations by (meeting, speaker), as (seconds, mark) in time order.

    lhotse ends a supervision at each full stop and drops the stop, so that its end looks like any other.
    """
    speakers = {}
    for meeting in ElementTree.parse(annotations / "corpusResources" / "meetings.xml").getroot():
        for speaker in meeting:
            speakers[meeting.attrib["observation"], speaker.attrib["nxt_agent"]] = speaker.attrib["global_name"]
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


def read_words(turn: SupervisionSegment, marks: Marks, normaliser: Normaliser) -> TurnWords:
    """The words of a turn; it is complete where ``. ? !`` stands at its end, and only there."""
    here = marks.get((turn.recording_id, turn.speaker), [])
    first = bisect.bisect_left(here, (turn.end - COLLAR, ""))
    last = bisect.bisect_right(here, (turn.end + COLLAR, "\uffff"))
    complete = any(mark in (".", "?", "!") for _, mark in here[first:last])
    return TurnWords(normaliser(turn.text or "", turn.language), complete)

"""Conversational corpora: long recordings with turns, written as cuts of several turns, labelled for asr, endp and lid.

- AMI: meetings of four speakers.
- CALLHOME American English and Hub5 2000 (eval2000): telephone calls, distributed by the LDC. Both use the same
  transcription conventions, which `clean` turns into plain text.

Where several speakers share a channel, the cuts are labelled for scd as well.
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
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from lhotse.cut import MonoCut
from lhotse.supervision import SupervisionSegment
from lhotse.utils import fastcopy

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.access import file_problem
from tokenverse_pp.data.corpora.common import (
    CorpusPart,
    LeftOut,
    Say,
    at_16_khz,
    check_written,
    is_written,
    lhotse_recipe,
    require,
    without_audio,
    write_parts,
)
from tokenverse_pp.data.corpora.resume import contents, in_groups
from tokenverse_pp.data.editing.conversations import (
    DEFAULT_OPTIONS,
    ConversationOptions,
    ReadWords,
    Track,
    TurnWords,
    conversation_cuts,
)
from tokenverse_pp.data.normalise import NORMALISERS, Normaliser

MIXED_TASKS = ("asr", "scd", "endp", "lid")
ONE_SPEAKER_TASKS = ("asr", "endp", "lid")  # a channel of its own has no speaker changes to learn


def turns_by_recording(part: CorpusPart) -> Dict[str, List[SupervisionSegment]]:
    """The turns of a part by recording id, sorted by it, each with the part's language."""
    turns: Dict[str, List[SupervisionSegment]] = {name: [] for name in sorted(r.id for r in part.recordings)}
    for turn in part.supervisions:
        turns[turn.recording_id].append(fastcopy(turn, language=part.language))
    return turns


def mixed_tracks(part: CorpusPart, folder: Path, jobs: int) -> Iterator[Track]:
    """One track per recording: its only channel, or the mean of all channels, in the part's folder of ``folder``."""
    recordings = at_16_khz(part.recordings, folder / part.name, jobs)
    for name, turns in turns_by_recording(part).items():
        yield Track(name, recordings[name], 0, turns)


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
    """Write the windows of all tracks (see `tokenverse_pp.data.editing.conversations`) and return the files by part."""
    custom = {"tasks": list(tasks), "corpus": corpus}

    def to_cuts(part: CorpusPart, left_out: LeftOut) -> Iterator[MonoCut]:
        for track in tracks_of(part):
            yield from conversation_cuts(track, options, read_words, left_out.add, custom)

    return write_parts(parts, output_dir, to_cuts, say)


MICS = {"ihm-mix": "*.Mix-Headset.wav", "sdm": "*.Array1-01.wav", "mdm8-bf": "*_MDM8.wav", "ihm": "*.Headset-?.wav"}
AMI_SPLITS = ("train", "dev", "test")
AMI_ANNOTATIONS = "ami_public_manual_1.6.2"
AMI_LAYOUT = (
    "<meeting>/audio/<meeting>.{Mix-Headset,Array1-01,Headset-<n>}.wav or beamformed/<meeting>/<meeting>_MDM8.wav, "
    f"at any depth, for meetings of train, dev and test, and the annotations {AMI_ANNOTATIONS} (folder or .zip)"
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
    written: bool = False,
    jobs: int = 1,
    force: bool = False,
    say: Say = print,
) -> Dict[str, Path]:
    """Meetings -> ``cuts_{train,dev,test}.jsonl.gz`` of windows of turns. A turn is a sentence or a segment.

    Args:
        mic: ``ihm-mix`` (sum of the headsets), ``sdm`` (one distant microphone), ``mdm8-bf`` (beamformed), or ``ihm``:
            each headset by itself, not labelled for scd.
        partition: how AMI's own page splits the meetings.
        annotations: folder or zip of the annotations, where they are not in ``corpus_dir``.
        written: label punct too, by the annotators' punctuation and capitals.
        force: see `in_groups`.

    Raises:
        UserError: where the folder is no AMI.
    """
    options.check()
    check_written(written, normaliser)
    given = {"corpus_dir": corpus_dir, "mic": mic, "partition": partition, "annotations": annotations,
             "windows": asdict(options), "normaliser": normaliser, "written": written}  # fmt: skip

    def prepare(_: str) -> Dict[str, Path]:
        parts, marks = _read_ami(corpus_dir, mic, partition, annotations)
        words = partial(read_ami_words, marks=marks, normaliser=NORMALISERS[normaliser], written=written)
        if mic == "ihm":
            return write_dialogues(parts, output_dir, "ami-ihm", ONE_SPEAKER_TASKS, headset_tracks, words, options, say)
        tracks = partial(mixed_tracks, folder=output_dir / "audio", jobs=jobs)
        return write_dialogues(parts, output_dir, f"ami-{mic}", MIXED_TASKS, tracks, words, options, say)

    read = contents([corpus_dir, *([annotations] if annotations is not None else [])], output_dir)
    return in_groups("ami", output_dir, given, {"all": {"read": read}}, prepare, force, say)


def _read_ami(
    corpus_dir: Path, mic: str, partition: str, annotations: Optional[Path]
) -> Tuple[List[CorpusPart], Marks]:
    """The turns of the splits, and the punctuation."""
    from lhotse.recipes.ami import PARTITIONS
    from lhotse.recipes.ami import prepare_ami as recipe

    require(corpus_dir, [f"**/{MICS[mic]}"], AMI_LAYOUT)
    with tempfile.TemporaryDirectory() as folder:
        place = _annotations(corpus_dir, annotations, Path(folder))
        with lhotse_recipe("ami", corpus_dir, AMI_LAYOUT):
            # Its normalisers drop the punctuation that endpoints are read from.
            manifests = recipe(
                corpus_dir, place, mic=mic, partition=partition, normalize_text="none", keep_punctuation=True
            )
            marks = sentence_marks(place)
        meetings = {path.name.split(".")[0] for path in (place / "segments").glob("*.segments.xml")}
    names = {split: sorted(meetings & set(PARTITIONS[partition][split])) for split in AMI_SPLITS}
    return [_part(split, manifests[split], names[split]) for split in AMI_SPLITS], marks


def _part(name: str, manifests: Dict[str, Any], recordings: Iterable[str]) -> CorpusPart:
    """A part; of the recordings that have a transcript, those without audio are listed."""
    missing = without_audio(recordings, (recording.id for recording in manifests["recordings"]))
    return CorpusPart(name, **manifests, language="en", unread=missing)


def headset_tracks(part: CorpusPart) -> Iterator[Track]:
    """One track per channel of recordings with one file per channel."""
    recordings = {recording.id: recording for recording in part.recordings}
    for name, turns in turns_by_recording(part).items():
        for channel in sorted({turn.channel for turn in turns}):
            here = [turn for turn in turns if turn.channel == channel]
            yield Track(f"{name}-{channel}", recordings[name], channel, here)


def _annotations(corpus_dir: Path, given: Optional[Path], folder: Path) -> Path:
    """The folder of the annotations; a zip is unpacked into ``folder``, as lhotse would write into the corpus."""
    for path in [given] if given is not None else [corpus_dir / AMI_ANNOTATIONS, corpus_dir / f"{AMI_ANNOTATIONS}.zip"]:
        if path.is_dir():
            require(path, ["corpusResources/meetings.xml", "segments/*.xml", "words/*.xml"], AMI_LAYOUT)
            return path
        if path.is_file():
            with lhotse_recipe("ami", path, AMI_LAYOUT), zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
            return folder
    raise UserError(f"{given or corpus_dir}: no annotations; expected {AMI_LAYOUT}")


def sentence_marks(annotations: Path) -> Marks:
    """Punctuation marks of the annotations by (meeting, speaker), as (seconds, mark) in time order.

    lhotse ends a supervision at each full stop and drops the stop.
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


def read_ami_words(turn: SupervisionSegment, marks: Marks, normaliser: Normaliser, written: bool = False) -> TurnWords:
    """The words of a turn; it is complete where ``. ? !`` stands at its end, and only there.

    Args:
        written: give the written text too.
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


CALLHOME_SPLITS = {"train": "train", "dev": "devtest", "test": "evaltest"}
COMPRESSED = "compressed SPHERE files need sph2pipe (lhotse install-sph2pipe)"
CALLHOME_LAYOUT = (
    "LDC97S42/[callhome_eng/]data/{train,devtest,evltest}/*.sph and "
    "LDC97T14/[callhome_english_trans_970711/]transcrpt/{train,devtest,evaltest}/*.txt in one folder "
    f"(or --transcripts for the second); {COMPRESSED}"
)
EVAL2000_LAYOUT = (
    "LDC2002S09/hub5e_00/english/*.sph and LDC2002T43/[2000_hub5_eng_eval_tr/]reference/english/*.txt in one folder "
    f"(or --transcripts for the second); {COMPRESSED}"
)

# An attribute's value may hold a ">": e_form="[we=>we]['re=>are]".
_TAG = re.compile(r"""</?(contraction|(b_|e_)?aside)\b("[^"]*"|'[^']*'|[^>"'])*>""", re.IGNORECASE)
_SOUND = re.compile(r"\{[^}]*\}|\[\[.*?\]\]|\[[^\]]*\]")
_FOREIGN = re.compile(r"<\s*[A-Za-z?][^>]*>?")
_GUESS = re.compile(r"\(\(\s*(.*?)\s*\)\)")
_SIGNS = re.compile(r"[%*+#/~^@]")
_NAME = "&"
NAME_TYPE = "NAME"


def clean(text: str, keep_names: bool = False) -> Optional[str]:
    """An LDC transcript without its marks but with punctuation; None where the words are unknown.

    Sounds (``{breath}``, ``[distortion]``), comments (``[[..]]``) and tags (``<contraction ..>``) go, the signs of
    hesitations, names, asides and mispronounced words (``% & // + ** #``) go and leave the word; a best guess
    ``((like this))`` counts as heard. Not known: ``(( ))``, and speech in another language (``<Spanish ..>``).
    ``keep_names`` leaves the sign of proper names, ``&``.

    >>> clean("%um, &Bob {laugh} was <contraction e_form='x'>there --"), clean("I (( )) so"), clean("<Spanish hola>")
    ('um, Bob was there --', None, None)
    """
    text = _SOUND.sub(" ", _TAG.sub(" ", text))
    if _FOREIGN.search(text) or any(not guess for guess in _GUESS.findall(text)):
        return None
    text = _SIGNS.sub("", _GUESS.sub(r"\1", text))
    return " ".join((text if keep_names else text.replace(_NAME, "")).split())


def read_call_words(
    turn: SupervisionSegment, normaliser: Normaliser, names: bool = False, written: bool = False
) -> TurnWords:
    """Words of a turn; a last sign ``. ? !`` makes it complete, ``, -`` (also ``--``: broken off) not complete.

    Args:
        names: label what the transcribers marked as proper names as entities.
        written: give the written text too.
    """
    text = clean(turn.text or "", keep_names=names)
    if text is None:
        return TurnWords(None)
    complete = {".": True, "?": True, "!": True, ",": False, "-": False}.get(text[-1:])
    entities: Optional[List[Dict[str, Any]]] = None
    plain, shown = normaliser(text, turn.language), text.replace(_NAME, "")
    if names:
        plain, entities = find_names(text, lambda token: normaliser(token, turn.language))
    return TurnWords(plain, complete, entities, shown if written and is_written(shown, plain) else None)


def find_names(text: str, normalise: Callable[[str], str]) -> Tuple[str, List[Dict[str, Any]]]:
    """Text with names marked by ``&`` -> normalised text, and a span of type NAME for each run of marked words.

    A run ends at punctuation: ``&Bob, &Ann`` are two, ``&New &York's`` is one.

    >>> find_names("so &New &York, &Bob said", str.lower)[1][0]
    {'start': 3, 'end': 12, 'type': 'NAME'}
    """
    words: List[str] = []
    spans: List[Dict[str, Any]] = []
    length, in_run = 0, False
    for token in text.split():
        word = normalise(token.replace(_NAME, ""))
        if not word:
            continue
        start = length + bool(words)
        words.append(word)
        length = start + len(word)
        if _NAME in token and in_run:
            spans[-1]["end"] = length
        elif _NAME in token:
            spans.append({"start": start, "end": length, "type": NAME_TYPE})
        in_run = _NAME in token and token[-1].isalnum()
    return " ".join(words), spans


def side_of(turn: SupervisionSegment) -> int:
    """0 for side A, 1 for B, by the speaker's name (``4077_0A``, ``4077_B1``, ``sw_4390-A``).

    lhotse's recipe for eval2000 puts a second speaker on side A (``A1``) on channel 1.
    """
    return 1 if "B" in re.split("[_-]", turn.speaker)[-1] else 0


def prepare_calls(
    corpus: str,
    corpus_dir: Path,
    output_dir: Path,
    transcripts: Optional[Path] = None,
    channels: str = "mixed",
    names: bool = False,
    options: ConversationOptions = DEFAULT_OPTIONS,
    normaliser: str = "words",
    written: bool = False,
    jobs: int = 1,
    force: bool = False,
    say: Say = print,
) -> Dict[str, Path]:
    """Prepare telephone calls of the LDC.

    ``callhome-english`` writes ``cuts_{train,dev,test}.jsonl.gz`` (dev: devtest, test: evaltest); ``eval2000``, the
    Hub5 2000 evaluation of Switchboard and CALLHOME calls, ``cuts_test.jsonl.gz``.

    Args:
        corpus_dir: of CALLHOME, a folder with LDC97S42 and LDC97T14, or LDC97S42 itself.
        transcripts: folder of the transcripts (LDC97T14), where it is elsewhere.
        channels: ``mixed``: the two sides of a call as one channel; ``separate``: each side, not labelled for scd.
        names: label proper names, as far as the transcribers marked them, as entities (ner).
        written: label punct too, by the transcribers' punctuation and capitals.
        force: see `in_groups`.

    Raises:
        UserError: where the folders are not these corpora.
    """
    options.check()
    check_written(written, normaliser)
    given = {"corpus_dir": corpus_dir, "transcripts": transcripts, "channels": channels, "names": names,
             "windows": asdict(options), "normaliser": normaliser, "written": written}  # fmt: skip
    separate = channels == "separate"

    def prepare(_: str) -> Dict[str, Path]:
        return write_dialogues(
            (_callhome if corpus == "callhome-english" else _eval2000)(corpus_dir, transcripts),
            output_dir,
            corpus,
            [*(ONE_SPEAKER_TASKS if separate else MIXED_TASKS), *(["ner"] * names)],
            partial(side_tracks if separate else mixed_tracks, folder=output_dir / "audio", jobs=jobs),
            partial(read_call_words, normaliser=NORMALISERS[normaliser], names=names, written=written),
            options,
            say,
        )

    read = contents([corpus_dir, *([transcripts] if transcripts is not None else [])], output_dir)
    return in_groups(corpus, output_dir, given, {"all": {"read": read}}, prepare, force, say)


prepare_callhome_english = partial(prepare_calls, "callhome-english")
prepare_eval2000 = partial(prepare_calls, "eval2000")


def _callhome(corpus_dir: Path, transcripts: Optional[Path]) -> List[CorpusPart]:
    from lhotse.recipes.callhome_english import prepare_callhome_english as recipe

    speech = corpus_dir / "LDC97S42" if (corpus_dir / "LDC97S42").is_dir() else corpus_dir
    speech = _holding(speech, "data")
    texts = _holding(transcripts if transcripts is not None else corpus_dir / "LDC97T14", "transcrpt")
    require(speech, ["data/train", "data/devtest", "data/evltest"], CALLHOME_LAYOUT)
    require(texts, ["transcrpt/train", "transcrpt/devtest", "transcrpt/evaltest"], CALLHOME_LAYOUT)
    _check_names(speech)
    with lhotse_recipe("callhome-english", corpus_dir, CALLHOME_LAYOUT):
        manifests = recipe(speech, transcript_dir=texts, absolute_paths=True)
    return [
        _part(split, manifests[name], _transcribed(texts / "transcrpt" / name))
        for split, name in CALLHOME_SPLITS.items()
    ]


def _eval2000(corpus_dir: Path, transcripts: Optional[Path]) -> List[CorpusPart]:
    from lhotse.recipes.eval2000 import prepare_eval2000 as recipe

    require(corpus_dir, ["LDC2002S09/hub5e_00/english"], EVAL2000_LAYOUT)
    texts = _holding(transcripts if transcripts is not None else corpus_dir / "LDC2002T43", "reference/english")
    if transcripts is None:
        require(texts, ["reference/english"], EVAL2000_LAYOUT)
    if (texts / "reference" / "english").is_dir():
        texts = texts / "reference" / "english"
    _check_names(corpus_dir)
    with tempfile.TemporaryDirectory() as folder, lhotse_recipe("eval2000", corpus_dir, EVAL2000_LAYOUT):
        manifests = recipe(corpus_dir, folder, transcript_path=texts, absolute_paths=True)
    return [_part("test", manifests, _transcribed(texts))]


def _transcribed(folder: Path) -> List[str]:
    """The calls of a folder of transcripts."""
    return sorted(path.stem for path in folder.rglob("*.txt"))


def _holding(folder: Path, part: str) -> Path:
    """The folder, or the one in it that holds ``part``: the LDC's archives unpack into a folder of their own."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return next((path for path in [folder, *inside] if (path / part).is_dir()), folder)


def side_tracks(part: CorpusPart, folder: Path, jobs: int) -> Iterator[Track]:
    """One track per side of a telephone call, written to a separate file."""
    sides = [at_16_khz(part.recordings, folder / part.name, jobs, channel) for channel in (0, 1)]
    for name, turns in turns_by_recording(part).items():
        for channel, recordings in enumerate(sides):
            recording = recordings[name]
            yield Track(recording.id, recording, 0, [turn for turn in turns if side_of(turn) == channel])


def _check_names(folder: Path) -> None:
    """Check that lhotse can safely open each SPHERE file by its name (raises UserError)."""
    problems = (file_problem(str(path)) for path in sorted(folder.rglob("*.[sS][pP][hH]")))
    problem = next(filter(None, problems), None)
    if problem:
        raise UserError(problem)

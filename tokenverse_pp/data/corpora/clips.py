"""Clips of one utterance each: opening them in parallel, unpacking them from archives, and writing their cuts.

`write_utterances` is what all corpora of read or prepared speech end in.
"""

from __future__ import annotations

import gzip
import math
import shutil
import tarfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple, Union

from lhotse import RecordingSet, SupervisionSet
from lhotse.audio import Recording
from lhotse.cut import MonoCut
from lhotse.recipes.commonvoice import disable_ffmpeg_torchaudio_info
from lhotse.supervision import SupervisionSegment
from lhotse.utils import fastcopy
from tqdm import tqdm

from tokenverse_pp.base.engine import current_engine
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import BLOCK, check_shared, replacing
from tokenverse_pp.data.corpora.common import (
    NO_AUDIO,
    CorpusPart,
    LeftOut,
    LeftOutRow,
    Preparation,
    at_16_khz,
    is_written,
    write_parts,
)
from tokenverse_pp.data.editing.conversations import NO_WORDS, with_original
from tokenverse_pp.data.importing.fields import finish_text
from tokenverse_pp.data.importing.rows import OVERSHOOT, BadRow, Span
from tokenverse_pp.data.labels import check_cut
from tokenverse_pp.data.manifests import reason_of

TASKS = ("asr", "lid")  # not scd and endp: as "no change" they would teach the model to recognise the corpus
ORIGINAL = "orig_text"  # key of a supervision's custom fields: the text before the corpus normalised it, as in lhotse
CLIP_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3")  # of files in archives
SPANS = "spans"  # key of a supervision's custom fields: its entities, before the text is normalised

WrittenOf = Callable[[SupervisionSegment], Optional[str]]


@dataclass(frozen=True)
class Clip:
    """A row of a table of clips.

    Attributes:
        id: of the cut, its recording and its supervision.
        text: as the corpus has it.
        entities: spans of characters of ``text``; None: not annotated.
    """

    id: str
    audio: Path
    text: str
    language: str
    speaker: Optional[str] = None
    gender: Optional[str] = None
    entities: Optional[Sequence[Span]] = None
    custom: Dict[str, Any] = field(default_factory=dict)


Rows = Iterator[Union[Clip, LeftOutRow]]


def if_there(clip: Clip) -> Union[Clip, LeftOutRow]:
    """A clip whose file is there, in the folder where it should be."""
    inside = clip.id == PurePosixPath(clip.id).name and "\0" not in clip.id
    return clip if inside and clip.audio.is_file() else (clip.id, NO_AUDIO)


def part_of(name: str, language: str, rows: Iterable[Union[Clip, LeftOutRow]], jobs: int = 1) -> CorpusPart:
    """A part of a corpus from the rows of its table; clips that cannot be opened, or come twice, are left out.

    Args:
        name: of the part.
        language: ISO 639 code.
        jobs: processes that open clips.
    """
    left_out: List[LeftOutRow] = []
    clips: List[Clip] = []
    seen: Set[str] = set()
    for row in rows:
        if isinstance(row, tuple):
            left_out.append(row)
        elif row.id in seen:
            left_out.append((f"{row.id} again", "its clip has a row already"))
        else:
            seen.add(row.id)
            clips.append(row)
    recordings, supervisions = [], []
    opened = current_engine().map(open_clip, clips, jobs, 64)
    bar = tqdm(opened, total=len(clips), desc=name, mininterval=1.0)
    for row, recording in zip(clips, bar):
        if isinstance(recording, str):
            left_out.append((row.id, recording))
            continue
        recordings.append(recording)
        turn = SupervisionSegment(
            id=row.id,
            recording_id=row.id,
            start=0.0,
            duration=recording.duration,
            channel=0,
            language=row.language,
            speaker=row.speaker,
            text=row.text,
            gender=row.gender,
            custom={**row.custom, **({} if row.entities is None else {SPANS: list(row.entities)})},
        )
        supervisions.append(turn)
    return CorpusPart(
        name,
        RecordingSet.from_recordings(recordings),
        SupervisionSet.from_segments(supervisions),
        language,
        left_out,
    )


def with_turns(
    part: CorpusPart, read: Callable[[str, float], Tuple[Iterable[SupervisionSegment], Iterable[LeftOutRow]]]
) -> CorpusPart:
    """A part whose recordings have turns, also those that are not there or cannot be opened: these turns are left out.

    A turn that ends `OVERSHOOT` or less after its recording ends with it. Others are left as they are.

    Args:
        part: its ``unread`` are recordings.
        read: called with the id and the seconds of a recording (infinite where it is not open), gives its turns and
            what cannot be read.
    """
    turns: List[SupervisionSegment] = []
    unread: List[LeftOutRow] = []
    for name, reason in part.unread:
        found, bad = read(name, math.inf)
        unread += [(name, reason), *bad, *((turn.id, reason) for turn in found)]
    for recording in part.recordings:
        found, bad = read(recording.id, recording.duration)
        unread += bad
        for turn in found:
            over = turn.end - recording.duration
            turns.append(turn.trim(recording.duration) if 0 < over <= OVERSHOOT else turn)
    return replace(part, supervisions=SupervisionSet.from_segments(turns), unread=unread)


def original_of(turn: SupervisionSegment) -> Optional[str]:
    """The text before the corpus normalised it, where it is there: punctuated, with capitals and digits."""
    return (turn.custom or {}).get(ORIGINAL)


def open_clip(row: Clip) -> Union[Recording, str]:
    """The recording of a clip, or the reason why there is none."""
    try:
        with disable_ffmpeg_torchaudio_info():
            recording = Recording.from_file(row.audio, recording_id=row.id)
    except Exception as error:  # audio backends raise errors of any type
        return f"cannot be read as audio: {reason_of(error)}"
    return recording if recording.num_samples > 0 else "holds no audio"


def write_utterances(
    run: Preparation, parts: Sequence[CorpusPart], corpus: str, written_of: Optional[WrittenOf] = None
) -> Dict[str, Path]:
    """Write a cut for each supervision, with its id, labelled for asr and lid; return the files by part.

    A cut is labelled for ner as well where its supervision has spans (`SPANS`), an empty list of them included.

    Args:
        written_of: the written text of a supervision, with ``run.written``. Where it has the same words as the
            normalised text, the cut is labelled for punct.
    """

    def to_cuts(part: CorpusPart, left_out: LeftOut) -> Iterator[MonoCut]:
        recordings = at_16_khz(part.recordings, run.output_dir / "audio" / part.name, run.jobs)
        for turn in part.supervisions:
            written = written_of(turn) if run.written and written_of is not None else None
            try:
                yield _cut(turn, recordings[turn.recording_id], part.language, corpus, run.normaliser, written)
            except BadRow as error:
                left_out.add(turn, str(error))

    return write_parts(run, parts, to_cuts)


def _cut(
    turn: SupervisionSegment, recording: Recording, language: str, corpus: str, normaliser: str, written: Optional[str]
) -> MonoCut:
    """The cut of a supervision (raises BadRow where it cannot be labelled)."""
    tasks, custom = list(TASKS), dict(turn.custom or {})
    spans = custom.pop(SPANS, None)
    text, entities = finish_text(turn.text or "", spans, normaliser, language, widen=True)
    if not text:
        raise BadRow(NO_WORDS)
    custom = with_original(custom, turn.text, text)
    if entities is not None:
        tasks.append("ner")
        custom["entities"] = entities
    if is_written(written, text):
        tasks.append("punct")
        custom["written"] = written
    # A turn that spans the whole recording ends where the audio as decoded ends: MP3 headers round.
    duration = round(min(turn.duration, recording.duration - turn.start), 8)
    spoken = fastcopy(
        turn, start=0.0, duration=duration, channel=0, text=text, language=language, custom=custom, alignment=None
    )
    about = {"tasks": tasks, "corpus": corpus}
    cut = MonoCut(turn.id, turn.start, duration, 0, [spoken], recording=recording, custom=about)
    problems = check_cut(cut) if entities else []  # such as overlapping entities; other faults are errors of ours
    if problems:
        raise BadRow(problems[0])
    return cut


def keep(path: Path, data: bytes) -> Path:
    """A file with these bytes; one that is there with as many is kept."""
    if not (path.is_file() and path.stat().st_size == len(data)):
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    return path


def unpack(archive: Path, folder: Path) -> List[Path]:
    """Write the audio files of a ``.tar.gz`` into one folder; returns them.

    A file that is there with its size is kept, unless the archive is newer.

    Raises:
        UserError: where the archive is not whole, its checksum included. Its files are removed then.
    """
    age = archive.stat().st_mtime
    paths: List[Path] = []
    try:
        with gzip.open(archive) as raw, tarfile.open(fileobj=raw, mode="r|") as tar:
            for member in tqdm(tar, desc=archive.name, unit=" files", mininterval=1.0):
                name = PurePosixPath(member.name).name
                file = tar.extractfile(member) if member.isfile() and name.endswith(CLIP_ENDINGS) else None
                if file is None:
                    continue
                paths.append(folder / name)
                there = paths[-1].stat() if paths[-1].is_file() else None
                if there is None or there.st_size != member.size or there.st_mtime < age:
                    with replacing(paths[-1]) as temporary, open(temporary, "wb") as target:
                        shutil.copyfileobj(file, target)
            while raw.read(BLOCK):  # the checksum is at the end, which tarfile does not read
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        for path in paths:
            path.unlink(missing_ok=True)
        raise UserError(f"{archive}: not a whole tar archive ({error}): download it again") from error
    return paths


def unpack_all(archives: Sequence[Tuple[Path, Path]], jobs: int = 1) -> None:
    """`unpack` pairs of an archive and a folder, several at once."""
    for paths in current_engine().map(_unpack_to, archives, min(jobs, max(1, len(archives)))):
        check_shared(paths)


def _unpack_to(archive: Tuple[Path, Path]) -> List[Path]:
    return unpack(*archive)

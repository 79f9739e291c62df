"""Clips of one utterance each: open them in parallel, unpack them from archives, and write their cuts.

All corpora of read or prepared speech are written by `write_utterances`.
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

TASKS = ("asr", "lid")  # not scd and endp: constant "no change" labels would teach the model to recognise the corpus
ORIGINAL = "orig_text"  # key of a supervision's custom fields: the text before the corpus normalised it, as in lhotse
CLIP_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3")  # of files in archives
SPANS = "spans"  # key of a supervision's custom fields: its entities, before the text is normalised

WrittenOf = Callable[[SupervisionSegment], Optional[str]]


@dataclass(frozen=True)
class Clip:
    """A row of a table of clips.

    Attributes:
        id: id of the cut, its recording and its supervision.
        text: the text in the corpus, not normalised.
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
    """Return a clip if its file exists in the expected folder, otherwise its id and the reason."""
    inside = clip.id == PurePosixPath(clip.id).name and "\0" not in clip.id
    return clip if inside and clip.audio.is_file() else (clip.id, NO_AUDIO)


def part_of(name: str, language: str, rows: Iterable[Union[Clip, LeftOutRow]], jobs: int = 1) -> CorpusPart:
    """Make a part of a corpus from the rows of its table; clips that cannot be opened or are repeated are left out.

    Args:
        language: ISO 639 code.
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
    bar = tqdm(opened, total=len(clips), desc=name, mininterval=1.0, disable=None)
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
    manifests = RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(supervisions)
    return CorpusPart(name, *manifests, language, left_out)


def with_turns(
    part: CorpusPart, read: Callable[[str, float], Tuple[Iterable[SupervisionSegment], Iterable[LeftOutRow]]]
) -> CorpusPart:
    """Return a part with the turns of its recordings; turns of missing or unreadable recordings are left out.

    A turn that ends up to `OVERSHOOT` after its recording is trimmed to it. Other turns are unchanged.

    Args:
        part: its ``unread`` are recordings.
        read: called with the id and seconds of a recording (infinite if it cannot be opened); returns its turns, and
            the rows that cannot be read.
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
    """Return the text before the corpus normalised it (punctuated, with capitals and digits), or None."""
    return (turn.custom or {}).get(ORIGINAL)


def open_clip(row: Clip) -> Union[Recording, str]:
    """Return the recording of a clip, or the reason why it cannot be opened."""
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

    A cut is also labelled for ner if its supervision has spans (`SPANS`), even an empty list.

    Args:
        written_of: returns the written text of a supervision, used with ``run.written``. If it has the same words as
            the normalised text, the cut is labelled for punct.
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
    """Return the cut of a supervision (raises BadRow if it cannot be labelled)."""
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
    # A turn that spans the whole recording ends where the decoded audio ends: MP3 headers round.
    duration = round(min(turn.duration, recording.duration - turn.start), 8)
    spoken = fastcopy(
        turn, start=0.0, duration=duration, channel=0, text=text, language=language, custom=custom, alignment=None
    )
    about = {"tasks": tasks, "corpus": corpus}
    cut = MonoCut(turn.id, turn.start, duration, 0, [spoken], recording=recording, custom=about)
    problems = check_cut(cut) if entities else []  # such as overlapping entities; other problems are bugs
    if problems:
        raise BadRow(problems[0])
    return cut


def keep(path: Path, data: bytes) -> Path:
    """Write these bytes to a file, unless it exists with the same size; return its path."""
    if not (path.is_file() and path.stat().st_size == len(data)):
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    return path


def unpack(archive: Path, folder: Path) -> List[Path]:
    """Write the audio files of a ``.tar.gz`` into one folder; return their paths.

    An existing file of the same size is kept, unless the archive is newer.

    Raises:
        UserError: if the archive is incomplete or its checksum is wrong. Its files are removed then.
    """
    age = archive.stat().st_mtime
    paths: List[Path] = []
    try:
        with gzip.open(archive) as raw, tarfile.open(fileobj=raw, mode="r|") as tar:
            for member in tqdm(tar, desc=archive.name, unit=" files", mininterval=1.0, disable=None):
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
    """`unpack` pairs of an archive and a folder, several in parallel."""
    for paths in current_engine().map(_unpack_to, archives, min(jobs, max(1, len(archives)))):
        check_shared(paths)


def _unpack_to(archive: Tuple[Path, Path]) -> List[Path]:
    return unpack(*archive)

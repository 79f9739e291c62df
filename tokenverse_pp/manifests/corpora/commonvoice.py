"""Common Voice: sentences read by volunteers in over a hundred languages; labelled for asr and lid.

The tables are read here and not by lhotse's recipe, which needs the columns of the releases from 13 on. Releases before
lack ``variant``, those before 7 call ``accents`` ``accent``, those before 5 have no ``locale`` and ``segment``; those
from 17 on have ``sentence_id`` and ``sentence_domain`` besides.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Union

from lhotse import RecordingSet, SupervisionSet
from lhotse.audio import Recording
from lhotse.recipes.commonvoice import disable_ffmpeg_torchaudio_info
from lhotse.supervision import SupervisionSegment
from tqdm import tqdm

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.corpora.languages import common_voice_code, folders_of
from tokenverse_pp.manifests.corpora.parts import Part, Say, require
from tokenverse_pp.manifests.corpora.utterances import write_utterances
from tokenverse_pp.manifests.lines import raw_lines, stray_control, text_of

SPLITS = ("train", "dev", "test")
COLUMNS = ("path", "sentence")  # what every release has, and what is needed
CUSTOM = {"age": "age", "accents": "accents", "accent": "accents", "variant": "variant"}  # as lhotse's recipe has them
LAYOUT = "the unpacked release (cv-corpus-<version>) with <locale>/{train,dev,test}.tsv and <locale>/clips/*.mp3"

Row = Mapping[str, str]
LeftOutRow = Tuple[str, str]  # an id (the clip's, or the line where there is none) and the reason


def prepare_commonvoice(
    corpus_dir: Path,
    output_dir: Path,
    languages: Sequence[str] = (),
    normaliser: str = "words",
    jobs: int = 1,
    say: Say = print,
) -> Dict[str, Path]:
    """``cuts_<split>_<code>.jsonl.gz``, one cut a sentence; the clips are written anew at 16 kHz (``OUT/audio``).

    Args:
        languages: locales as Common Voice names them (``sv-SE``); none: all that are there.

    Raises:
        UserError: where the folder is no Common Voice release, and where two locales have one language code.
    """
    require(corpus_dir, ["*/clips", "*/train.tsv"], LAYOUT)
    there = sorted(path.parent.name for path in corpus_dir.glob("*/train.tsv"))
    locales = folders_of(languages, there, str(corpus_dir)) or there
    _check_locales(corpus_dir, locales)
    clip_of = {locale: _clip_finder(corpus_dir / locale / "clips") for locale in locales}
    parts = [_read_part(corpus_dir / locale, split, clip_of[locale], jobs) for locale in locales for split in SPLITS]
    return write_utterances(parts, output_dir, "commonvoice", normaliser, jobs, say)


def _check_locales(corpus_dir: Path, locales: List[str]) -> None:
    by_code: Dict[str, str] = {}
    for locale in locales:
        require(corpus_dir, [f"{locale}/clips", *(f"{locale}/{split}.tsv" for split in SPLITS)], LAYOUT)
        other = by_code.setdefault(common_voice_code(locale), locale)
        if other != locale:
            raise UserError(
                f"{corpus_dir}: {other} and {locale} are both {common_voice_code(locale)}: give --language for one, "
                "and prepare the other into a folder of its own"
            )
        for split in SPLITS:
            _header(corpus_dir / locale / f"{split}.tsv")


def _header(path: Path) -> List[str]:
    for _, line in raw_lines(path):
        found = text_of(line, f"{path}, line 1").split("\t")
        missing = [name for name in COLUMNS if name not in found]
        if not missing and len(set(found)) == len(found):
            return found
        wrong = f"no {missing[0]}" if missing else "a column is there twice"
        raise UserError(f"{path}, line 1: expected a header with the columns {', '.join(COLUMNS)}; {wrong}")
    raise UserError(f"{path}: empty; expected a header with the columns {', '.join(COLUMNS)}")


def _rows(path: Path) -> Iterator[Union[Row, LeftOutRow]]:
    """The rows of a table without quoting; or the line and what is wrong with it."""
    header = _header(path)
    for number, raw in raw_lines(path):
        if number == 1 or not raw.strip():
            continue
        where = f"{path}, line {number}"
        try:
            line = text_of(raw, "")
        except UserError as error:
            yield where, str(error).lstrip(": ")
            continue
        stray = stray_control(line)
        if stray is not None:
            yield where, f"holds a {stray}"
            continue
        cells = line.split("\t")
        row = dict(zip(header, cells))
        # Empty cells at the end may be missing, if the votes show that the others are in their places.
        short = len(cells) < len(header) and row.get("up_votes", "").isdigit() and row.get("down_votes", "").isdigit()
        if len(cells) == len(header) or short:
            yield row
        else:
            yield where, f"expected {len(header)} cells, found {len(cells)}"


def _clip_finder(folder: Path) -> Callable[[str], Optional[Path]]:
    """A function from a row's ``path`` to the clip; the ending may be missing there, and case may differ."""
    by_lower: Dict[str, str] = {}

    def find(name: str) -> Optional[Path]:
        if not name or PurePosixPath(name).name != name or name == ".." or "\0" in name:
            return None  # clips lie in one folder
        for candidate in (name, f"{name}.mp3"):
            if (folder / candidate).is_file():
                return folder / candidate
        if not by_lower:
            by_lower.update((path.name.lower(), path.name) for path in folder.iterdir())
        found = by_lower.get(name.lower()) or by_lower.get(f"{name.lower()}.mp3")
        return folder / found if found is not None and (folder / found).is_file() else None

    return find


def _read_part(folder: Path, split: str, clip_of: Callable[[str], Optional[Path]], jobs: int) -> Part:
    locale, code = folder.name, common_voice_code(folder.name)
    left_out: List[LeftOutRow] = []
    clips: List[Tuple[Path, Row]] = []
    seen: Set[str] = set()
    for row in _rows(folder / f"{split}.tsv"):
        if isinstance(row, tuple):
            left_out.append(row)
            continue
        clip = clip_of(row["path"])
        if clip is None:
            left_out.append((row["path"] or "no path", "its clip is not in the folder clips"))
        elif clip.stem in seen:
            left_out.append((f"{clip.stem} again", "its clip has a row already"))
        else:
            seen.add(clip.stem)
            clips.append((clip, row))
    if not clips and not left_out:
        raise UserError(f"{folder / split}.tsv: holds no rows (--language names the locales to prepare)")
    recordings, supervisions = [], []
    for (clip, row), recording in zip(clips, _recordings([clip for clip, _ in clips], jobs, f"{locale} {split}")):
        if isinstance(recording, str):
            left_out.append((clip.stem, recording))
        else:
            recordings.append(recording)
            supervisions.append(_supervision(row, recording, locale))
    return Part(
        f"{split}_{code}",
        RecordingSet.from_recordings(recordings),
        SupervisionSet.from_segments(supervisions),
        code,
        [{"id": name, "seconds": 0.0, "reason": reason} for name, reason in left_out],
    )


def _recordings(clips: Sequence[Path], jobs: int, title: str) -> Iterator[Union[Recording, str]]:
    """The recording of each clip, or why there is none."""
    if jobs > 1:
        with ProcessPoolExecutor(jobs) as pool:
            yield from tqdm(pool.map(_recording, clips, chunksize=64), total=len(clips), desc=title, mininterval=1.0)
    else:
        yield from tqdm(map(_recording, clips), total=len(clips), desc=title, mininterval=1.0)


def _recording(clip: Path) -> Union[Recording, str]:
    try:
        with disable_ffmpeg_torchaudio_info():
            recording = Recording.from_file(clip, recording_id=clip.stem)
    except Exception as error:  # whatever the audio backend throws
        return f"cannot be read as audio: {(str(error).strip().splitlines() or [type(error).__name__])[0][:200]}"
    return recording if recording.num_samples > 0 else "holds no audio"


def _supervision(row: Row, recording: Recording, locale: str) -> SupervisionSegment:
    return SupervisionSegment(
        id=recording.id,
        recording_id=recording.id,
        start=0.0,
        duration=recording.duration,
        channel=0,
        language=locale,
        speaker=row.get("client_id") or None,
        text=row["sentence"].strip(),
        gender=row.get("gender"),
        custom={name: row[column] for column, name in CUSTOM.items() if column in row},
    )

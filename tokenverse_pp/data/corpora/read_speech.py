"""Corpora of read or prepared speech: one turn per cut, labelled for asr and lid.

- LibriSpeech and Mini LibriSpeech: English audiobooks.
- Multilingual LibriSpeech: audiobooks in eight languages.
- Common Voice: sentences read by volunteers in over a hundred languages.
- VoxPopuli: speeches in the European Parliament, 16 languages with transcripts.

Languages are written as ISO 639-1 codes (639-3 for languages without a two-letter code). Common Voice's tables are read
here, because lhotse's recipe needs the columns of release 13 or later. Releases before 13 lack ``variant``, those
before 7 name ``accents`` ``accent``, those before 5 lack ``locale`` and ``segment``; releases from 17 on add
``sentence_id`` and ``sentence_domain``.
"""

from __future__ import annotations

import contextlib
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Union

from lhotse import RecordingSet, SupervisionSet
from lhotse.audio import Recording
from lhotse.cut import MonoCut
from lhotse.recipes.commonvoice import disable_ffmpeg_torchaudio_info
from lhotse.supervision import SupervisionSegment
from lhotse.utils import fastcopy
from tqdm import tqdm

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import canonical_tag, matching_languages
from tokenverse_pp.data.corpora.common import (
    CorpusPart,
    Form,
    LeftOut,
    Say,
    at_16_khz,
    check_table,
    in_corpus,
    lhotse_recipe,
    readable,
    require,
    write_parts,
)
from tokenverse_pp.data.editing.conversations import NO_WORDS, with_original
from tokenverse_pp.data.lines import raw_lines, stray_control, text_of
from tokenverse_pp.data.manifests import reason_of
from tokenverse_pp.data.normalise import NORMALISERS

MLS = {
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "polish": "pl",
    "portuguese": "pt",
    "spanish": "es",
}
"""The folders ``mls_<name>`` of Multilingual LibriSpeech."""

COMMON_VOICE = {"zh-HK": "yue"}
"""Locales of Common Voice (canonical tags) that are not their language plus a country: zh-HK is Cantonese."""


def common_voice_code(locale: str) -> str:
    """The language of a Common Voice locale in any spelling, without the region except in `COMMON_VOICE`.

    >>> common_voice_code("sv-SE"), common_voice_code("zh-CN"), common_voice_code("zh-HK"), common_voice_code("kab")
    ('sv', 'zh', 'yue', 'kab')
    """
    tag = canonical_tag(locale) or locale
    return COMMON_VOICE.get(tag, tag.split("-")[0].lower())


def folders_of(languages: Sequence[str], folders: Sequence[str], where: str) -> List[str]:
    """The language folders of a corpus for the given codes; an unknown code is returned unchanged.

    Raises:
        UserError: for a code that may mean several folders of ``where``, the folder of the corpus.
    """
    found = []
    for code in languages:
        meant = matching_languages(code, folders)
        if len(meant) > 1:
            raise UserError(f"--language {code}: {where} has {' and '.join(meant)}: expected one of them")
        found += meant or [code]
    return list(dict.fromkeys(found))


TASKS = ("asr", "lid")


def write_utterances(
    parts: Sequence[CorpusPart], output_dir: Path, corpus: str, normaliser: str, jobs: int, say: Say = print
) -> Dict[str, Path]:
    """Write a cut for each supervision, with its id, labelled for asr and lid; return the files by part."""

    def to_cuts(part: CorpusPart, left_out: LeftOut) -> Iterator[MonoCut]:
        recordings = at_16_khz(part.recordings, output_dir / "audio" / part.name, jobs)
        for turn in part.supervisions:
            text = NORMALISERS[normaliser](turn.text or "", part.language)
            if not text:
                left_out.add(turn, NO_WORDS)
                continue
            recording = recordings[turn.recording_id]
            # A turn that spans the whole recording ends where the audio as decoded ends: MP3 headers round.
            duration = round(min(turn.duration, recording.duration - turn.start), 8)
            spoken = fastcopy(
                turn,
                start=0.0,
                duration=duration,
                channel=0,
                text=text,
                language=part.language,
                custom=with_original(turn.custom, turn.text, text),
                alignment=None,
            )
            custom = {"tasks": list(TASKS), "corpus": corpus}
            yield MonoCut(turn.id, turn.start, duration, 0, [spoken], recording=recording, custom=custom)

    return write_parts(parts, output_dir, to_cuts, say)


LIBRISPEECH_FORM = Form(delimiter=None, cells=2)
LIBRISPEECH_LAYOUT = (
    "LibriSpeech/<part>/<speaker>/<chapter>/*.{trans.txt,flac}; a part is train-clean-100, dev-clean, .."
)


def prepare_librispeech(
    corpus_dir: Path, output_dir: Path, normaliser: str = "words", jobs: int = 1, say: Say = print
) -> Dict[str, Path]:
    """Every existing part -> ``cuts_<part>.jsonl.gz`` (``cuts_train_clean_100.jsonl.gz``), one cut per utterance.

    Raises:
        UserError: where the folder is no LibriSpeech.
    """
    from lhotse.recipes.librispeech import prepare_librispeech as recipe

    require(corpus_dir, ["*/*/*/*.trans.txt"], LIBRISPEECH_LAYOUT)
    tables = [check_table(path, LIBRISPEECH_FORM) for path in sorted(corpus_dir.glob("*/*/*/*.trans.txt"))]
    with readable(corpus_dir, tables) as folder:
        with lhotse_recipe("librispeech", corpus_dir, LIBRISPEECH_LAYOUT):
            manifests = recipe(folder, num_jobs=jobs)
        for manifest in manifests.values():
            in_corpus(manifest["recordings"], folder, corpus_dir)
    unread: Dict[str, List[Dict[str, Any]]] = {}
    for table in tables:
        unread.setdefault(table.path.relative_to(corpus_dir).parts[0], []).extend(table.left_out())
    parts = [
        CorpusPart(name.replace("-", "_"), **manifests[name], language="en", unread=unread.get(name, ()))
        for name in sorted(manifests)
    ]
    return write_utterances(parts, output_dir, "librispeech", normaliser, jobs, say)


MLS_SPLITS = ("train", "dev", "test")
MLS_FORM = Form(cells=2)
MLS_LAYOUT = (
    "mls_<language>[_opus]/{metainfo.txt,<split>/transcripts.txt,<split>/audio/*/*/*.{flac,opus}} for the splits "
    "train, dev and test"
)


def prepare_mls(
    corpus_dir: Path, output_dir: Path, normaliser: str = "words", jobs: int = 1, say: Say = print
) -> Dict[str, Path]:
    """``mls_<language>`` folders (Opus if they end in ``_opus``, else FLAC) -> ``cuts_<split>_<code>.jsonl.gz``.

    Raises:
        UserError: where the folder is no MLS.
    """
    from lhotse.recipes.mls import prepare_mls as recipe

    require(corpus_dir, ["mls_*/metainfo.txt", "mls_*/train/transcripts.txt"], MLS_LAYOUT)
    folders = sorted(path.name for path in corpus_dir.glob("mls_*") if path.is_dir() and "_lm_" not in path.name)
    opus = [name for name in folders if name.endswith("_opus")]
    if opus and len(opus) < len(folders):
        other = next(name for name in folders if name not in opus)
        raise UserError(f"{corpus_dir}: {opus[0]} and {other}: expected Opus and FLAC in folders of their own")
    tables = {
        f"{name} {split}": check_table(path, MLS_FORM)
        for name in folders
        for split in MLS_SPLITS
        for path in [corpus_dir / name / split / "transcripts.txt"]
        if path.is_file()
    }
    with readable(corpus_dir, list(tables.values())) as folder:
        with lhotse_recipe("mls", corpus_dir, MLS_LAYOUT):
            manifests = recipe(folder, opus=bool(opus), num_jobs=jobs)
        for splits in manifests.values():
            for manifest in splits.values():
                in_corpus(manifest["recordings"], folder, corpus_dir)
    unknown = sorted(set(manifests) - set(MLS))
    if unknown:
        raise UserError(f"{corpus_dir}: mls_{unknown[0]}: not a language of MLS; expected one of {', '.join(MLS)}")
    parts = [
        CorpusPart(
            f"{split}_{MLS[name]}",
            **manifests[name][split],
            language=MLS[name],
            unread=tables[f"mls_{name}{'_opus' if opus else ''} {split}"].left_out(),
        )
        for name in sorted(manifests)
        for split in MLS_SPLITS
    ]
    return write_utterances(parts, output_dir, "mls", normaliser, jobs, say)


COMMONVOICE_SPLITS = ("train", "dev", "test")
COLUMNS = ("path", "sentence")  # required columns, which every release has
CUSTOM = {"age": "age", "accents": "accents", "accent": "accents", "variant": "variant"}  # as lhotse's recipe has them
COMMONVOICE_LAYOUT = (
    "the unpacked release (cv-corpus-<version>) with <locale>/{train,dev,test}.tsv and <locale>/clips/*.mp3"
)

Row = Mapping[str, str]
LeftOutRow = Tuple[str, str]  # an id (of the clip, or the line if there is none) and the reason


def prepare_commonvoice(
    corpus_dir: Path,
    output_dir: Path,
    languages: Sequence[str] = (),
    normaliser: str = "words",
    jobs: int = 1,
    say: Say = print,
) -> Dict[str, Path]:
    """``cuts_<split>_<code>.jsonl.gz``, one cut a sentence; the clips are rewritten at 16 kHz (``OUT/audio``).

    Args:
        languages: locales as Common Voice names them (``sv-SE``); none: all that are there.

    Raises:
        UserError: where the folder is no Common Voice release, and where two locales have one language code.
    """
    require(corpus_dir, ["*/clips", "*/train.tsv"], COMMONVOICE_LAYOUT)
    there = sorted(path.parent.name for path in corpus_dir.glob("*/train.tsv"))
    locales = folders_of(languages, there, str(corpus_dir)) or there
    by_code: Dict[str, str] = {}
    for locale in locales:
        tables = [f"{locale}/{split}.tsv" for split in COMMONVOICE_SPLITS]
        require(corpus_dir, [f"{locale}/clips", *tables], COMMONVOICE_LAYOUT)
        other = by_code.setdefault(common_voice_code(locale), locale)
        if other != locale:
            raise UserError(
                f"{corpus_dir}: {other} and {locale} are both {common_voice_code(locale)}: give --language for one, "
                "and prepare the other into a folder of its own"
            )
        for table in tables:
            _header(corpus_dir / table)
    clip_of = {locale: _clip_finder(corpus_dir / locale / "clips") for locale in locales}
    parts = [
        _read_part(corpus_dir / locale, split, clip_of[locale], jobs)
        for locale in locales
        for split in COMMONVOICE_SPLITS
    ]
    return write_utterances(parts, output_dir, "commonvoice", normaliser, jobs, say)


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
    """A function from a row's ``path`` to the clip; the extension may be missing, and case may differ."""
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


def _read_part(folder: Path, split: str, clip_of: Callable[[str], Optional[Path]], jobs: int) -> CorpusPart:
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
    paths = [clip for clip, _ in clips]
    with contextlib.ExitStack() as stack:
        opened: Iterator[Union[Recording, str]] = map(_recording, paths)
        if jobs > 1:
            opened = stack.enter_context(ProcessPoolExecutor(jobs)).map(_recording, paths, chunksize=64)
        bar = tqdm(opened, total=len(paths), desc=f"{locale} {split}", mininterval=1.0)
        for (clip, row), recording in zip(clips, bar):
            if isinstance(recording, str):
                left_out.append((clip.stem, recording))
                continue
            recordings.append(recording)
            turn = SupervisionSegment(
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
            supervisions.append(turn)
    return CorpusPart(
        f"{split}_{code}",
        RecordingSet.from_recordings(recordings),
        SupervisionSet.from_segments(supervisions),
        code,
        [{"id": name, "seconds": 0.0, "reason": reason} for name, reason in left_out],
    )


def _recording(clip: Path) -> Union[Recording, str]:
    """The recording of a clip, or the reason why there is none."""
    try:
        with disable_ffmpeg_torchaudio_info():
            recording = Recording.from_file(clip, recording_id=clip.stem)
    except Exception as error:  # audio backends raise errors of any type
        return f"cannot be read as audio: {reason_of(error)}"
    return recording if recording.num_samples > 0 else "holds no audio"


VOXPOPULI_SPLITS = ("train", "dev", "test")
VOXPOPULI_FORM = Form(delimiter="|", quoting=True, numbers=("start_time", "end_time"))
VOXPOPULI_LAYOUT = (
    "raw_audios/<language>/<year>/*_<language>.ogg and the transcripts asr_<language>.tsv.gz (lhotse downloads them "
    "where they are missing)"
)


def prepare_voxpopuli(
    corpus_dir: Path,
    output_dir: Path,
    languages: Sequence[str] = (),
    normaliser: str = "words",
    jobs: int = 1,
    say: Say = print,
) -> Dict[str, Path]:
    """``cuts_<split>_<language>.jsonl.gz``: one cut a segment, pointing into the recording of its session.

    Args:
        languages: ISO 639-1 codes; none: all folders of ``raw_audios`` that have transcripts in lhotse's list.

    Raises:
        UserError: where the folder is no VoxPopuli, and where transcripts are neither there nor can be downloaded.
    """
    from lhotse.recipes.voxpopuli import ASR_LANGUAGES
    from lhotse.recipes.voxpopuli import prepare_voxpopuli as recipe

    require(corpus_dir, ["raw_audios/*"], VOXPOPULI_LAYOUT)
    there = sorted(path.name for path in (corpus_dir / "raw_audios").iterdir() if path.name in ASR_LANGUAGES)
    wanted = folders_of(languages, there, f"{corpus_dir}/raw_audios") or there
    if not wanted:
        raise UserError(f"{corpus_dir}/raw_audios: no language with transcripts; expected {VOXPOPULI_LAYOUT}")
    parts: List[CorpusPart] = []
    for language in wanted:
        require(corpus_dir, [f"raw_audios/{language}/**/*.ogg"], VOXPOPULI_LAYOUT)
        # lhotse reads the transcripts from its output folder, and downloads them if they are missing.
        with tempfile.TemporaryDirectory() as folder, lhotse_recipe("voxpopuli", corpus_dir, VOXPOPULI_LAYOUT):
            transcripts = corpus_dir / f"asr_{language}.tsv.gz"
            unread: List[Dict[str, Any]] = []
            if transcripts.is_file():
                table = check_table(transcripts, VOXPOPULI_FORM)
                table.write(Path(folder) / transcripts.name)
                unread = table.left_out()
            manifests = recipe(corpus_dir, folder, task="asr", lang=language, num_jobs=jobs)
        # Which split a bad row is of is not known: the first lists them.
        parts += [
            CorpusPart(f"{split}_{language}", **manifests[split], language=language, unread=() if i else unread)
            for i, split in enumerate(VOXPOPULI_SPLITS)
        ]
    return write_utterances(parts, output_dir, "voxpopuli", normaliser, jobs, say)

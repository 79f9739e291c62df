"""VoxPopuli, speeches in the European Parliament, and SLUE-VoxPopuli, a part of it in English with named entities.

VoxPopuli comes as recordings of whole sessions with a table of segments, or as clips with a table, made by its own tool
or from the hub. SLUE-VoxPopuli comes as clips with a table; lhotse has no recipe for it. Cuts are labelled for asr and
lid, those of SLUE also for ner. Cut ids are those of the corpora. Segments of whole sessions have the ids of lhotse,
which numbers them in the order of the table (``<session>-<number>``; the id of a clip is ``<session>-<id_>``).
"""

from __future__ import annotations

import ast
import re
import tempfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from lhotse.supervision import SupervisionSegment

from tokenverse_pp.base.errors import UserError, needing
from tokenverse_pp.data.corpora.clips import (
    ORIGINAL,
    Clip,
    Rows,
    keep,
    original_of,
    part_of,
    unpack_all,
    with_turns,
    write_utterances,
)
from tokenverse_pp.data.corpora.common import (
    NO_AUDIO,
    CorpusPart,
    Form,
    LeftOutRow,
    Preparation,
    check_table,
    lhotse_recipe,
    require,
    split_tables,
)
from tokenverse_pp.data.corpora.read_speech import SPLITS, folders_of
from tokenverse_pp.data.corpora.resume import ALL, CorpusGroup, in_groups
from tokenverse_pp.data.editing.conversations import OUTSIDE
from tokenverse_pp.data.importing.rows import OVERSHOOT, Span
from tokenverse_pp.data.manifests import reason_of

VOXPOPULI_FORM = Form(delimiter="|", quoting=True, numbers=("start_time", "end_time"))
VOXPOPULI_CLIPS_FORM = Form()
VOXPOPULI_SESSION_COLUMNS = "session_id original_text normed_text speaker_id split gender start_time end_time".split()
VOXPOPULI_COLUMNS = ("id", "raw_text", "normalized_text", "speaker_id", "gender")
VOXPOPULI_LAYOUT = (
    "raw_audios/{<language>,original}/<year>/*.ogg and asr_<language>.tsv.gz (downloaded by lhotse if it is missing), "
    "transcribed_data/<language>/asr_<split>.tsv and <year>/*.ogg (its get_asr_data), or the hub's "
    "data/<language>/asr_<split>.tsv and <split>/*.tar.gz"
)


def prepare_voxpopuli(run: Preparation, languages: Sequence[str] = ()) -> Dict[str, Path]:
    """Write ``cuts_<split>_<language>.jsonl.gz``, one cut per segment: a clip, or a part of its session's recording.

    Args:
        languages: ISO 639-1 codes, and ``en_accented``, English of speakers of other languages, which comes as clips;
            empty: all that have transcripts.

    Raises:
        UserError: if the folder is not VoxPopuli, or transcripts are missing and cannot be downloaded.
    """
    corpus_dir = run.corpus_dir
    require(corpus_dir, [], VOXPOPULI_LAYOUT)
    tables = split_tables(corpus_dir, ("transcribed_data", "data", "."), SPLITS, "*/asr_{split}.tsv")
    sessions = _session_folders(corpus_dir)
    there = sorted({*tables, *sessions})
    original = corpus_dir / "raw_audios" / "original"
    if not there and not (languages and original.is_dir()):
        hint = "; --language names one whose transcripts lhotse downloads" if original.is_dir() else ""
        raise UserError(f"{corpus_dir}: no language with transcripts; expected {VOXPOPULI_LAYOUT}{hint}")
    wanted = folders_of(languages, there, str(corpus_dir)) or there
    for name in wanted:
        if name not in there and not original.is_dir():
            raise UserError(f"{corpus_dir}: found no raw_audios/{name}; expected {VOXPOPULI_LAYOUT}")

    def prepare(name: str) -> Dict[str, Path]:
        if name in tables:
            parts = _clips(tables[name], name, run.output_dir, run.jobs)
        else:
            parts = _sessions(corpus_dir, sessions.get(name, original), name, run.jobs)
        return write_utterances(run, parts, "voxpopuli", original_of)

    groups = {}
    for name in wanted:
        read = [sessions.get(name, original), corpus_dir / f"asr_{name}.tsv.gz"]
        read = [path.parent for path in tables[name].values()] if name in tables else read
        groups[name] = CorpusGroup([f"{split}_{name}" for split in tables.get(name, SPLITS)], read)
    return in_groups(run, "voxpopuli", groups, prepare)


def _session_folders(corpus_dir: Path) -> Dict[str, Path]:
    """Return language -> folder of its sessions; ``original`` has those of all languages that have transcripts."""
    from lhotse.recipes.voxpopuli import ASR_LANGUAGES

    root = corpus_dir / "raw_audios"
    own = {path.name: path for path in root.glob("*") if path.name in ASR_LANGUAGES and path.is_dir()}
    told = [path.name[len("asr_") : -len(".tsv.gz")] for path in corpus_dir.glob("asr_*.tsv.gz")]
    told = [name for name in told if name in ASR_LANGUAGES]  # the recipe does not read en_accented
    shared = {language: root / "original" for language in told if (root / "original").is_dir()}
    return {**shared, **own}


def _sessions(corpus_dir: Path, folder: Path, language: str, jobs: int) -> List[CorpusPart]:
    """Return the segments of whole sessions as parts, with the ids of lhotse's recipe."""
    ending = re.compile(f"(_original)?(_{language})?$")  # <session>_original.ogg, <session>_<language>.ogg
    audio = {ending.sub("", path.stem, count=1): path for path in sorted(folder.rglob("*.ogg"))}
    if not audio:
        raise UserError(f"{folder}: found no *.ogg; expected {VOXPOPULI_LAYOUT}")
    turns: Dict[str, Dict[str, List[SupervisionSegment]]] = {split: {} for split in SPLITS}
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        table = check_table(_transcripts(corpus_dir, language, Path(place)), VOXPOPULI_FORM)
        for _, row in table.records(VOXPOPULI_SESSION_COLUMNS, VOXPOPULI_LAYOUT):
            session, start = row["session_id"], float(row["start_time"])
            if row["split"] in turns:
                counts[session] += 1
                turn = SupervisionSegment(
                    f"{session}-{counts[session]}",
                    session,
                    round(start, 8),
                    round(float(row["end_time"]) - start, 8),
                    text=row["normed_text"],
                    speaker=row["speaker_id"],
                    gender=row["gender"],
                    custom={ORIGINAL: row["original_text"]},
                )
                turns[row["split"]].setdefault(session, []).append(turn)
    parts: List[CorpusPart] = []
    for split, by_session in turns.items():
        clips = (Clip(session, audio[session], "", language) for session in sorted(by_session) if session in audio)
        part = part_of(f"{split}_{language}", language, clips, jobs)
        opened, reasons = {recording.id for recording in part.recordings}, dict(part.unread)
        lost = [
            (turn.id, reasons.get(session, NO_AUDIO))
            for session, segments in by_session.items()
            if session not in opened
            for turn in segments
        ]
        part = with_turns(replace(part, unread=()), partial(_segments_of, by_session))
        # The split of a bad row is unknown: the first part lists them.
        unread = [*([] if parts else table.left_out()), *lost, *part.unread]
        parts.append(replace(part, unread=unread))
    return parts


def _segments_of(
    by_session: Mapping[str, List[SupervisionSegment]], session: str, length: float
) -> Tuple[List[SupervisionSegment], List[LeftOutRow]]:
    """Return the segments that lie inside the recording of their session, and the others."""
    turns = by_session[session]
    inside = [turn for turn in turns if 0 <= turn.start < min(turn.end, length) and turn.end <= length + OVERSHOOT]
    kept = {turn.id for turn in inside}
    return inside, [(turn.id, OUTSIDE) for turn in turns if turn.id not in kept]


def _transcripts(corpus_dir: Path, name: str, place: Path) -> Path:
    """Return the file of transcripts of a language's sessions, downloaded to ``place`` if it is missing."""
    path = corpus_dir / f"asr_{name}.tsv.gz"
    if path.is_file():
        return path
    from lhotse.recipes.voxpopuli import ASR_LANGUAGES, DOWNLOAD_BASE_URL, download_url_to_file

    with lhotse_recipe("voxpopuli", corpus_dir, VOXPOPULI_LAYOUT):
        assert name in ASR_LANGUAGES, f"Unsupported language: {name}"
        download_url_to_file(f"{DOWNLOAD_BASE_URL}/annotations/asr/{path.name}", str(place / path.name))
    return place / path.name


def _clips(tables: Mapping[str, Path], name: str, output_dir: Path, jobs: int) -> List[CorpusPart]:
    """Return the parts with clips that the corpus's tool has cut, next to their tables or packed in archives.

    Args:
        name: a language, or ``en_accented``.
    """
    language, archives = name.split("_")[0], []
    for split, path in tables.items():
        target = output_dir / "audio" / f"{split}_{name}"
        archives += [(archive, target) for archive in sorted((path.parent / split).glob("*.tar.gz"))]
    unpack_all(archives, jobs)
    clips = {clip.stem: clip for path in {path.parent for path in tables.values()} for clip in path.rglob("*.ogg")}
    for folder in {folder for _, folder in archives} | {path.parent for path in tables.values()}:
        clips.update((clip.stem, clip) for clip in folder.rglob("*.wav"))
    return [
        part_of(f"{split}_{name}", language, _clip_rows(path, clips, language), jobs) for split, path in tables.items()
    ]


def _clip_rows(path: Path, clips: Mapping[str, Path], language: str) -> Rows:
    table = check_table(path, VOXPOPULI_CLIPS_FORM)
    yield from table.left_out()
    for _, row in table.records(VOXPOPULI_COLUMNS, VOXPOPULI_LAYOUT):
        clip = clips.get(row["id"])
        if clip is None:
            yield row["id"], "its clip is not there"
        else:
            yield Clip(
                row["id"],
                clip,
                row["normalized_text"],
                language,
                speaker=row["speaker_id"] if row["speaker_id"] not in ("", "None") else None,
                gender=row["gender"] or None,
                custom={ORIGINAL: row["raw_text"]},
            )


SLUE_SPLITS = {"train": ("fine-tune", "train"), "dev": ("dev", "validation"), "test": ("test", "test")}
SLUE_FORM = Form(quoting=True)
SLUE_LAYOUT = (
    "slue-voxpopuli_{fine-tune,dev,test}.tsv and {fine-tune,dev,test}/*.ogg (its archive, unpacked), or the hub's "
    "asapp/slue: voxpopuli/{train,validation,test}-*.parquet"
)
SLUE_COMBINED: Dict[str, Optional[str]] = {
    **dict.fromkeys(("DATE", "TIME"), "WHEN"),
    **dict.fromkeys(("CARDINAL", "ORDINAL", "QUANTITY", "MONEY", "PERCENT"), "QUANT"),
    **dict.fromkeys(("GPE", "LOC"), "PLACE"),
    **{name: name for name in ("NORP", "ORG", "LAW", "PERSON")},
    **dict.fromkeys(("FAC", "EVENT", "WORK_OF_ART", "PRODUCT", "LANGUAGE")),
}
"""The 18 types of OntoNotes -> the 7 that the benchmark scores; None: not scored (SLUE, ICASSP 2022, table 2)."""


def prepare_slue_voxpopuli(run: Preparation, entities: str = "combined") -> Dict[str, Path]:
    """Write ``cuts_{train,dev,test}.jsonl.gz`` of the existing splits, with the cut ids of the corpus.

    A split without entities (the blind test set) is labelled for asr and lid only. An entity that is part of a word of
    the normalised text is extended to the whole word.

    Args:
        entities: ``combined``: the 7 types that are scored; ``raw``: the 18 that were annotated.
    """
    corpus_dir = run.corpus_dir
    require(corpus_dir, [], SLUE_LAYOUT)
    sources = {part: files for part in SLUE_SPLITS for files in [_slue_files(corpus_dir, part)] if files}
    if not sources:
        raise UserError(f"{corpus_dir}: found no table and no parquet file; expected {SLUE_LAYOUT}")

    def prepare(_: str) -> Dict[str, Path]:
        parts = []
        for part, files in sources.items():
            tsv = files[0].suffix == ".tsv"
            cells = _slue_table(files[0]) if tsv else _slue_parquet(files, run.output_dir / "audio" / part)
            folder = corpus_dir / SLUE_SPLITS[part][0]
            parts.append(part_of(part, "en", _slue_rows(cells, folder, entities), run.jobs))
        return write_utterances(run, parts, "slue-voxpopuli", original_of)

    files = {part: [file.name for file in files] for part, files in sources.items()}
    read = [
        *(file for files in sources.values() for file in files),
        *(corpus_dir / SLUE_SPLITS[part][0] for part in sources),
    ]
    groups = {ALL: CorpusGroup(list(sources), read, {"files": files})}
    return in_groups(run, "slue-voxpopuli", groups, prepare, {"entities": entities})


def _slue_files(corpus_dir: Path, part: str) -> List[Path]:
    """Return the table of a split, preferably the labelled one, or its parquet files."""
    split, name = SLUE_SPLITS[part]
    for ending in ("", "_blind"):
        path = corpus_dir / f"slue-voxpopuli_{split}{ending}.tsv"
        if path.is_file():
            require(corpus_dir, [split], SLUE_LAYOUT)
            return [path]
    return sorted([*corpus_dir.glob(f"voxpopuli/{name}-*.parquet"), *corpus_dir.glob(f"{name}-*.parquet")])


Cells = Tuple[str, Dict[str, Any], Optional[Path]]  # the place, the cells, and the clip if it was unpacked


def _slue_table(path: Path) -> Iterator[Union[Cells, LeftOutRow]]:
    """Yield the rows of a table written by pandas."""
    table = check_table(path, SLUE_FORM)
    yield from table.left_out()
    for number, cells in table.records(("id", "normalized_text"), SLUE_LAYOUT):
        yield f"{path}, line {number}", dict(cells), None


def _slue_parquet(files: Sequence[Path], folder: Path) -> Iterator[Union[Cells, LeftOutRow]]:
    """Yield the rows of parquet files; their clips are written to ``folder``."""
    with needing(f"{files[0]}: needs the package pyarrow", "datasets"):
        from pyarrow import ArrowException, parquet
    for path in files:
        number = 0
        try:
            for batch in parquet.ParquetFile(path).iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    place = f"{path}, row {number}"
                    number += 1
                    audio, name = row.pop("audio", None) or {}, str(row.get("id") or "").replace("/", "-")
                    if not audio.get("bytes") or not name:
                        yield place, "has no id or no audio"
                    else:
                        ending = Path(str(audio.get("path") or ".ogg")).suffix or ".ogg"
                        yield place, row, keep(folder / f"{name}{ending}", audio["bytes"])
        except (ArrowException, OSError) as error:
            raise UserError(f"{path}: not a whole parquet file ({reason_of(error)}): download it again") from error


def _slue_rows(rows: Iterator[Union[Cells, LeftOutRow]], folder: Path, entities: str) -> Rows:
    for row in rows:
        if len(row) == 2:
            yield row
            continue
        place, cells, clip = row
        name = str(cells.get("id") or "")
        clip = clip or folder / f"{Path(name).name}.ogg"
        if not clip.is_file():
            yield name or place, f"its clip {clip.name} is not there"
            continue
        try:
            spans = slue_entities(cells.get("normalized_ner"), entities)
        except ValueError as error:
            yield name, str(error)
            continue
        speaker, raw = cells.get("speaker_id"), cells.get("raw_text") or ""
        yield Clip(
            name,
            clip,
            str(cells.get("normalized_text") or ""),
            "en",
            speaker=None if speaker in (None, "", "None") else str(speaker),
            entities=spans,
            custom={ORIGINAL: raw} if raw.strip() not in ("", "None") else {},
        )


def slue_entities(value: Any, entities: str = "combined") -> Optional[List[Span]]:
    """Return the column ``normalized_ner`` as spans of the normalised text; None if it was not annotated.

    In a table, it is a list of ``[type, start, length]`` in Python's notation, or ``None`` for no entity, as in the
    benchmark's toolkit. In parquet files, it is lists of types, starts and lengths, or a list of such triples.

    >>> slue_entities("[['LAW', 86, 18], ['FAC', 3, 4]]"), slue_entities({"type": ["GPE"], "start": [0], "length": [6]})
    ([(86, 104, 'LAW')], [(0, 6, 'PLACE')])

    Raises:
        ValueError: if the value has another form or an unknown type.
    """
    if value is None or value == "":
        return None
    try:
        found = ast.literal_eval(value) or [] if isinstance(value, str) else value
        if isinstance(found, dict):
            found = list(zip(found["type"], found["start"], found["length"]))
        triples = [(item["type"], item["start"], item["length"]) if isinstance(item, dict) else item for item in found]
        spans = [(str(kind), int(start), int(start) + int(length)) for kind, start, length in triples]
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"normalized_ner: expected [[type, start, length], ..], found {str(value)[:60]!r}") from None
    unknown = [kind for kind, _, _ in spans if kind not in SLUE_COMBINED]
    if unknown:
        raise ValueError(f"normalized_ner: unknown type {unknown[0]!r}; expected one of {', '.join(SLUE_COMBINED)}")
    named = [(start, end, SLUE_COMBINED[kind] if entities == "combined" else kind) for kind, start, end in spans]
    return sorted((start, end, kind) for start, end, kind in named if kind is not None)

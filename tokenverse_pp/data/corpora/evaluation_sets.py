"""FLEURS and SLUE-VoxPopuli: clips with a table, often downloaded for their test sets alone.

- FLEURS: sentences of Wikipedia read in 102 languages, labelled for asr and lid. lhotse's recipe reads only what its
  own download writes; the files of the hub's repository, of Google's archives and of lhotse are all read here.
- SLUE-VoxPopuli: a part of VoxPopuli (English) with named entities, labelled for asr, lid and ner; lhotse has no recipe
  for it.

Both name their clips, so that the ids of cuts are the same in every run.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from lhotse.supervision import SupervisionSegment

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import primary_language
from tokenverse_pp.data.corpora.clips import (
    LeftOutRow,
    Utterance,
    keep,
    left_out_rows,
    part_of,
    unpack_all,
    write_utterances,
)
from tokenverse_pp.data.corpora.common import Form, Say, check_table, check_written, require
from tokenverse_pp.data.corpora.read_speech import folders_of
from tokenverse_pp.data.corpora.resume import in_groups
from tokenverse_pp.data.importing.rows import Span
from tokenverse_pp.data.lines import raw_lines
from tokenverse_pp.data.manifests import reason_of

Rows = Iterator[Union[Utterance, LeftOutRow]]
WRITTEN_TEXT = "written_text"  # key of a supervision's custom fields: the text before the corpus normalised it

FLEURS_SPLITS = ("train", "dev", "test")
FLEURS_FORM = Form(cells=7)  # id, file, raw transcription, transcription, characters, samples, gender; no header
FLEURS_LAYOUT = (
    "[data/]<locale>/{train,dev,test}.tsv beside audio/<split>.tar.gz or audio/<split>/*.wav (google/fleurs of the "
    "hub), or metadata/<locale>/<split>.tsv and <locale>/<split>/*.wav (lhotse download fleurs)"
)


def prepare_fleurs(
    corpus_dir: Path,
    output_dir: Path,
    languages: Sequence[str] = (),
    normaliser: str = "words",
    written: bool = False,
    jobs: int = 1,
    force: bool = False,
    say: Say = print,
) -> Dict[str, Path]:
    """``cuts_<split>_<code>.jsonl.gz`` of the splits that are there; the id of a cut is ``<locale>-<clip>``.

    The text is FLEURS's own transcription (lower case, without punctuation), normalised. Archives are unpacked into
    ``OUT/audio``.

    Args:
        languages: locales as FLEURS names them (``fr_fr``), or their languages (``fr``); none: all that are there.
        written: label punct too, by the raw transcriptions.
        force: see `in_groups`; a locale is a group.

    Raises:
        UserError: where the folder is no FLEURS.
    """
    check_written(written, normaliser)
    require(corpus_dir, [], FLEURS_LAYOUT)
    tables = _fleurs_tables(corpus_dir)
    if not tables:
        raise UserError(f"{corpus_dir}: found no <locale>/<split>.tsv; expected {FLEURS_LAYOUT}")
    locales = folders_of(languages, sorted(tables), str(corpus_dir)) or sorted(tables)
    for locale in locales:
        if locale not in tables:
            raise UserError(f"{corpus_dir}: --language {locale}: expected one of {', '.join(sorted(tables))}")

    def prepare(locale: str) -> Dict[str, Path]:
        code = fleurs_code(locale)
        folders, archives = {}, []
        for split, table in tables[locale].items():
            folders[split] = _fleurs_folder(corpus_dir, table)
            if folders[split].is_file():
                archives.append((folders[split], output_dir / "audio" / f"{split}_{code}"))
                folders[split] = archives[-1][1]
        unpack_all(archives, jobs)
        parts = [
            part_of(f"{split}_{code}", code, _fleurs_rows(table, folders[split], locale), jobs)
            for split, table in tables[locale].items()
        ]
        return write_utterances(parts, output_dir, "fleurs", normaliser, jobs, say, _written_text if written else None)

    given = {"corpus_dir": corpus_dir, "normaliser": normaliser, "written": written}
    groups = {locale: {"splits": list(tables[locale])} for locale in locales}
    return in_groups("fleurs", output_dir, given, groups, prepare, force, say)


def fleurs_code(locale: str) -> str:
    """The language of one of FLEURS's locales.

    >>> fleurs_code("fr_fr"), fleurs_code("cmn_hans_cn"), fleurs_code("yue_hant_hk"), fleurs_code("ceb_ph")
    ('fr', 'zh', 'yue', 'ceb')
    """
    return primary_language(locale.replace("_", "-")) or locale


def _fleurs_tables(corpus_dir: Path) -> Dict[str, Dict[str, Path]]:
    """locale -> split -> table, of what is there."""
    tables: Dict[str, Dict[str, Path]] = {}
    for folder in ("metadata", "data", "."):
        for split in FLEURS_SPLITS:
            for path in sorted(corpus_dir.glob(f"{folder}/*_*/{split}.tsv")):
                tables.setdefault(path.parent.name, {}).setdefault(split, path)
    return tables


def _fleurs_folder(corpus_dir: Path, table: Path) -> Path:
    """The folder of a table's clips, or the archive that holds them."""
    beside, split = table.parent, table.stem
    places = [beside / "audio" / split, beside / split, corpus_dir / beside.name / split]
    found = [path for path in places if path.is_dir()]
    found += [path for path in [beside / "audio" / f"{split}.tar.gz"] if path.is_file()]
    if not found:
        raise UserError(
            f"{table}: found neither audio/{split}.tar.gz nor audio/{split} beside it; expected {FLEURS_LAYOUT}"
        )
    return found[0]


def _fleurs_rows(path: Path, folder: Path, locale: str) -> Rows:
    table = check_table(path, FLEURS_FORM)
    yield from left_out_rows(table)
    for number, line in raw_lines(path):
        if number in table.bad or not line.strip():
            continue
        prompt, file, raw, text, _, _, gender = line.decode("utf-8").split("\t")
        clip = folder / Path(file).name
        if not clip.is_file():
            yield f"{path}, line {number}", f"its clip {clip.name} is not there"
            continue
        custom = {"prompt": prompt, WRITTEN_TEXT: raw}
        yield Utterance(f"{locale}-{clip.stem}", clip, text, locale, gender=gender.lower() or None, custom=custom)


def _written_text(turn: SupervisionSegment) -> Optional[str]:
    return (turn.custom or {}).get(WRITTEN_TEXT)


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
"""The 18 types of OntoNotes -> the 7 that the benchmark scores, None: not scored (SLUE, ICASSP 2022, table 2)."""


def prepare_slue_voxpopuli(
    corpus_dir: Path,
    output_dir: Path,
    entities: str = "combined",
    normaliser: str = "words",
    written: bool = False,
    jobs: int = 1,
    force: bool = False,
    say: Say = print,
) -> Dict[str, Path]:
    """``cuts_{train,dev,test}.jsonl.gz`` of the splits that are there; the id of a cut is that of the corpus.

    A split without entities (the blind test set) is labelled for asr and lid only. An entity that is a part of a word
    of the normalised text takes all of it.

    Args:
        entities: ``combined``: the 7 types that are scored; ``raw``: the 18 that were annotated.
        written: label punct too, by ``raw_text``, where there is any.
        force: see `in_groups`.

    Raises:
        UserError: where the folder is no SLUE-VoxPopuli.
    """
    check_written(written, normaliser)
    require(corpus_dir, [], SLUE_LAYOUT)
    sources = {part: files for part in SLUE_SPLITS for files in [_slue_files(corpus_dir, part)] if files}
    if not sources:
        raise UserError(f"{corpus_dir}: found no table and no parquet file; expected {SLUE_LAYOUT}")

    def prepare(_: str) -> Dict[str, Path]:
        parts = []
        for part, files in sources.items():
            tsv = files[0].suffix == ".tsv"
            cells = _slue_table(files[0]) if tsv else _slue_parquet(files, output_dir / "audio" / part)
            folder = corpus_dir / SLUE_SPLITS[part][0]
            parts.append(part_of(part, "en", _slue_rows(cells, folder, entities), jobs))
        return write_utterances(
            parts, output_dir, "slue-voxpopuli", normaliser, jobs, say, _written_text if written else None
        )

    given = {"corpus_dir": corpus_dir, "entities": entities, "normaliser": normaliser, "written": written}
    groups = {"all": {"splits": {part: [file.name for file in files] for part, files in sources.items()}}}
    return in_groups("slue-voxpopuli", output_dir, given, groups, prepare, force, say)


def _slue_files(corpus_dir: Path, part: str) -> List[Path]:
    """The table of a split, rather with labels than without; or its parquet files."""
    split, name = SLUE_SPLITS[part]
    for ending in ("", "_blind"):
        path = corpus_dir / f"slue-voxpopuli_{split}{ending}.tsv"
        if path.is_file():
            require(corpus_dir, [split], SLUE_LAYOUT)
            return [path]
    return sorted([*corpus_dir.glob(f"voxpopuli/{name}-*.parquet"), *corpus_dir.glob(f"{name}-*.parquet")])


Cells = Tuple[str, Dict[str, Any], Optional[Path]]  # the place, the cells, and the clip if it was unpacked


def _slue_table(path: Path) -> Iterator[Union[Cells, LeftOutRow]]:
    """The rows of a table, which pandas has written."""
    table = check_table(path, SLUE_FORM)
    yield from left_out_rows(table)
    header: List[str] = []
    for number, line in raw_lines(path):
        if number in table.bad or not line.strip():
            continue
        cells = SLUE_FORM.split(line.decode("utf-8")) or []
        if header:
            yield f"{path}, line {number}", dict(zip(header, cells)), None
            continue
        header = cells
        missing = [name for name in ("id", "normalized_text") if name not in header]
        if missing:
            raise UserError(f"{path}, line {number}: no column {missing[0]!r}; expected {SLUE_LAYOUT}")


def _slue_parquet(files: Sequence[Path], folder: Path) -> Iterator[Union[Cells, LeftOutRow]]:
    """The rows of parquet files; their clips are written to ``folder``."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"{files[0]}: needs the package pyarrow: pip install 'tokenverse_pp[datasets]'") from None
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
                        yield place, row, keep(folder / f"{name}.ogg", audio["bytes"])
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
        yield Utterance(
            name,
            clip,
            str(cells.get("normalized_text") or ""),
            "en",
            speaker=None if speaker in (None, "", "None") else str(speaker),
            entities=spans,
            custom={WRITTEN_TEXT: raw} if raw.strip() not in ("", "None") else {},
        )


def slue_entities(value: Any, entities: str = "combined") -> Optional[List[Span]]:
    """The column ``normalized_ner`` as spans of the normalised text; None where nothing was annotated.

    In a table it is a list of ``[type, start, length]`` in Python's notation, and ``None`` for no entity, as the
    benchmark's toolkit reads it; in parquet files it is lists of types, starts and lengths, or a list of such triples.

    >>> slue_entities("[['LAW', 86, 18], ['FAC', 3, 4]]"), slue_entities({"type": ["GPE"], "start": [0], "length": [6]})
    ([(86, 104, 'LAW')], [(0, 6, 'PLACE')])

    Raises:
        ValueError: for another form, and for an unknown type.
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

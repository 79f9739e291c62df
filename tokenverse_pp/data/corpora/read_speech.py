"""Corpora of read or prepared speech: one turn per cut, labelled for asr and lid.

- LibriSpeech and Mini LibriSpeech: English audiobooks.
- Multilingual LibriSpeech: audiobooks in eight languages.
- Common Voice: sentences read by volunteers in over a hundred languages.

Languages are written as ISO 639-1 codes (639-3 for languages without a two-letter code). Common Voice's tables are read
here, because lhotse's recipe needs the columns of release 13 or later. Releases before 13 lack ``variant``, those
before 7 name ``accents`` ``accent``, those before 5 lack ``locale`` and ``segment``; releases from 17 on add
``sentence_id`` and ``sentence_domain``.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Union

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import canonical_tag, matching_languages
from tokenverse_pp.data.corpora.clips import Clip, part_of, write_utterances
from tokenverse_pp.data.corpora.common import (
    CorpusPart,
    Form,
    LeftOutRow,
    Say,
    check_table,
    check_written,
    in_corpus,
    lhotse_recipe,
    one_folder,
    require,
    without_audio,
)
from tokenverse_pp.data.corpora.resume import contents, in_groups
from tokenverse_pp.data.lines import raw_lines, stray_control, text_of

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


LIBRISPEECH_FORM = Form(delimiter=None, cells=2)
LIBRISPEECH_LAYOUT = (
    "LibriSpeech/<part>/<speaker>/<chapter>/*.{trans.txt,flac}; a part is train-clean-100, dev-clean, .."
)


def prepare_librispeech(
    corpus_dir: Path,
    output_dir: Path,
    normaliser: str = "words",
    jobs: int = 1,
    force: bool = False,
    say: Say = print,
) -> Dict[str, Path]:
    """Every existing part -> ``cuts_<part>.jsonl.gz`` (``cuts_train_clean_100.jsonl.gz``), one cut per utterance.

    Args:
        force: see `in_groups`; a part is a group.

    Raises:
        UserError: where the folder is no LibriSpeech.
    """
    from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH
    from lhotse.recipes.librispeech import prepare_librispeech as recipe

    require(corpus_dir, ["*/*/*/*.trans.txt"], LIBRISPEECH_LAYOUT)
    known = {*LIBRISPEECH, *MINI_LIBRISPEECH}
    names = sorted({path.relative_to(corpus_dir).parts[0] for path in corpus_dir.glob("*/*/*/*.trans.txt")} & known)
    if not names:
        raise UserError(f"{corpus_dir}: found none of {', '.join(sorted(known))}; expected {LIBRISPEECH_LAYOUT}")

    def prepare(name: str) -> Dict[str, Path]:
        tables = [check_table(path, LIBRISPEECH_FORM) for path in sorted(corpus_dir.glob(f"{name}/*/*/*.trans.txt"))]
        with one_folder(corpus_dir, name, tables) as folder:
            with lhotse_recipe("librispeech", corpus_dir, LIBRISPEECH_LAYOUT):
                manifest = recipe(folder, dataset_parts=[name], num_jobs=jobs)[name]
            in_corpus(manifest["recordings"], folder, corpus_dir)
        unread = [item for table in tables for item in table.left_out()]
        names = (cells[0] for table in tables for _, cells in table.rows())
        unread += without_audio(names, (turn.id for turn in manifest["supervisions"]))
        part = CorpusPart(name.replace("-", "_"), **manifest, language="en", unread=unread)
        return write_utterances([part], output_dir, "librispeech", normaliser, jobs, say)

    given = {"corpus_dir": corpus_dir, "normaliser": normaliser}
    groups = {name: {"read": contents([corpus_dir / name], output_dir)} for name in names}
    return in_groups("librispeech", output_dir, given, groups, prepare, force, say)


MLS_SPLITS = ("train", "dev", "test")
MLS_FORM = Form(cells=2)
MLS_LAYOUT = (
    "mls_<language>[_opus]/{metainfo.txt,<split>/transcripts.txt,<split>/audio/*/*/*.{flac,opus}} for the splits "
    "train, dev and test"
)


def prepare_mls(
    corpus_dir: Path,
    output_dir: Path,
    normaliser: str = "words",
    jobs: int = 1,
    force: bool = False,
    say: Say = print,
) -> Dict[str, Path]:
    """``mls_<language>`` folders (Opus if they end in ``_opus``, else FLAC) -> ``cuts_<split>_<code>.jsonl.gz``.

    Args:
        force: see `in_groups`; a language is a group.

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
    languages = {name: name[len("mls_") :].replace("_opus", "") for name in folders}
    unknown = sorted(set(languages.values()) - set(MLS))
    if unknown:
        raise UserError(f"{corpus_dir}: mls_{unknown[0]}: not a language of MLS; expected one of {', '.join(MLS)}")
    for name in folders:
        files = [f"{name}/metainfo.txt", *(f"{name}/{split}/transcripts.txt" for split in MLS_SPLITS)]
        require(corpus_dir, files, MLS_LAYOUT)

    def prepare(name: str) -> Dict[str, Path]:
        tables = {split: check_table(corpus_dir / name / split / "transcripts.txt", MLS_FORM) for split in MLS_SPLITS}
        with one_folder(corpus_dir, name, list(tables.values())) as folder:
            with lhotse_recipe("mls", corpus_dir, MLS_LAYOUT):
                manifests = recipe(folder, opus=bool(opus), num_jobs=jobs)[languages[name]]
            for manifest in manifests.values():
                in_corpus(manifest["recordings"], folder, corpus_dir)
        code = MLS[languages[name]]
        parts = [
            CorpusPart(f"{split}_{code}", **manifests[split], language=code, unread=tables[split].left_out())
            for split in MLS_SPLITS
        ]
        return write_utterances(parts, output_dir, "mls", normaliser, jobs, say)

    given = {"corpus_dir": corpus_dir, "normaliser": normaliser}
    groups = {name: {"read": contents([corpus_dir / name], output_dir)} for name in folders}
    return in_groups("mls", output_dir, given, groups, prepare, force, say)


COMMONVOICE_SPLITS = ("train", "dev", "test")
COLUMNS = ("path", "sentence")  # required columns, which every release has
CUSTOM = {"age": "age", "accents": "accents", "accent": "accents", "variant": "variant"}  # as lhotse's recipe has them
COMMONVOICE_LAYOUT = (
    "the unpacked release (cv-corpus-<version>) with <locale>/{train,dev,test}.tsv and <locale>/clips/*.mp3"
)

Row = Mapping[str, str]


def prepare_commonvoice(
    corpus_dir: Path,
    output_dir: Path,
    languages: Sequence[str] = (),
    normaliser: str = "words",
    written: bool = False,
    jobs: int = 1,
    force: bool = False,
    say: Say = print,
) -> Dict[str, Path]:
    """``cuts_<split>_<code>.jsonl.gz``, one cut a sentence; the clips are rewritten at 16 kHz (``OUT/audio``).

    Args:
        languages: locales as Common Voice names them (``sv-SE``); none: all that are there.
        written: label punct too, by the sentences as they are.
        force: see `in_groups`; a locale is a group.

    Raises:
        UserError: where the folder is no Common Voice release, and where two locales have one language code.
    """
    check_written(written, normaliser)
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

    def prepare(locale: str) -> Dict[str, Path]:
        clip_of = _clip_finder(corpus_dir / locale / "clips")
        parts = [_read_part(corpus_dir / locale, split, clip_of, jobs) for split in COMMONVOICE_SPLITS]
        return write_utterances(
            parts, output_dir, "commonvoice", normaliser, jobs, say, (lambda turn: turn.text) if written else None
        )

    given = {"corpus_dir": corpus_dir, "normaliser": normaliser, "written": written}
    groups = {locale: {"read": contents([corpus_dir / locale], output_dir)} for locale in locales}
    return in_groups("commonvoice", output_dir, given, groups, prepare, force, say)


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
    rows: List[Union[Clip, LeftOutRow]] = []
    for row in _rows(folder / f"{split}.tsv"):
        clip = None if isinstance(row, tuple) else clip_of(row["path"])
        if isinstance(row, tuple):
            rows.append(row)
        elif clip is None:
            rows.append((row["path"] or "no path", "its clip is not in the folder clips"))
        else:
            rows.append(
                Clip(
                    id=clip.stem,
                    audio=clip,
                    text=row["sentence"].strip(),
                    language=locale,
                    speaker=row.get("client_id") or None,
                    gender=row.get("gender"),
                    custom={name: row[column] for column, name in CUSTOM.items() if column in row},
                )
            )
    if not rows:
        raise UserError(f"{folder / split}.tsv: holds no rows (--language names the locales to prepare)")
    return part_of(f"{split}_{code}", code, rows, jobs)

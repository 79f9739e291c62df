"""Corpora of read or prepared speech: one turn per cut, labelled for asr and lid.

- LibriSpeech and Mini LibriSpeech: English audiobooks.
- Multilingual LibriSpeech: audiobooks in eight languages.
- Common Voice: sentences read by volunteers in over a hundred languages.
- FLEURS: sentences from Wikipedia read in 102 languages. lhotse reads only what its own download writes; here the files
  of the hub's repository too. Cut ids consist of locale and clip, so they are the same in every run.

Languages are written as ISO 639-1 codes (639-3 for languages without a two-letter code). The tables are not read by
lhotse's recipes, which fail completely if one row is broken or one clip is missing; the one for Common Voice also needs
the columns of release 13 or later. Releases before 13 lack ``variant``, those before 7 call ``accents`` ``accent``,
those before 5 lack ``locale`` and ``segment``; releases from 17 on add ``sentence_id`` and ``sentence_domain``.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Union

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import canonical_tag, matching_languages, primary_language
from tokenverse_pp.data.corpora.clips import (
    ORIGINAL,
    Clip,
    Rows,
    if_there,
    original_of,
    part_of,
    unpack_all,
    write_utterances,
)
from tokenverse_pp.data.corpora.common import (
    CorpusPart,
    Form,
    LeftOutRow,
    Preparation,
    check_table,
    require,
    split_tables,
)
from tokenverse_pp.data.corpora.resume import CorpusGroup, in_groups
from tokenverse_pp.data.lines import raw_lines, text_lines, text_of

SPLITS = ("train", "dev", "test")  # of MLS, Common Voice, FLEURS and VoxPopuli
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
"""Names in the folders ``mls_<name>`` of Multilingual LibriSpeech -> language codes."""

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
    """Return the language folders of a corpus for the given codes; an unknown code is returned unchanged.

    Raises:
        UserError: if a code may mean several folders of ``where``, the folder of the corpus.
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


def prepare_librispeech(run: Preparation) -> Dict[str, Path]:
    """Write each existing part to ``cuts_<part>.jsonl.gz`` (``cuts_train_clean_100..``), one cut per utterance."""
    from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH

    require(run.corpus_dir, ["*/*/*/*.trans.txt"], LIBRISPEECH_LAYOUT)
    tables = sorted(run.corpus_dir.glob("*/*/*/*.trans.txt"))
    known = {*LIBRISPEECH, *MINI_LIBRISPEECH}
    names = {name: name.replace("-", "_") for name in sorted({path.parts[-4] for path in tables} & known)}
    if not names:
        raise UserError(f"{run.corpus_dir}: found none of {', '.join(sorted(known))}; expected {LIBRISPEECH_LAYOUT}")

    def prepare(name: str) -> Dict[str, Path]:
        rows = (row for path in tables if path.parts[-4] == name for row in _librispeech_rows(path))
        return write_utterances(run, [part_of(names[name], "en", rows, run.jobs)], "librispeech")

    groups = {name: CorpusGroup([part], [run.corpus_dir / name]) for name, part in names.items()}
    return in_groups(run, "librispeech", groups, prepare)


def _librispeech_rows(path: Path) -> Rows:
    table = check_table(path, LIBRISPEECH_FORM)
    yield from table.left_out()
    for _, (name, text) in table.rows():
        yield if_there(Clip(name, path.parent / f"{name}.flac", text.strip(), "en", speaker=name.split("-")[0]))


MLS_FORM = Form(cells=2)
MLS_LAYOUT = (
    "mls_<language>[_opus]/{metainfo.txt,<split>/transcripts.txt,<split>/audio/*/*/*.{flac,opus}} for the splits "
    "train, dev and test"
)


def prepare_mls(run: Preparation) -> Dict[str, Path]:
    """Write ``cuts_<split>_<code>.jsonl.gz`` for each folder ``mls_<language>`` (FLAC) or ``mls_<language>_opus``."""
    corpus_dir = run.corpus_dir
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
    codes = {name: MLS[language] for name, language in languages.items()}
    for name in folders:
        files = [f"{name}/metainfo.txt", *(f"{name}/{split}/transcripts.txt" for split in SPLITS)]
        require(corpus_dir, files, MLS_LAYOUT)

    def prepare(name: str) -> Dict[str, Path]:
        code, ending = codes[name], "opus" if opus else "flac"
        lines = (line.split("|") for _, line in text_lines(corpus_dir / name / "metainfo.txt"))
        genders = {cells[0].strip(): cells[1].strip() for cells in lines if len(cells) > 1}
        parts = [
            part_of(f"{split}_{code}", code, _mls_rows(corpus_dir / name / split, ending, code, genders), run.jobs)
            for split in SPLITS
        ]
        return write_utterances(run, parts, "mls")

    groups = {
        name: CorpusGroup([f"{split}_{code}" for split in SPLITS], [corpus_dir / name]) for name, code in codes.items()
    }
    return in_groups(run, "mls", groups, prepare)


def _mls_rows(folder: Path, ending: str, code: str, genders: Mapping[str, str]) -> Rows:
    table = check_table(folder / "transcripts.txt", MLS_FORM)
    yield from table.left_out()
    for _, (name, text) in table.rows():
        speaker, book = [*name.split("_"), ""][:2]
        audio = folder / "audio" / speaker / book / f"{name}.{ending}"
        yield if_there(Clip(name, audio, text, code, speaker=speaker, gender=genders.get(speaker)))


COMMONVOICE_FORM = Form(proofs=("up_votes", "down_votes"))
COLUMNS = ("path", "sentence")  # required columns, which every release has
CUSTOM = {"age": "age", "accents": "accents", "accent": "accents", "variant": "variant"}  # as in lhotse's recipe
COMMONVOICE_LAYOUT = (
    "the unpacked release (cv-corpus-<version>) with <locale>/{train,dev,test}.tsv and <locale>/clips/*.mp3"
)


def prepare_commonvoice(run: Preparation, languages: Sequence[str] = ()) -> Dict[str, Path]:
    """Write ``cuts_<split>_<code>.jsonl.gz``, one cut per sentence; clips are rewritten at 16 kHz in ``OUT/audio``.

    Args:
        languages: locales as Common Voice names them (``sv-SE``); empty: all existing ones.

    Raises:
        UserError: if the folder is not a Common Voice release, or two locales have the same language code.
    """
    corpus_dir = run.corpus_dir
    require(corpus_dir, ["*/clips", "*/train.tsv"], COMMONVOICE_LAYOUT)
    there = sorted(path.parent.name for path in corpus_dir.glob("*/train.tsv"))
    locales = folders_of(languages, there, str(corpus_dir)) or there
    by_code: Dict[str, str] = {}
    for locale in locales:
        tables = [f"{locale}/{split}.tsv" for split in SPLITS]
        require(corpus_dir, [f"{locale}/clips", *tables], COMMONVOICE_LAYOUT)
        other = by_code.setdefault(common_voice_code(locale), locale)
        if other != locale:
            raise UserError(
                f"{corpus_dir}: {other} and {locale} are both {common_voice_code(locale)}: give --language for one, "
                "and prepare the other into a folder of its own"
            )
        for table in tables:
            _check_header(corpus_dir / table)

    def prepare(locale: str) -> Dict[str, Path]:
        clip_of = _clip_finder(corpus_dir / locale / "clips")
        parts = [_read_part(corpus_dir / locale, split, clip_of, run.jobs) for split in SPLITS]
        return write_utterances(run, parts, "commonvoice", lambda turn: turn.text)

    groups = {
        locale: CorpusGroup([f"{split}_{code}" for split in SPLITS], [corpus_dir / locale])
        for code, locale in by_code.items()
    }
    return in_groups(run, "commonvoice", groups, prepare)


def _check_header(path: Path) -> None:
    expected = f"expected a header with the columns {', '.join(COLUMNS)}"
    _, line = next(raw_lines(path), (0, None))
    if line is None:
        raise UserError(f"{path}: empty; {expected}")
    found = text_of(line, f"{path}, line 1").split("\t")
    missing = [name for name in COLUMNS if name not in found]
    if missing or len(set(found)) < len(found):
        wrong = f"no {missing[0]}" if missing else "a column is there twice"
        raise UserError(f"{path}, line 1: {expected}; {wrong}")


def _clip_finder(folder: Path) -> Callable[[str], Optional[Path]]:
    """Return a function that finds the clip of a row's ``path``; the extension may be missing, and case may differ."""
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
    table = check_table(folder / f"{split}.tsv", COMMONVOICE_FORM)
    rows: List[Union[Clip, LeftOutRow]] = [*table.left_out()]
    for _, row in table.records(COLUMNS, COMMONVOICE_LAYOUT):
        clip = clip_of(row["path"])
        if clip is None:
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


FLEURS_FORM = Form(cells=7)  # id, file, raw transcription, transcription, characters, samples, gender; no header
FLEURS_LAYOUT = (
    "[data/]<locale>/{train,dev,test}.tsv beside audio/<split>.tar.gz or audio/<split>/*.wav (google/fleurs of the "
    "hub), or metadata/<locale>/<split>.tsv and <locale>/<split>/*.wav (lhotse download fleurs)"
)


def prepare_fleurs(run: Preparation, languages: Sequence[str] = ()) -> Dict[str, Path]:
    """Write ``cuts_<split>_<code>.jsonl.gz`` of the existing splits; the id of a cut is ``<locale>-<clip>``.

    The text is FLEURS's own transcription (lower case, without punctuation), normalised. Archives are unpacked into
    ``OUT/audio``.

    Args:
        languages: locales as FLEURS names them (``fr_fr``), or their languages (``fr``); empty: all existing ones.
    """
    corpus_dir, output_dir = run.corpus_dir, run.output_dir
    require(corpus_dir, [], FLEURS_LAYOUT)
    tables = split_tables(corpus_dir, ("metadata", "data", "."), SPLITS, "*_*/{split}.tsv")
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
        unpack_all(archives, run.jobs)
        parts = [
            part_of(f"{split}_{code}", code, _fleurs_rows(table, folders[split], locale), run.jobs)
            for split, table in tables[locale].items()
        ]
        return write_utterances(run, parts, "fleurs", original_of)

    groups = {
        locale: CorpusGroup(
            [f"{split}_{fleurs_code(locale)}" for split in tables[locale]],
            [*(table.parent for table in tables[locale].values()), corpus_dir / locale],
        )
        for locale in locales
    }
    return in_groups(run, "fleurs", groups, prepare)


def fleurs_code(locale: str) -> str:
    """Return the language of a FLEURS locale.

    >>> fleurs_code("fr_fr"), fleurs_code("cmn_hans_cn"), fleurs_code("yue_hant_hk"), fleurs_code("ceb_ph")
    ('fr', 'zh', 'yue', 'ceb')
    """
    return primary_language(locale.replace("_", "-")) or locale


def _fleurs_folder(corpus_dir: Path, table: Path) -> Path:
    """Return the archive of a table's clips (refused later if incomplete), or else the folder of the clips."""
    beside, split = table.parent, table.stem
    places = [beside / "audio" / split, beside / split, corpus_dir / beside.name / split]
    found = [path for path in [beside / "audio" / f"{split}.tar.gz"] if path.is_file()]
    found += [path for path in places if path.is_dir()]
    if not found:
        raise UserError(
            f"{table}: found neither audio/{split}.tar.gz nor audio/{split} beside it; expected {FLEURS_LAYOUT}"
        )
    return found[0]


def _fleurs_rows(path: Path, folder: Path, locale: str) -> Rows:
    table = check_table(path, FLEURS_FORM)
    yield from table.left_out()
    for number, (prompt, file, raw, text, _, _, gender) in table.rows():
        clip = folder / Path(file).name
        if not clip.is_file():
            yield f"{path}, line {number}", f"its clip {clip.name} is not there"
            continue
        custom = {"prompt": prompt, ORIGINAL: raw}
        yield Clip(f"{locale}-{clip.stem}", clip, text, locale, gender=gender.lower() or None, custom=custom)

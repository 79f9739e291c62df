"""FLEURS: sentences from Wikipedia read in 102 languages, labelled for asr and lid.

lhotse's recipe reads only what its own download writes; this module also reads the files of the hub's repository. Cut
ids consist of locale and clip, so they are the same in every run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Sequence

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import primary_language
from tokenverse_pp.data.corpora.clips import ORIGINAL, Clip, Rows, original_of, part_of, unpack_all, write_utterances
from tokenverse_pp.data.corpora.common import Form, Preparation, check_table, require, split_tables
from tokenverse_pp.data.corpora.read_speech import folders_of
from tokenverse_pp.data.corpora.resume import CorpusGroup, in_groups

SPLITS = ("train", "dev", "test")
FORM = Form(cells=7)  # id, file, raw transcription, transcription, characters, samples, gender; no header
LAYOUT = (
    "[data/]<locale>/{train,dev,test}.tsv beside audio/<split>.tar.gz or audio/<split>/*.wav (google/fleurs of the "
    "hub), or metadata/<locale>/<split>.tsv and <locale>/<split>/*.wav (lhotse download fleurs)"
)


def prepare_fleurs(run: Preparation, languages: Sequence[str] = ()) -> Dict[str, Path]:
    """Write ``cuts_<split>_<code>.jsonl.gz`` of the existing splits; the id of a cut is ``<locale>-<clip>``.

    The text is FLEURS's own transcription (lower case, without punctuation), normalised. Archives are unpacked into
    ``OUT/audio``.

    Args:
        languages: locales as FLEURS names them (``fr_fr``), or their languages (``fr``); empty: all existing ones.

    Raises:
        UserError: if the folder is not FLEURS.
    """
    corpus_dir, output_dir = run.corpus_dir, run.output_dir
    require(corpus_dir, [], LAYOUT)
    tables = split_tables(corpus_dir, ("metadata", "data", "."), SPLITS, "*_*/{split}.tsv")
    if not tables:
        raise UserError(f"{corpus_dir}: found no <locale>/<split>.tsv; expected {LAYOUT}")
    locales = folders_of(languages, sorted(tables), str(corpus_dir)) or sorted(tables)
    for locale in locales:
        if locale not in tables:
            raise UserError(f"{corpus_dir}: --language {locale}: expected one of {', '.join(sorted(tables))}")

    def prepare(locale: str) -> Dict[str, Path]:
        code = fleurs_code(locale)
        folders, archives = {}, []
        for split, table in tables[locale].items():
            folders[split] = _folder(corpus_dir, table)
            if folders[split].is_file():
                archives.append((folders[split], output_dir / "audio" / f"{split}_{code}"))
                folders[split] = archives[-1][1]
        unpack_all(archives, run.jobs)
        parts = [
            part_of(f"{split}_{code}", code, _rows(table, folders[split], locale), run.jobs)
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


def _folder(corpus_dir: Path, table: Path) -> Path:
    """Return the archive of a table's clips (refused later if incomplete), or else the folder of the clips."""
    beside, split = table.parent, table.stem
    places = [beside / "audio" / split, beside / split, corpus_dir / beside.name / split]
    found = [path for path in [beside / "audio" / f"{split}.tar.gz"] if path.is_file()]
    found += [path for path in places if path.is_dir()]
    if not found:
        raise UserError(f"{table}: found neither audio/{split}.tar.gz nor audio/{split} beside it; expected {LAYOUT}")
    return found[0]


def _rows(path: Path, folder: Path, locale: str) -> Rows:
    table = check_table(path, FORM)
    yield from table.left_out()
    for number, (prompt, file, raw, text, _, _, gender) in table.rows():
        clip = folder / Path(file).name
        if not clip.is_file():
            yield f"{path}, line {number}", f"its clip {clip.name} is not there"
            continue
        custom = {"prompt": prompt, ORIGINAL: raw}
        yield Clip(f"{locale}-{clip.stem}", clip, text, locale, gender=gender.lower() or None, custom=custom)

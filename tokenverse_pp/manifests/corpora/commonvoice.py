"""Common Voice: sentences read by volunteers in over a hundred languages; labelled for asr and lid."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Dict, List, Sequence

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.corpora.languages import common_voice_code, folders_of
from tokenverse_pp.manifests.corpora.parts import Part, Say, lhotse_recipe, require
from tokenverse_pp.manifests.corpora.utterances import write_utterances

SPLITS = ("train", "dev", "test")
COLUMNS = ("client_id", "path", "sentence", "age", "gender", "accents", "variant")  # what lhotse's recipe reads
LAYOUT = "the unpacked release (cv-corpus-<version>) with <locale>/{train,dev,test}.tsv and <locale>/clips/*.mp3"


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
        languages: locales as Common Voice names them (``sv-SE``); none: all that are there, also those that lhotse's
            own list does not name.

    Raises:
        UserError: where the folder is no Common Voice release, and where two locales have one language code.
    """
    from lhotse.recipes.commonvoice import prepare_commonvoice as recipe

    require(corpus_dir, ["*/clips", "*/train.tsv"], LAYOUT)
    there = sorted(path.parent.name for path in corpus_dir.glob("*/train.tsv"))
    locales = folders_of(languages, there, str(corpus_dir)) or there
    _check_locales(corpus_dir, locales)
    with tempfile.TemporaryDirectory() as folder, lhotse_recipe("commonvoice", corpus_dir, LAYOUT):
        manifests = recipe(corpus_dir, folder, languages=locales, splits=SPLITS, num_jobs=jobs)
    parts = [
        Part(f"{split}_{common_voice_code(locale)}", **manifests[locale][split], language=common_voice_code(locale))
        for locale in locales
        for split in SPLITS
    ]
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
            path = corpus_dir / locale / f"{split}.tsv"
            with open(path, encoding="utf-8") as file:
                found = file.readline().rstrip("\n").split("\t")
            missing = [name for name in COLUMNS if name not in found]
            if missing:
                raise UserError(f"{path}, line 1: expected the columns {', '.join(COLUMNS)}; no {missing[0]}")

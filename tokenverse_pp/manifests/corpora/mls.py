"""Multilingual LibriSpeech: read books in eight languages; labelled for asr and lid."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

from tokenverse_pp.errors import UserError
from tokenverse_pp.manifests.corpora.languages import MLS
from tokenverse_pp.manifests.corpora.parts import Part, Say, lhotse_recipe, require
from tokenverse_pp.manifests.corpora.rows import Form, check_table, in_corpus, readable
from tokenverse_pp.manifests.corpora.utterances import write_utterances

SPLITS = ("train", "dev", "test")
FORM = Form(cells=2)
LAYOUT = (
    "mls_<language>[_opus]/{metainfo.txt,<split>/transcripts.txt,<split>/audio/*/*/*.{flac,opus}} for the splits "
    "train, dev and test"
)


def prepare_mls(
    corpus_dir: Path, output_dir: Path, normaliser: str = "words", jobs: int = 1, say: Say = print
) -> Dict[str, Path]:
    """``mls_<language>`` folders -> ``cuts_<split>_<code>.jsonl.gz``, one cut a segment.

    Opus files are read where the folders end in ``_opus``, FLAC files otherwise.

    Raises:
        UserError: where the folder is no MLS.
    """
    from lhotse.recipes.mls import prepare_mls as recipe

    require(corpus_dir, ["mls_*/metainfo.txt", "mls_*/train/transcripts.txt"], LAYOUT)
    folders = sorted(path.name for path in corpus_dir.glob("mls_*") if path.is_dir() and "_lm_" not in path.name)
    opus = [name for name in folders if name.endswith("_opus")]
    if opus and len(opus) < len(folders):
        other = next(name for name in folders if name not in opus)
        raise UserError(f"{corpus_dir}: {opus[0]} and {other}: expected Opus and FLAC in folders of their own")
    tables = {
        f"{name} {split}": check_table(path, FORM)
        for name in folders
        for split in SPLITS
        for path in [corpus_dir / name / split / "transcripts.txt"]
        if path.is_file()
    }
    with readable(corpus_dir, list(tables.values())) as folder:
        with lhotse_recipe("mls", corpus_dir, LAYOUT):
            manifests = recipe(folder, opus=bool(opus), num_jobs=jobs)
        for splits in manifests.values():
            for manifest in splits.values():
                in_corpus(manifest["recordings"], folder, corpus_dir)
    unknown = sorted(set(manifests) - set(MLS))
    if unknown:
        raise UserError(f"{corpus_dir}: mls_{unknown[0]}: not a language of MLS; expected one of {', '.join(MLS)}")
    parts = [
        Part(
            f"{split}_{MLS[name]}",
            **manifests[name][split],
            language=MLS[name],
            unread=tables[f"mls_{name}{'_opus' if opus else ''} {split}"].left_out(),
        )
        for name in sorted(manifests)
        for split in SPLITS
    ]
    return write_utterances(parts, output_dir, "mls", normaliser, jobs, say)

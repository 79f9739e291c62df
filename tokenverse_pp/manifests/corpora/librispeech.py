"""LibriSpeech and its small sister Mini LibriSpeech: read English books; labelled for asr and lid."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

from tokenverse_pp.manifests.corpora.parts import Part, Say, lhotse_recipe, require
from tokenverse_pp.manifests.corpora.rows import Form, check_table, in_corpus, readable
from tokenverse_pp.manifests.corpora.utterances import write_utterances

FORM = Form(delimiter=None, cells=2)
LAYOUT = "LibriSpeech/<part>/<speaker>/<chapter>/*.{trans.txt,flac}; a part is train-clean-100, dev-clean, .."


def prepare_librispeech(
    corpus_dir: Path, output_dir: Path, normaliser: str = "words", jobs: int = 1, say: Say = print
) -> Dict[str, Path]:
    """Every part that is there -> ``cuts_<part>.jsonl.gz`` (``cuts_train_clean_100.jsonl.gz``), one cut an utterance.

    Raises:
        UserError: where the folder is no LibriSpeech.
    """
    from lhotse.recipes.librispeech import prepare_librispeech as recipe

    require(corpus_dir, ["*/*/*/*.trans.txt"], LAYOUT)
    tables = [check_table(path, FORM) for path in sorted(corpus_dir.glob("*/*/*/*.trans.txt"))]
    with readable(corpus_dir, tables) as folder:
        with lhotse_recipe("librispeech", corpus_dir, LAYOUT):
            manifests = recipe(folder, num_jobs=jobs)
        for manifest in manifests.values():
            in_corpus(manifest["recordings"], folder, corpus_dir)
    unread: Dict[str, List[Dict[str, Any]]] = {}
    for table in tables:
        unread.setdefault(table.path.relative_to(corpus_dir).parts[0], []).extend(table.left_out())
    parts = [
        Part(name.replace("-", "_"), **manifests[name], language="en", unread=unread.get(name, ()))
        for name in sorted(manifests)
    ]
    return write_utterances(parts, output_dir, "librispeech", normaliser, jobs, say)

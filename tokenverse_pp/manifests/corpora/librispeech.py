"""LibriSpeech and its small sister Mini LibriSpeech: read English books; labelled for asr and lid."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

from tokenverse_pp.manifests.corpora.parts import Part, Say, lhotse_recipe, require
from tokenverse_pp.manifests.corpora.utterances import write_utterances

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
    with lhotse_recipe("librispeech", corpus_dir, LAYOUT):
        manifests = recipe(corpus_dir, num_jobs=jobs)
    parts = [Part(name.replace("-", "_"), **manifests[name], language="en") for name in sorted(manifests)]
    return write_utterances(parts, output_dir, "librispeech", normaliser, jobs, say)

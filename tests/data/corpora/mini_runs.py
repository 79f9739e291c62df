"""Running commands on the miniature corpora, and lhotse's own recipes beside ours."""

from __future__ import annotations

import inspect
from collections import namedtuple
from pathlib import Path

from click.testing import CliRunner
from lhotse import CutSet
from mini_ami import make_ami
from mini_corpora import make_callhome, make_commonvoice, make_eval2000, make_librispeech, make_mls, make_voxpopuli

from tokenverse_pp.cli.main import cli

MAKERS = {
    "ami": make_ami,
    "callhome-english": make_callhome,
    "commonvoice": make_commonvoice,
    "eval2000": make_eval2000,
    "librispeech": make_librispeech,
    "mls": make_mls,
    "voxpopuli": make_voxpopuli,
}
CORPORA = sorted(MAKERS)
Prepared = namedtuple("Prepared", "corpus_dir out stdout")


def run(*args):
    """`tokenverse-pp ARGS` in this process."""
    # click 8.1 mixes stderr into stdout unless told not to, 8.2 has no such option.
    options = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**options).invoke(cli, [str(arg) for arg in args])


def cuts_of(out: Path, part: str):
    """The cuts of a part, in a list."""
    return list(CutSet.from_file(out / f"cuts_{part}.jsonl.gz"))


def lhotse_manifests(name: str, corpus_dir: Path, folder: Path):
    """What lhotse's recipe alone gives: part (as our files are named) -> {recordings, supervisions}."""
    from lhotse import recipes
    from lhotse.audio.backend import audio_backend

    if name == "ami":
        return recipes.prepare_ami(corpus_dir, mic="ihm-mix", partition="full-corpus-asr", normalize_text="none",
                                   keep_punctuation=True)  # fmt: skip
    if name == "mls":
        codes = {"german": "de", "polish": "pl"}
        found = recipes.prepare_mls(corpus_dir, opus=False)
        return {f"{split}_{codes[lang]}": pair for lang, splits in found.items() for split, pair in splits.items()}
    if name == "commonvoice":
        # "auto" would not find sv-SE: it is not in lhotse's list.
        found = recipes.prepare_commonvoice(corpus_dir, folder, languages=["fr", "sv-SE"])
        return {f"{split}_{lang[:2]}": pair for lang, splits in found.items() for split, pair in splits.items()}
    if name == "librispeech":
        return {part.replace("-", "_"): pair for part, pair in recipes.prepare_librispeech(corpus_dir).items()}
    if name == "voxpopuli":
        (folder / "asr_en.tsv.gz").write_bytes((corpus_dir / "asr_en.tsv.gz").read_bytes())
        return {f"{split}_en": pair for split, pair in recipes.prepare_voxpopuli(corpus_dir, folder).items()}
    with audio_backend("LibsndfileBackend"):
        if name == "eval2000":
            return {"test": recipes.prepare_eval2000(corpus_dir, folder, absolute_paths=True)}
        found = recipes.prepare_callhome_english(
            corpus_dir / "LDC97S42", transcript_dir=corpus_dir / "LDC97T14", absolute_paths=True
        )
    return {"train": found["train"], "dev": found["devtest"], "test": found["evaltest"]}

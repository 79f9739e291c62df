"""`tokenverse-pp manifest prepare commonvoice`."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

import click

from tokenverse_pp.cli.manifest_commands.prepare_options import common, languages_option


@click.command()
@common
@languages_option
def commonvoice(corpus_dir: Path, output_dir: Path, normaliser: str, jobs: int, languages: Tuple[str, ...]) -> None:
    """Common Voice: asr and lid, sentences read by volunteers.

    CORPUS_DIR is an unpacked release, cv-corpus-<version>, with <locale>/{train,dev,test}.tsv and <locale>/clips.
    Written: OUT/cuts_<split>_<code>.jsonl.gz, one cut a sentence, and the clips as 16 kHz FLAC in OUT/audio (about
    110 MB an hour; clips that are there from an earlier run are kept). Locales become language codes: sv-SE is sv,
    zh-CN and zh-TW are zh, zh-HK is yue.
    """
    from tokenverse_pp.manifests.corpora.commonvoice import prepare_commonvoice

    prepare_commonvoice(corpus_dir, output_dir, languages, normaliser, jobs, say=click.echo)

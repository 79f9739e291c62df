"""`tokenverse-pp manifest prepare librispeech`."""

from __future__ import annotations

from pathlib import Path

import click

from tokenverse_pp.cli.manifest_commands.prepare_options import common


@click.command()
@common
def librispeech(corpus_dir: Path, output_dir: Path, normaliser: str, jobs: int) -> None:
    """LibriSpeech or Mini LibriSpeech: asr and lid, English read books.

    CORPUS_DIR is the unpacked folder LibriSpeech: <part>/<speaker>/<chapter>/. Every part that is there is prepared:
    OUT/cuts_train_clean_100.jsonl.gz, OUT/cuts_dev_other.jsonl.gz and so on, one cut an utterance.
    """
    from tokenverse_pp.manifests.corpora.librispeech import prepare_librispeech

    prepare_librispeech(corpus_dir, output_dir, normaliser, jobs, say=click.echo)

"""`tokenverse-pp manifest prepare mls`."""

from __future__ import annotations

from pathlib import Path

import click

from tokenverse_pp.cli.manifest_commands.prepare_options import common


@click.command()
@common
def mls(corpus_dir: Path, output_dir: Path, normaliser: str, jobs: int) -> None:
    """Multilingual LibriSpeech: asr and lid, eight languages of read books.

    CORPUS_DIR holds mls_<language> or mls_<language>_opus, each with metainfo.txt and, for train, dev and test,
    transcripts.txt and audio/. Every language that is there is prepared: OUT/cuts_<split>_<code>.jsonl.gz, one cut a
    segment, OUT/left_out.jsonl with what has no words.
    """
    from tokenverse_pp.manifests.corpora.mls import prepare_mls

    prepare_mls(corpus_dir, output_dir, normaliser, jobs, say=click.echo)

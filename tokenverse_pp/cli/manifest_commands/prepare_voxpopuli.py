"""`tokenverse-pp manifest prepare voxpopuli`."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

import click

from tokenverse_pp.cli.manifest_commands.prepare_options import common, languages_option


@click.command()
@common
@languages_option
def voxpopuli(corpus_dir: Path, output_dir: Path, normaliser: str, jobs: int, languages: Tuple[str, ...]) -> None:
    """VoxPopuli: asr and lid, speeches in the European Parliament.

    CORPUS_DIR holds raw_audios/<language>/<year>/*.ogg and the transcripts asr_<language>.tsv.gz; where those are
    missing lhotse downloads them. Written: OUT/cuts_<split>_<language>.jsonl.gz, one cut a segment.
    """
    from tokenverse_pp.manifests.corpora.voxpopuli import prepare_voxpopuli

    prepare_voxpopuli(corpus_dir, output_dir, languages, normaliser, jobs, say=click.echo)

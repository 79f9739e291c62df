"""`tokenverse-pp manifest prepare eval2000`."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click

from tokenverse_pp.cli.manifest_commands.prepare_options import (
    channels_option,
    common,
    names_option,
    transcripts_option,
    window_options,
)
from tokenverse_pp.manifests.conversations import ConversationOptions


@click.command()
@common
@transcripts_option
@channels_option
@names_option
@window_options
def eval2000(
    corpus_dir: Path,
    output_dir: Path,
    normaliser: str,
    jobs: int,
    transcripts: Optional[Path],
    channels: str,
    names: bool,
    options: ConversationOptions,
) -> None:
    """Hub5 2000 evaluation: asr, scd, endp and lid, 40 telephone calls, a test set only.

    CORPUS_DIR holds LDC2002S09/hub5e_00/english and LDC2002T43/reference/english. Calls are written as 16 kHz FLAC in
    OUT/audio; compressed SPHERE files need sph2pipe for that (lhotse install-sph2pipe). Written:
    OUT/cuts_test.jsonl.gz.
    """
    from tokenverse_pp.manifests.corpora.telephone import prepare_eval2000

    prepare_eval2000(corpus_dir, output_dir, transcripts, channels, names, options, normaliser, jobs, say=click.echo)

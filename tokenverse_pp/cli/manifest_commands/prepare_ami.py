"""`tokenverse-pp manifest prepare ami`."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click

from tokenverse_pp.cli.manifest_commands.prepare_options import common, window_options
from tokenverse_pp.manifests.conversations import ConversationOptions


@click.command()
@common
@click.option(
    "--mic",
    type=click.Choice(["ihm-mix", "sdm", "mdm8-bf", "ihm"]),
    default="ihm-mix",
    show_default=True,
    help="ihm-mix: the sum of the headsets; sdm: one distant microphone; mdm8-bf: eight, beamformed; ihm: each headset "
    "by itself (then not labelled for scd).",
)
@click.option(
    "--partition",
    type=click.Choice(["full-corpus-asr", "full-corpus", "scenario-only"]),
    default="full-corpus-asr",
    show_default=True,
    help="AMI's own splits into train, dev and test.",
)
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    help="Folder or zip of the annotations, where they are not in CORPUS_DIR.",
)
@window_options
def ami(
    corpus_dir: Path,
    output_dir: Path,
    normaliser: str,
    jobs: int,
    mic: str,
    partition: str,
    annotations: Optional[Path],
    options: ConversationOptions,
) -> None:
    """AMI meetings: asr, scd, endp and lid, windows of several turns.

    CORPUS_DIR holds <meeting>/audio/*.wav at any depth and ami_public_manual_1.6.2 (folder or zip). Written:
    OUT/cuts_{train,dev,test}.jsonl.gz. A turn is what lhotse gives: a sentence, or a segment without a full stop; it
    ends in a semantic endpoint where the annotators wrote . ? or !. OUT/left_out.jsonl lists every turn that is in no
    window, and why.
    """
    from tokenverse_pp.manifests.corpora.ami import prepare_ami

    prepare_ami(corpus_dir, output_dir, mic, partition, annotations, options, normaliser, jobs, say=click.echo)

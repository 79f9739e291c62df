"""`tokenverse-pp manifest conversations`."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click

from tokenverse_pp.cli.manifest_commands.prepare_options import window_options
from tokenverse_pp.manifests.conversations import ConversationOptions
from tokenverse_pp.manifests.normalise import NORMALISERS


@click.command()
@click.argument("turns", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--recordings",
    type=click.Path(path_type=Path),
    help="TURNS is a lhotse SupervisionSet, and this the RecordingSet it belongs to. [default: TURNS is a CutSet]",
)
@click.option(
    "--tasks",
    default="asr,scd,endp",
    show_default=True,
    help="What the turns are labelled for; lid needs a language, ner needs entities. Endpoints are labelled here.",
)
@click.option("--language", help="Language code of turns that name none.")
@click.option(
    "--normaliser", type=click.Choice(list(NORMALISERS)), default="none", show_default=True, help="Of the texts."
)
@window_options
def conversations(
    turns: Path,
    output: Path,
    recordings: Optional[Path],
    tasks: str,
    language: Optional[str],
    normaliser: str,
    options: ConversationOptions,
) -> None:
    """Put the turns of long recordings together: OUTPUT has cuts of several, with real speaker changes and endpoints.

    TURNS: cuts that hold a recording's turns, all in one cut or a cut each (those of one recording after another), or
    supervisions with --recordings. Each turn needs a speaker and a text. Cuts end where nobody speaks, or where one
    turn ends exactly as the next begins. Turns that are in no cut are listed, with the reason, in a file
    .left_out.jsonl beside OUTPUT.
    """
    from tokenverse_pp.manifests.corpora.turn_manifests import write_conversations

    names = [name.strip() for name in tasks.split(",")]
    write_conversations(turns, output, recordings, names, options, normaliser, language, say=click.echo)

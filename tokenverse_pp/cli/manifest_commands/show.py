"""`tokenverse-pp manifest show`."""

from __future__ import annotations

from typing import Optional

import click


@click.command()
@click.argument("cut_id", metavar="ID")
@click.option("--cuts", required=True, type=click.Path(), help="Cut manifest.")
@click.option("--tasks", help="Only the tokens of these, e.g. asr,ner. Default: of all that the cut is labelled for.")
def show(cut_id: str, cuts: str, tasks: Optional[str]) -> None:
    """Print the cut ID as text with task tokens, its turns with times, and what it is not labelled for."""
    from tokenverse_pp.manifests.showing import find_cut, show_cut

    names = tasks.replace(",", " ").split() if tasks is not None else None
    click.echo(show_cut(find_cut(cuts, cut_id), names))

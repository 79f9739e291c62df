"""`tokenverse-pp manifest validate`."""

from __future__ import annotations

from typing import Tuple

import click


@click.command()
@click.argument("cuts", nargs=-1, required=True, type=click.Path())
@click.option("--audio", is_flag=True, help="Decode all the audio as well: finds missing and truncated files.")
@click.option("--all", "list_all", is_flag=True, help="List every problem, not only the first of each manifest.")
def validate(cuts: Tuple[str, ...], audio: bool, list_all: bool) -> None:
    """Check manifests CUTS against the label schema; exit code 2 if anything is wrong."""
    from tokenverse_pp.errors import UserError
    from tokenverse_pp.manifests.labels import validate_cuts

    errors = []
    for path in cuts:
        try:
            validate_cuts(path, check_audio=audio, list_all=list_all)
            click.echo(f"{path}: valid")
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("\n".join(errors))

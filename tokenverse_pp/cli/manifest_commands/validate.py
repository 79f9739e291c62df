"""`tokenverse-pp manifest validate`."""

from __future__ import annotations

import sys
from typing import Optional, Tuple

import click

from tokenverse_pp.cli.options import source_options


@click.command()
@click.argument("cuts", nargs=-1, required=True, type=click.Path())
@click.option("--audio", is_flag=True, help="Decode all the audio as well: finds missing and truncated files.")
@click.option("--all", "list_all", is_flag=True, help="List every problem, not only the first of each manifest.")
@click.option("--first", type=click.IntRange(min=1), help="List the first N problems of each manifest. [default: 1]")
@source_options
def validate(cuts: Tuple[str, ...], audio: bool, list_all: bool, first: Optional[int]) -> None:
    """Check manifests CUTS against the label schema; exit code 2 if anything is wrong.

    Problems go to stderr, one a line, with the file, the line and the cut. All of a manifest is read in any case, so
    that the last line says how many more there are.
    """
    from tqdm import tqdm

    from tokenverse_pp.cli.groups import EXIT_CODE
    from tokenverse_pp.errors import printable
    from tokenverse_pp.manifests.progress import reading_bar
    from tokenverse_pp.manifests.validate import first_problems

    valid = True
    with reading_bar(cuts, "validate") as bar:
        for path in cuts:
            whole = True
            for problem in first_problems(path, sys.maxsize if list_all else first or 1, audio, bar):
                whole = valid = False
                with tqdm.external_write_mode(file=sys.stderr):
                    click.echo(f"error: {printable(problem)}", err=True)
            if whole:
                with tqdm.external_write_mode():
                    click.echo(f"{path}: valid")
    if not valid:
        raise click.exceptions.Exit(EXIT_CODE)

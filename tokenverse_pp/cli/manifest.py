"""``tokenverse-pp manifest``: prepare corpora, validate and count labelled cuts."""

from __future__ import annotations

from typing import Optional, Tuple

import click

from tokenverse_pp.cli.groups import Group

COMMANDS = {"store-features": "tokenverse_pp.cli.store_features:store_features"}
PREPARE = {"human-speech": "tokenverse_pp.cli.prepare_human_speech:human_speech"}


@click.group(cls=Group, lazy=COMMANDS)
def manifest() -> None:
    """Labelled cut manifests: prepare, validate, count, store features."""


@manifest.group(cls=Group, lazy=PREPARE)
def prepare() -> None:
    """Turn a corpus into labelled cuts."""


@manifest.command()
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


@manifest.command()
@click.argument("cuts", nargs=-1, required=True, type=click.Path())
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write the counts to this file.")
def stats(cuts: Tuple[str, ...], json_path: Optional[str]) -> None:
    """Count hours, turns, words and task tokens of CUTS, by task and language: labelled, not labelled."""
    from itertools import chain

    from tokenverse_pp.files import write_json
    from tokenverse_pp.manifests.labels import validate_cuts
    from tokenverse_pp.manifests.reading import read_cuts
    from tokenverse_pp.manifests.stats import count_cuts, stats_table

    for path in cuts:
        validate_cuts(path)
    counts = count_cuts(chain.from_iterable(read_cuts(path) for path in cuts))
    if json_path is not None:
        write_json(json_path, counts)
    click.echo(stats_table(counts))

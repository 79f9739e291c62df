"""`tokenverse-pp manifest stats`."""

from __future__ import annotations

from typing import Optional, Tuple

import click


@click.command()
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

"""`tokenverse-pp manifest stats`."""

from __future__ import annotations

from typing import Optional, Tuple

import click


@click.command()
@click.argument("cuts", nargs=-1, required=True, type=click.Path())
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write the counts to this file.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Draw hours labelled by task and language (.png).")
def stats(cuts: Tuple[str, ...], json_path: Optional[str], plot: Optional[str]) -> None:
    """Count hours, turns, words and task tokens of CUTS, by task and language: labelled, not labelled.

    "machine h" is the part of the labelled hours whose labels a machine made (`manifest label`). With several
    manifests, or cuts that name their corpus (custom field corpus), it also says what each gives to each task.
    """
    from tokenverse_pp.files import write_json
    from tokenverse_pp.manifests.progress import reading_bar
    from tokenverse_pp.manifests.stats import count_manifests, shares_table, stats_table

    with reading_bar(cuts, "stats") as bar:
        counts = count_manifests(cuts, bar)
    if json_path is not None:
        write_json(json_path, counts)
    if plot is not None:
        from tokenverse_pp.manifests.stats_plot import plot_stats

        plot_stats(counts, plot)
    click.echo(stats_table(counts["languages"]))
    if len(counts["corpora"]) > 1:
        click.echo("\n" + stats_table(counts["corpora"], "corpus"))
        click.echo("\n" + shares_table(counts["corpora"]))

"""`tokenverse-pp manifest subset`."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

import click


@click.command()
@click.argument("cuts", type=click.Path(dir_okay=False))
@click.argument("output", type=click.Path(dir_okay=False))
@click.option("--cuts", "number", type=click.IntRange(min=1), help="Take the first N cuts (that fit what follows).")
@click.option("--hours", type=click.FloatRange(0, min_open=True), help="Take the first cuts, up to so many hours.")
@click.option("--random", "at_random", is_flag=True, help="Take not the first cuts but any; their order stays.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of --random and --keep-labels.")
@click.option("--language", "languages", multiple=True, help="Only cuts in this language. May be given again.")
@click.option(
    "--corpus", "corpora", multiple=True, help="Only cuts whose custom field corpus is this. May be given again."
)
@click.option("--task", "tasks", multiple=True, help="Only cuts labelled for this task; given again, for all of them.")
@click.option("--without-task", "without_tasks", multiple=True, help="Only cuts not labelled for this task, or these.")
@click.option("--ids", type=click.Path(dir_okay=False), help="Only cuts whose id is in this file, one a line.")
@click.option(
    "--keep-labels",
    multiple=True,
    metavar="TASK=SHARE",
    help="Keep a task's labels on this share of the cuts that have them, drop them from the others, e.g. ner=0.25.",
)
def subset(
    cuts: str,
    output: str,
    number: Optional[int],
    hours: Optional[float],
    at_random: bool,
    seed: int,
    languages: Tuple[str, ...],
    corpora: Tuple[str, ...],
    tasks: Tuple[str, ...],
    without_tasks: Tuple[str, ...],
    ids: Optional[str],
    keep_labels: Tuple[str, ...],
) -> None:
    """Write a part of CUTS to OUTPUT, in their order.

    \b
      manifest subset all.jsonl.gz small.jsonl.gz --hours 10 --random
      manifest subset all.jsonl.gz french.jsonl.gz --language fr --task ner
      manifest subset all.jsonl.gz partly.jsonl.gz --keep-labels ner=0.25 --keep-labels lid=0.5

    The last is for experiments on partially labelled data: the labels of the other cuts are gone from OUTPUT.
    """
    from tokenverse_pp.manifests.progress import reading_bar
    from tokenverse_pp.manifests.subset import Wanted, read_ids, write_subset

    wanted = Wanted(
        languages=frozenset(languages),
        corpora=frozenset(corpora),
        tasks=frozenset(tasks),
        without_tasks=frozenset(without_tasks),
        ids=read_ids(ids) if ids else None,
        cuts=number,
        hours=hours,
        at_random=at_random,
        keep_labels=parse_keep_labels(keep_labels),
        seed=seed,
    )
    with reading_bar([cuts], "subset", passes=2) as bar:
        report = write_subset(cuts, output, wanted, bar)
    click.echo(f"{report.cuts} cuts, {report.hours:.2f} hours: {output}")
    for task, kept in report.kept.items():
        click.echo(f"{task}: kept on {kept} cuts, dropped from {report.lost[task]}")


def parse_keep_labels(items: Tuple[str, ...]) -> Dict[str, float]:
    """``ner=0.25`` as a mapping (raises UserError)."""
    from tokenverse_pp.errors import UserError

    shares: Dict[str, float] = {}
    for item in items:
        task, _, number = item.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if task in shares or not 0 <= share <= 1:
            raise UserError(f"--keep-labels {item}: expected TASK=SHARE, 0 to 1, once for each task, e.g. ner=0.25")
        shares[task] = share
    return shares

"""``tokenverse-pp score``: hypotheses against labelled cuts."""

from __future__ import annotations

import click

from tokenverse_pp.cli.options import plugin_option


@click.command()
@click.option("--ref", required=True, type=click.Path(dir_okay=False), help="Cut manifest with the labels.")
@click.option("--hyp", required=True, type=click.Path(dir_okay=False), help="Hypotheses (hyps.jsonl).")
@click.option("--output", required=True, type=click.Path(dir_okay=False), help="The scores (scores.json).")
@plugin_option
def score(ref: str, hyp: str, output: str) -> None:
    """Score hypotheses, each task over the cuts that are labelled for it; print a table."""
    # lhotse and torch take seconds to import: not for `--help`.
    from tokenverse_pp.files import write_json
    from tokenverse_pp.hypotheses import read_hypotheses
    from tokenverse_pp.manifests.labels import validate_cuts
    from tokenverse_pp.manifests.reading import read_cuts
    from tokenverse_pp.scoring import score_hypotheses, score_table

    validate_cuts(ref)
    scores = score_hypotheses(read_cuts(ref), read_hypotheses(hyp))
    write_json(output, scores)
    click.echo(score_table(scores))

"""``tokenverse-pp report``: hypotheses beside labelled cuts, as a page for a browser."""

from __future__ import annotations

import click

from tokenverse_pp.cli.options import plugin_option, source_options


@click.command("report")
@click.option("--hyps", required=True, type=click.Path(dir_okay=False), help="Hypotheses (hyps.jsonl).")
@click.option("--cuts", required=True, type=click.Path(dir_okay=False), help="Cut manifest with the labels.")
@click.option("--output", required=True, type=click.Path(dir_okay=False), help="The page (report.html).")
@click.option("--title", default="Decoding report", show_default=True, help="Heading of the page.")
@click.option("--utterances", type=click.IntRange(min=0), default=30, show_default=True, help="How many are listed.")
@click.option("--embed-audio", is_flag=True, help="Put the audio of the listed utterances into the page.")
@plugin_option
@source_options
def report(hyps: str, cuts: str, output: str, title: str, utterances: int, embed_audio: bool) -> None:
    """Write a page of scores and of the worst utterances.

    Cuts without a hypothesis are left out. failures.jsonl and scores.json beside the hypotheses (of decode.py) give
    the cuts that were refused, the options and the speed.
    """
    # lhotse and torch take seconds to import: not for `--help`.
    from tokenverse_pp.hypotheses import read_hypotheses
    from tokenverse_pp.manifests.labels import validate_cuts
    from tokenverse_pp.manifests.reading import read_cuts
    from tokenverse_pp.report_page import PageOptions, write_report
    from tokenverse_pp.report_page.inputs import read_beside
    from tokenverse_pp.scoring import score_hypotheses

    found = list(read_cuts(cuts))
    validate_cuts([cut for cut in found if "tasks" in (cut.custom or {})])
    records = read_hypotheses(hyps)
    known = {record["id"] for record in records}
    scores = score_hypotheses([cut for cut in found if cut.id in known], records)
    failures, about = read_beside(hyps)
    options = PageOptions(title, utterances, embed_audio)
    write_report(output, found, records, {**scores, **about}, failures, options=options)
    click.echo(f"{len(records)} hypotheses: {output}")

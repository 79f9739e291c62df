"""``tokenverse-pp compare``: two decodings of the same cuts, with intervals."""

from __future__ import annotations

from typing import Dict, List, Optional

import click

from tokenverse_pp.cli.options import plugin_option


@click.command()
@click.argument("first", type=click.Path(dir_okay=False), metavar="A")
@click.argument("second", type=click.Path(dir_okay=False), metavar="B")
@click.option("--cuts", required=True, type=click.Path(dir_okay=False), help="Cut manifest with the labels.")
@click.option("--by-corpus", is_flag=True, help="Each corpus apart as well (custom field corpus of the cuts).")
@click.option("--resamples", type=click.IntRange(100), default=10_000, show_default=True, help="Draws of utterances.")
@click.option("--output", type=click.Path(dir_okay=False), help="Write the comparison as JSON too.")
@plugin_option
def compare(first: str, second: str, cuts: str, by_corpus: bool, resamples: int, output: Optional[str]) -> None:
    """Compare the decodings A and B (hyps.jsonl) of the same cuts.

    \b
      tokenverse-pp compare old/hyps.jsonl new/hyps.jsonl --cuts cuts_test.jsonl.gz

    For WER and the F1 or accuracy of each task: both scores with their 95% intervals, and the difference A - B with
    its own. Utterances are drawn anew with replacement, the same for A and B (paired bootstrap). An interval of the
    difference that holds 0 says that these utterances cannot tell A from B.
    """
    # lhotse and torch take seconds to import: not for `--help`.
    from tokenverse_pp.comparison import compare_decodings, count_utterances
    from tokenverse_pp.files import write_json
    from tokenverse_pp.hypotheses import read_hypotheses
    from tokenverse_pp.manifests.labels import validate_cuts
    from tokenverse_pp.manifests.reading import read_cuts
    from tokenverse_pp.tables import aligned

    validate_cuts(cuts)
    read = list(read_cuts(cuts))
    a, b = (count_utterances(read, read_hypotheses(path)) for path in (first, second))
    groups: Dict[str, Optional[List[str]]] = {"all": None}
    for cut in read if by_corpus else ():
        ids = groups.setdefault(str((cut.custom or {}).get("corpus", "-")), [])
        if ids is not None:
            ids.append(cut.id)
    found = {name: compare_decodings([a], [b], ids, resamples) for name, ids in groups.items()}
    rows = [["metric", "cuts of", "A %", "95%", "B %", "95%", "A - B", "95%", "cuts"]]
    for name, metrics in found.items():
        for metric, c in metrics.items():
            scores = [_percent(c.a), _range(c.a_interval), _percent(c.b), _range(c.b_interval)]
            rows.append([metric, name, *scores, _percent(c.difference), _range(c.interval), str(c.utterances)])
    click.echo(aligned(rows, left=2))
    if output:
        write_json(output, {name: {m: c.as_dict() for m, c in metrics.items()} for name, metrics in found.items()})


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _range(interval: tuple[float, float]) -> str:
    return " .. ".join(map(_percent, interval))

"""`tokenverse-pp score`, `compare`, `calibrate` and `report`: commands on hypotheses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import click

from tokenverse_pp.base.options import PageOptions
from tokenverse_pp.cli.options import (
    FILE,
    PATH,
    model_option,
    options_from,
    plugin_option,
    plugin_options,
    source_options,
)


@click.command()
@click.option("--hyps", "--hyp", "hyps", required=True, type=FILE, help="File of hypotheses (hyps.jsonl).")
@click.option("--cuts", "--ref", "cuts", required=True, type=FILE, help="Cut manifest with labels.")
@click.option("--output", type=FILE, help="Also write the scores as JSON; an existing file is replaced.")
@plugin_option
def score(hyps: str, cuts: str, output: Optional[str]) -> None:
    """Score hypotheses, each task over the cuts that are labelled for it; print a table.

    \b
      tokenverse-pp score --hyps out/hyps.jsonl --cuts cuts_test.jsonl.gz
    """
    # lhotse and torch take seconds to import; `--help` does not need them.
    from tokenverse_pp.base.errors import UserError
    from tokenverse_pp.base.files import write_json
    from tokenverse_pp.data.hypotheses import read_hypotheses
    from tokenverse_pp.data.labels import validate_cuts
    from tokenverse_pp.data.manifests import read_cuts
    from tokenverse_pp.evaluation.scoring import score_hypotheses, score_table

    validate_cuts(cuts, unlabelled=True)
    scores = score_hypotheses(read_cuts(cuts), read_hypotheses(hyps))
    if not scores.keys() - {"utterances", "not_decoded"}:
        raise UserError(f"{cuts}: no cut is labelled for a task that was decoded, so there is nothing to score")
    if output:
        write_json(output, scores)
    click.echo(score_table(scores))


@click.command()
@click.argument("first", type=FILE, metavar="A")
@click.argument("second", type=FILE, metavar="B")
@click.option("--cuts", required=True, type=FILE, help="Cut manifest with the labels.")
@click.option("--by-corpus", is_flag=True, help="Also compare each corpus (custom field corpus of the cuts).")
@click.option("--resamples", type=click.IntRange(100), default=10_000, show_default=True, help="Number of draws.")
@click.option("--output", type=FILE, help="Also write JSON; an existing file is replaced.")
@plugin_option
def compare(first: str, second: str, cuts: str, by_corpus: bool, resamples: int, output: Optional[str]) -> None:
    """Compare the decodings A and B (hyps.jsonl) of the same cuts.

    \b
      tokenverse-pp compare old/hyps.jsonl new/hyps.jsonl --cuts cuts_test.jsonl.gz

    Prints, for WER and the F1 or accuracy of each task, both scores and the difference A - B, with 95% intervals.
    Utterances are resampled with replacement, the same for A and B (paired bootstrap). If the interval of the
    difference contains 0, these utterances cannot tell A from B. Types of entities count, unless A or B writes [NE].
    CUTS may be a part of what was decoded: the number of other hypotheses is told.
    """
    # lhotse and torch take seconds to import; `--help` does not need them.
    from tokenverse_pp.base.errors import UserError
    from tokenverse_pp.base.files import aligned, write_json
    from tokenverse_pp.data.hypotheses import read_hypotheses
    from tokenverse_pp.data.labels import validate_cuts
    from tokenverse_pp.data.manifests import read_cuts
    from tokenverse_pp.evaluation.comparison import compare_decodings, count_utterances, tasks_in_common
    from tokenverse_pp.evaluation.scoring import percent

    validate_cuts(cuts, unlabelled=True)
    read = list(read_cuts(cuts))
    decodings = [read_hypotheses(path) for path in (first, second)]
    known = {cut.id for cut in read}
    for path, hyps in zip((first, second), decodings):
        others = sum(hyp["id"] not in known for hyp in hyps)
        if others:
            click.echo(
                f"warning: {path}: {others} of {len(hyps)} hypotheses belong to no cut of {cuts}: left out", err=True
            )
    tasks = tasks_in_common(read, decodings)
    a, b = (count_utterances(read, hyps, tasks) for hyps in decodings)
    groups: Dict[str, Optional[List[str]]] = {"all": None}
    for cut in read if by_corpus else ():
        corpus = str((cut.custom or {}).get("corpus", "-"))
        ids = groups.setdefault("all (corpus)" if corpus == "all" else corpus, [])
        if ids is not None:
            ids.append(cut.id)
    found = {name: compare_decodings([a], [b], ids, resamples) for name, ids in groups.items()}
    if not found["all"]:
        raise UserError(f"{cuts}: no cut is labelled for a task that both decoded, so there is nothing to compare")
    rows = [["metric", "cuts of", "A %", "95%", "B %", "95%", "A - B", "95%", "cuts"]]
    for name, metrics in found.items():
        for metric, c in metrics.items():
            cells = [metric, name]
            for score, interval in ((c.a, c.a_interval), (c.b, c.b_interval), (c.difference, c.interval)):
                cells += [percent(score), " .. ".join(map(percent, interval))]
            rows.append([*cells, str(c.utterances)])
    click.echo(aligned(rows, left=2))
    if output:
        write_json(output, {name: {m: c.as_dict() for m, c in metrics.items()} for name, metrics in found.items()})


@click.command()
@model_option
@click.option("--hyps", required=True, type=PATH, help="The model's hypotheses of --cuts.")
@click.option("--cuts", required=True, type=PATH, help="Labelled cuts: a dev set.")
@click.option("--output", type=PATH, help="File to write. [default: calibration.json in the model's folder]")
@click.option("--test", nargs=2, type=PATH, metavar="HYPS CUTS", help="Also measure on these.")
@plugin_options
def calibrate(
    model: str, hyps: Path, cuts: Path, output: Optional[Path], test: Optional[Tuple[Path, Path]], trust_plugins: bool
) -> None:
    """Fit the model's confidences to labelled cuts, so that they are probabilities of being correct.

    Use speech that the model was not trained on, but not the test set. The table shows the expected calibration error
    (ECE) and the Brier score before and after; each half of the utterances is calibrated by a fit on the other half.
    --test measures the final fit on other speech. With fewer than 20 words (or task tokens), the model's existing
    calibration of words (or task tokens) is kept.
    """
    from tokenverse_pp.api.folders import locate_model, place_of
    from tokenverse_pp.base.config_files import load_config
    from tokenverse_pp.base.errors import UserError
    from tokenverse_pp.base.files import url_of
    from tokenverse_pp.data.hypotheses import read_hypotheses
    from tokenverse_pp.data.labels import validate_cuts
    from tokenverse_pp.data.manifests import read_cuts
    from tokenverse_pp.decoding.hypothesis import CALIBRATION, read_calibration
    from tokenverse_pp.evaluation.calibration import FEWEST, fit, judge_all, measure
    from tokenverse_pp.models.bundle import tasks_of
    from tokenverse_pp.models.checkpoint import CONFIG

    folder = locate_model(model)
    tasks = tasks_of(load_config(folder / CONFIG).tasks, trust_plugins, folder)
    judged = []
    for hyp_file, cut_file in [(hyps, cuts), test] if test else [(hyps, cuts)]:
        validate_cuts(cut_file, unlabelled=True)
        judged.append(judge_all(read_cuts(cut_file), read_hypotheses(hyp_file), tasks))
    if not any(item.words or item.tasks for item in judged[0]):
        raise UserError(f"{hyps}: no word or task token of a labelled cut to fit confidences to")
    calibration, effect = fit(judged[0])
    before = read_calibration(folder)
    if before is not None:  # the thresholds of `tokenverse-pp endpoints` are kept
        endpoints, chunk_ms = before.endpoints, before.endpoint_chunk_ms
        calibration = replace(calibration, endpoints=endpoints, endpoint_chunk_ms=chunk_ms)
    for name in effect:
        count = effect[name]["before"]["examples"]
        if count < FEWEST:  # words decoded with --tasks asr, say, must not undo the calibration of the task tokens
            calibration = replace(calibration, **{name: getattr(before or calibration, name)})
            click.echo(f"{name}: not fitted to {count:g} examples; expected at least {FEWEST}", err=True)
    target = output or place_of(model, folder) / CALIBRATION
    calibration.write(target, {"fitted_on": cuts.name, "effect": effect})
    click.echo(table(effect))
    if test:
        click.echo(f"\n{test[0]}:\n{table(measure(judged[1], calibration))}")
    click.echo(f"calibration: {url_of(target) or target}")


def table(effect: Dict[str, Dict[str, Any]]) -> str:
    """A table of ECE and Brier score of words and task tokens, before and after."""
    lines = [f"{'':12}{'examples':>9}{'right %':>9}{'ECE %':>16}{'Brier':>18}"]
    for name, both in effect.items():
        before, after = both["before"], both["after"]
        ece = f"{100 * before['ece']:.1f} -> {100 * after['ece']:.1f}"
        brier = f"{before['brier']:.3f} -> {after['brier']:.3f}"
        lines.append(f"{name:12}{before['examples']:9}{100 * before['right']:9.1f}{ece:>16}{brier:>18}")
    return "\n".join(lines)


@click.command("report")
@click.option("--hyps", required=True, type=FILE, help="File of hypotheses (hyps.jsonl).")
@click.option("--cuts", required=True, type=FILE, help="Cut manifest with the labels.")
@click.option("--output", required=True, type=FILE, help="HTML file to write; an existing file is replaced.")
@options_from(PageOptions, utterances={"type": click.IntRange(min=0)})
@plugin_option
@source_options
def report(hyps: str, cuts: str, output: str, **given: Any) -> None:
    """Write an HTML page with the scores and the worst utterances.

    Cuts without a hypothesis are left out. The refused cuts, the options and the speed are read from failures.jsonl and
    scores.json beside the hypotheses (of decode.py).
    """
    # lhotse and torch take seconds to import; `--help` does not need them.
    from tokenverse_pp.data.hypotheses import read_hypotheses
    from tokenverse_pp.data.labels import validate_cuts
    from tokenverse_pp.data.manifests import read_cuts
    from tokenverse_pp.evaluation.report import write_report
    from tokenverse_pp.evaluation.report.page import read_beside
    from tokenverse_pp.evaluation.scoring import score_hypotheses

    found = list(read_cuts(cuts))
    validate_cuts(found, unlabelled=True)
    records = read_hypotheses(hyps)
    known = {record["id"] for record in records}
    scores = score_hypotheses([cut for cut in found if cut.id in known], records)
    failures, about = read_beside(hyps)
    write_report(output, found, records, {**scores, **about}, failures, options=PageOptions(**given))
    click.echo(f"{len(records)} hypotheses: {output}")

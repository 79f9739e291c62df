"""`tokenverse-pp calibrate`: confidences that mean what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import click

from tokenverse_pp.cli.options import plugin_options


@click.command()
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Model folder, checkpoint or experiment.")
@click.option("--hyps", required=True, type=click.Path(path_type=Path), help="Its hypotheses of --cuts (hyps.jsonl).")
@click.option("--cuts", required=True, type=click.Path(path_type=Path), help="Cut manifest with labels: a dev set.")
@click.option("--output", type=click.Path(path_type=Path), help="[default: calibration.json in the model's folder]")
@click.option("--test", nargs=2, type=click.Path(path_type=Path), metavar="HYPS CUTS", help="Measure on these as well.")
@plugin_options
def calibrate(
    model: Path,
    hyps: Path,
    cuts: Path,
    output: Optional[Path],
    test: Optional[Tuple[Path, Path]],
    trust_plugins: bool,
) -> None:
    """Fit the model's confidences to which of its words and task tokens are right.

    Take speech that the model was not trained on, and not the test set. The table shows the expected calibration error
    (ECE) and the Brier score before and after, each half of the utterances calibrated by a fit on the other half.
    --test measures the fit itself, on other speech.
    """
    from tokenverse_pp.calibration import fit, judge_all, measure
    from tokenverse_pp.config import load_config
    from tokenverse_pp.errors import UserError
    from tokenverse_pp.hypotheses import read_hypotheses
    from tokenverse_pp.manifests.labels import validate_cuts
    from tokenverse_pp.manifests.reading import read_cuts
    from tokenverse_pp.search.confidence import CALIBRATION
    from tokenverse_pp.training.checkpoint import CONFIG
    from tokenverse_pp.training.setup import find_model, tasks_of

    folder = find_model(model)
    tasks = tasks_of(load_config(folder / CONFIG).tasks, trust_plugins, folder)
    judged = []
    for hyp_file, cut_file in [(hyps, cuts), test] if test else [(hyps, cuts)]:
        validate_cuts(str(cut_file))
        judged.append(judge_all(read_cuts(cut_file), read_hypotheses(hyp_file), tasks))
    if not any(item.words or item.tasks for item in judged[0]):
        raise UserError(f"{hyps}: no word or task token of a labelled cut to fit confidences to")
    calibration, effect = fit(judged[0])
    target = output or folder / CALIBRATION
    calibration.write(target, {"fitted_on": cuts.name, "effect": effect})
    click.echo(table(effect))
    if test:
        click.echo(f"\n{test[0]}:\n{table(measure(judged[1], calibration))}")
    click.echo(f"calibration: {target}")


def table(effect: Dict[str, Dict[str, Any]]) -> str:
    """ECE and Brier score of words and task tokens, before and after."""
    lines = [f"{'':12}{'examples':>9}{'right %':>9}{'ECE %':>16}{'Brier':>18}"]
    for name, both in effect.items():
        before, after = both["before"], both["after"]
        ece = f"{100 * before['ece']:.1f} -> {100 * after['ece']:.1f}"
        brier = f"{before['brier']:.3f} -> {after['brier']:.3f}"
        lines.append(f"{name:12}{before['examples']:9}{100 * before['right']:9.1f}{ece:>16}{brier:>18}")
    return "\n".join(lines)

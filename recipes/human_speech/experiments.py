#!/usr/bin/env python3
"""Run the experiments of this recipe, gather their results, and check which claims hold.

\b
python recipes/human_speech/experiments.py list
python recipes/human_speech/experiments.py run --dry-run               # what it would run, and how long that takes
python recipes/human_speech/experiments.py run --hours 6               # the most important of them, as many as fit
python recipes/human_speech/experiments.py run                         # all of them
python recipes/human_speech/experiments.py run main tokenverse 'share_*' --seeds 1
python recipes/human_speech/experiments.py gather                      # scores and claims into experiments.json
python recipes/human_speech/experiments.py tables                      # and from there into EXPERIMENTS.md
python recipes/human_speech/experiments.py plots
python recipes/human_speech/experiments.py worst tokenverse_pp

Every run is defined in experiments/grid.yaml. Run the same command again to resume; finished runs are skipped, and two
concurrent commands share the work.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import click
from grid.claims import judge_all, read_claims, verdict_of
from grid.grid import load_grid, read_yaml
from grid.plots import NothingToDraw, draw, read_panels
from grid.results import carried, read_results, rounded, utterances_of_run
from grid.results import gather as gather_results
from grid.runs import Place, Runner
from grid.tables import claims_table, fill
from grid.worst import as_rows, cause_rows, without_texts
from grid.worst import worst as worst_of

from tokenverse_pp.base.files import aligned, write_text
from tokenverse_pp.cli.groups import Group
from tokenverse_pp.cli.options import options_from

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent


@dataclass
class Setup:
    """Paths of the grid, claims, data and results."""

    grid: Path = HERE / "experiments" / "grid.yaml"
    """YAML file of the runs."""
    claims: Path = HERE / "experiments" / "claims.yaml"
    """YAML file of the claims to check."""
    data: Path = Path("data/human_speech/features")
    """Folder with the prepared cuts (their stored features)."""
    exp_dir: Path = Path("exp/human_speech_experiments")
    """Folder for the output of all runs."""

    def place(self, steps: Optional[int] = None) -> Place:
        """The grid with its data and results."""
        changes: Dict[str, Any] = {} if steps is None else {"training.max_steps": steps}
        return Place(load_grid(self.grid, RECIPES.parent, changes), self.exp_dir, self.data)


@click.group(cls=Group, help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@options_from(Setup, grid={"show_default": False}, claims={"show_default": False})
@click.pass_context
def cli(ctx: click.Context, **given: Path) -> None:
    """See the module's docstring."""
    ctx.obj = Setup(**given)


def parse_seeds(ctx: click.Context, option: click.Parameter, value: str) -> Tuple[int, ...]:
    """``1,2`` -> (1, 2)."""
    try:
        return tuple(int(part) for part in value.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 1,2,3, got {value!r}") from None


steps_option = click.option("--steps", type=int, help="Train so many steps, whatever the grid says (a short try).")


@cli.command("list")
@steps_option
@click.pass_obj
def list_runs(setup: Setup, steps: Optional[int]) -> None:
    """List the runs, and which seeds of each are finished."""
    place = setup.place(steps)
    rows = [["run", "about", "seeds", "finished"]]
    for run in place.grid.runs.values():
        finished = [seed for seed in run.seeds if place.folder(run, seed).finished]
        rows.append([run.name, run.about, *(",".join(map(str, seeds)) or "-" for seeds in (run.seeds, finished))])
        if run.hyps:
            rows[-1][3] = "there" if Path(run.hyps).is_file() else "not there"
    click.echo(aligned(rows, left=4))


@cli.command()
@click.argument("names", nargs=-1)
@click.option("--seeds", default="", callback=parse_seeds, help="Only these, e.g. 1,2. [default: those of the grid]")
@steps_option
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads of torch.")
@click.option("--hours", type=click.FloatRange(min=0), help="Start no run that would probably not be finished by then.")
@click.option("--dry-run", is_flag=True, help="Only list what would be run, in order, with estimated times.")
@click.pass_obj
def run(
    setup: Setup, names: Tuple[str, ...], seeds: Tuple[int, ...], steps: Optional[int], threads: int,
    hours: Optional[float], dry_run: bool,
) -> None:  # fmt: skip
    """Train and decode those of the runs NAMES that are not finished.

    A name is that of a part of the grid (main) or of a run, or a pattern ('share_*'). Without names, all parts are run
    in the order of the grid, the most important first.
    """
    place = setup.place(steps)
    runner = Runner(place, RECIPES, threads, click.echo, hours)
    folders = runner.todo(place.grid.plan(names), seeds)
    if dry_run:
        click.echo(aligned(runner.forecast(folders), left=3))
        return
    # Like Ctrl-C: this also ends the current command of a run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    runner.run_all(folders)


results_option = click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    default=HERE / "experiments.json",
    show_default=True,
    help="The file of results.",
)
older_option = click.option(
    "--older",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    multiple=True,
    default=[HERE / "experiments_masks_first.json", HERE / "experiments_zero_masks.json"],
    help="Results of an earlier stage of the code, from which runs that are not finished are taken; the oldest first.",
)
resamples_option = click.option(
    "--resamples",
    type=click.IntRange(100),
    default=10_000,
    show_default=True,
    help="Bootstrap resamples of the confidence intervals.",
)


@cli.command()
@steps_option
@resamples_option
@results_option
@older_option
@click.pass_obj
def gather(setup: Setup, steps: Optional[int], resamples: int, results: Path, older: Tuple[Path, ...]) -> None:
    """Write scores, intervals, seconds and commits of all finished runs, and the claims, to the file of results.

    Runs of the grid that are not finished are taken from the newest of the files --older that has them, and are marked.
    """
    place = setup.place(steps)
    found = gather_results(place, resamples, click.echo)
    found["claims"] = judge_all(read_claims(setup.claims), place, resamples)
    shown = [name for name in read_yaml(setup.grid).get("worst") or () if "scores" in found["runs"].get(name, {})]
    found["failures"] = {name: without_texts(utterances_of_run(place, name)) for name in shown}
    for path in reversed(older):
        found = carried(found, read_results(path), place.grid.runs)
    # Those carried over were judged when they were run, maybe by another rule.
    found["claims"] = [{**claim, "verdict": verdict_of(claim)} for claim in found["claims"]]
    write_text(results, json.dumps(rounded(found), indent=1, ensure_ascii=False) + "\n")
    click.echo(f"results: {results}")


@cli.command()
@steps_option
@resamples_option
@click.pass_obj
def claims(setup: Setup, steps: Optional[int], resamples: int) -> None:
    """Show which claims hold, by the finished runs."""
    verdicts = judge_all(read_claims(setup.claims), setup.place(steps), resamples)
    click.echo(aligned(claims_table({"claims": verdicts}, (), ()), left=4))


@cli.command()
@results_option
@click.option(
    "--document",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=HERE / "EXPERIMENTS.md",
    help="Markdown file whose tables are filled in.",
)
@older_option
def tables(results: Path, document: Path, older: Tuple[Path, ...]) -> None:
    """Put the tables of the results between the markers of EXPERIMENTS.md."""
    stages = [read_results(path) for path in older]
    write_text(document, fill(document.read_text(encoding="utf-8"), read_results(results), stages))
    click.echo(f"document: {document}")


@cli.command()
@results_option
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE / "experiments",
    help="Folder for the plots.",
)
@older_option
@click.pass_obj
def plots(setup: Setup, results: Path, output_dir: Path, older: Tuple[Path, ...]) -> None:
    """Draw the plots that the grid describes, each line of one stage of the code."""
    found, stages = read_results(results), [read_results(path) for path in older]
    for name, panels in (read_yaml(setup.grid).get("plots") or {}).items():
        try:
            click.echo(f"plot: {draw(output_dir / f'{name}.png', read_panels(panels, found, stages))}")
        except NothingToDraw:
            click.echo(f"plot: {name}: its runs are not in {results}")


@cli.command("worst")
@click.argument("name")
@click.option("--seed", type=int, help="Seed of the run. [default: the first finished one]")
@click.option("--number", type=click.IntRange(1), default=20, show_default=True, help="Utterances to list.")
@click.option("--min-words", type=click.IntRange(0), default=3, show_default=True, help="Of the reference, at least.")
@click.option(
    "--by",
    type=click.Choice(["wer", "errors"]),
    default="wer",
    show_default=True,
    help="Sort the utterances by WER or by number of errors.",
)
@steps_option
@click.pass_obj
def list_worst(
    setup: Setup, name: str, seed: Optional[int], number: int, min_words: int, by: str, steps: Optional[int]
) -> None:
    """List the worst utterances of the run NAME, each with a cause, and the causes of all utterances with errors."""
    place = setup.place(steps)
    utterances = utterances_of_run(place, name, seed)
    click.echo(aligned(as_rows(worst_of(utterances, number, min_words, by)), left=13))
    click.echo("\n" + aligned(cause_rows(utterances)))


if __name__ == "__main__":
    cli()

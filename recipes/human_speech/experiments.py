#!/usr/bin/env python3
"""The experiments of this recipe: run them, gather what came out, and see which claims hold.

\b
python recipes/human_speech/experiments.py list
python recipes/human_speech/experiments.py run                         # all of them, seed by seed
python recipes/human_speech/experiments.py run tokenverse 'share_*' --seeds 1

Every run is defined in experiments/grid.yaml. What was stopped goes on where it was when the same command is given
again; finished runs are passed over; two commands at once share the work.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import click

from tokenverse_pp.cli.groups import Group
from tokenverse_pp.experiments.folders import Place
from tokenverse_pp.experiments.grid import load_grid
from tokenverse_pp.experiments.runner import Runner
from tokenverse_pp.tables import aligned

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent


@dataclass
class Setup:
    """Where things are."""

    grid: Path
    data: Path
    exp_dir: Path

    def place(self, steps: Optional[int] = None) -> Place:
        """The grid with its data and results."""
        changes: Dict[str, Any] = {} if steps is None else {"training.max_steps": steps}
        return Place(load_grid(self.grid, RECIPES.parent, changes), self.exp_dir, self.data)


@click.group(cls=Group, help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--grid", type=click.Path(path_type=Path), default=HERE / "experiments" / "grid.yaml", help="The runs.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data/human_speech/features"),
    show_default=True,
    help="Folder with the prepared cuts (their stored features).",
)
@click.option(
    "--exp-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("exp/human_speech_experiments"),
    show_default=True,
    help="Folder for all that the runs write.",
)
@click.pass_context
def cli(ctx: click.Context, grid: Path, data: Path, exp_dir: Path) -> None:
    """See the module's docstring."""
    ctx.obj = Setup(grid, data, exp_dir)


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
    click.echo(aligned(rows, left=4))


@cli.command()
@click.argument("names", nargs=-1)
@click.option("--seeds", default="", callback=parse_seeds, help="Only these, e.g. 1,2. [default: those of the grid]")
@steps_option
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads of torch.")
@click.pass_obj
def run(setup: Setup, names: Tuple[str, ...], seeds: Tuple[int, ...], steps: Optional[int], threads: int) -> None:
    """Train and decode the runs NAMES (such as 'share_*'; all if none is named) as far as they are not finished."""
    # As Ctrl-C: the command that a run is at ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    place = setup.place(steps)
    Runner(place, RECIPES, threads, click.echo).run_all(place.grid.chosen(names), seeds)


if __name__ == "__main__":
    cli()

"""The counts of `manifest stats` as a picture (optional extra "plots")."""

from __future__ import annotations

from typing import Any, Dict

from tokenverse_pp.errors import UserError, one_line
from tokenverse_pp.files import PathLike, replacing
from tokenverse_pp.tasks.registry import REGISTRY


def plot_stats(stats: Dict[str, Any], path: PathLike) -> None:
    """Write a PNG: for each task the hours that are labelled, by language and (if there are several) by corpus.

    Hatched is what a machine labelled; grey what is not labelled for the task.

    Args:
        stats: see `stats.count_manifests`.

    Raises:
        UserError: where matplotlib is not installed, or the name does not end in ``.png``.
    """
    if not str(path).endswith(".png"):
        raise UserError(f"{path}: a plot is named .png")
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except Exception as error:  # one that is there may fail in other ways than ImportError
        raise UserError(f"--plot needs matplotlib ({one_line(error)}): pip install 'tokenverse_pp[plots]'") from None
    languages = {name: group for name, group in stats["languages"].items() if name != "all"}
    panels = [("language", languages)]
    if len(stats["corpora"]) > 1:
        panels.append(("corpus", stats["corpora"]))
    figure = Figure(figsize=(8, 2.6 * len(panels) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, groups) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels):
        colours = colormaps["tab10" if len(groups) <= 10 else "tab20"]
        _plot_groups(axes, title, groups, colours)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def _plot_groups(axes: Any, title: str, groups: Dict[str, Any], colours: Any) -> None:
    """One stacked bar a task."""
    tasks = list(REGISTRY)
    left = [0.0] * len(tasks)
    for i, (name, group) in enumerate(groups.items()):
        for part, hatch in (("people", ""), ("machine", "////")):
            hours = [_hours(group, task, part) for task in tasks]
            label = name if part == "people" else None
            axes.barh(
                tasks, hours, left=left, label=label, color=colours(i % colours.N), hatch=hatch, edgecolor="white"
            )
            left = [a + b for a, b in zip(left, hours)]
    rest = [sum(group["tasks"][task]["not_labelled"]["hours"] for group in groups.values()) for task in tasks]
    axes.barh(tasks, rest, left=left, label="not labelled", color="0.9")
    axes.invert_yaxis()
    axes.set_xlabel("hours; hatched: labelled by a machine")
    axes.set_title(f"hours labelled for each task, by {title}", fontsize=10)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _hours(group: Dict[str, Any], task: str, part: str) -> float:
    counts = group["tasks"][task]
    machine = counts["machine"]["hours"]
    return machine if part == "machine" else counts["labelled"]["hours"] - machine

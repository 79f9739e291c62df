"""Plots of results, as a grid describes them.

Under ``plots`` a grid has pictures, each a list of panels, each with lines:

    share:
      - title: F1 over the share of labels
        x: labelled cuts that keep their labels, %
        log: true
        lines:
          SCD: {metric: scd text, runs: {share_5: 5, share_10: 10, tokenverse_pp: 100}}
    dial:
      - title: the vector of ner scaled
        x: recall
        lines:
          NER: {metric: ner exact precision, over: ner exact recall, sweep: dial_ner}

A line has a point a run (at the x that it gives), or a point a decoding of a sweep: at the number of its option
``TASK=NUMBER``, or at another score (``over``). All its points are of one stage of the code (`results.stage_of`): of
those with the most of its runs, the newest. The name of a line of an older stage has that stage's mark.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from grid.results import stage_of
from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.base.files import replacing

ALL = "all"
Point = Tuple[float, float, float, float]  # x; y in percent; low and high end of its interval


class NothingToDraw(Exception):
    """None of the runs of a picture has results."""


def read_panels(
    panels: Sequence[Mapping[str, Any]], results: Mapping[str, Any], older: Sequence[Mapping[str, Any]] = ()
) -> List[Dict[str, Any]]:
    """Panels with the points of their lines in place of what describes them.

    Args:
        older: results of older files, the oldest first.
    """
    now = {name: run for name, run in results["runs"].items() if "before" not in run}
    stages = [("", now), *((stage_of(old)["mark"], old["runs"]) for old in reversed(older))]
    found = []
    for panel in panels:
        lines = {}
        for name, line in panel["lines"].items():
            # max takes the first of equals: the newest.
            mark, points = max(((mark, read_line(line, runs)) for mark, runs in stages), key=lambda one: len(one[1]))
            lines[f"{name} {mark}".strip()] = points
        found.append({**panel, "lines": lines})
    return found


def read_line(line: Mapping[str, Any], runs: Mapping[str, Any]) -> List[Point]:
    """The points of a line, as far as there are results."""
    corpus, found = line.get("corpus", ALL), []
    if "runs" in line:
        for name, x in line["runs"].items():
            found.append(_point(runs.get(name, {}).get("scores", {}), corpus, line["metric"], float(x)))
        return sorted(point for point in found if point)
    for decoding in runs.get(line["sweep"], {}).get("sweep", ()):
        number = float(decoding["name"].rpartition("=")[2])
        if "over" in line:
            across = decoding["scores"].get(corpus, {}).get(line["over"])
            number = 100 * across["mean"] if across else number
        found.append(_point(decoding["scores"], corpus, line["metric"], number))
    return [point for point in found if point]  # in the order of the sweep: a curve over a score may turn back


def _point(scores: Mapping[str, Any], corpus: str, metric: str, x: float) -> Optional[Point]:
    score = scores.get(corpus, {}).get(metric)
    if score is None:
        return None
    low, high = score["interval"]
    return x, 100 * score["mean"], 100 * low, 100 * high


def draw(path: Path, panels: Sequence[Mapping[str, Any]]) -> Path:
    """Draw panels side by side into a picture, scores with their 95% intervals.

    Raises:
        NothingToDraw: where no line has a point.
        UserError: where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except Exception as error:  # one that is there may fail in other ways than ImportError
        raise UserError(f"plots need matplotlib ({one_line(error)}): pip install 'tokenverse_pp[plots]'") from None
    panels = [panel for panel in panels if any(panel["lines"].values())]
    if not panels:
        raise NothingToDraw
    figure = Figure(figsize=(5 * len(panels), 4))
    for number, panel in enumerate(panels, start=1):
        axis = figure.add_subplot(1, len(panels), number)
        for name, line in panel["lines"].items():
            if line:
                xs, ys, lows, highs = zip(*line)
                bars = [[y - low for y, low in zip(ys, lows)], [high - y for y, high in zip(ys, highs)]]
                axis.errorbar(xs, ys, yerr=bars, marker="o", capsize=3, label=name)
        axis.set(title=panel["title"], xlabel=panel["x"], ylabel=panel.get("y", "%"))
        if panel.get("log"):
            axis.set_xscale("log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)
    return path

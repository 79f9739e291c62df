#!/usr/bin/env python3
"""The records of benchmarks/loss.py as a Markdown table, and as a plot of growth.

python benchmarks/loss_report.py loss.json                       # print the table
python benchmarks/loss_report.py loss.json --into benchmarks/results/loss.md   # between its two marks
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import replacing, write_text
from tokenverse_pp.cli.groups import report_errors

Record = Dict[str, Any]
BASELINE = "fast_rnnt"
BEGIN, END = "<!-- loss table: begin -->", "<!-- loss table: end -->"
HEAD = ("B", "T", "U", "V", "type", "peer", "best ms", "median ms", "time / fast_rnnt", "peak MB", "memory / fast_rnnt",
        "matmul share", "torch")  # fmt: skip
SIZE_KEYS = ("B", "T", "U", "V", "D", "s_range", "dtype", "threads")


def setting(record: Record) -> Tuple[Any, ...]:
    """What records must share to be compared."""
    return tuple(record[key] for key in SIZE_KEYS)


def markdown_table(records: Sequence[Record]) -> str:
    """One row a record, settings together, with time and memory over fast_rnnt's where it was measured."""
    baselines = {setting(r): r for r in records if r["peer"] == BASELINE}
    order = list(dict.fromkeys(setting(r) for r in records))
    settings = {tuple(f"{key} {r[key]}" for key in ("D", "s_range", "threads")) for r in records}
    lines = ["; ".join(", ".join(each) for each in sorted(settings)), ""]
    lines += ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for r in sorted(records, key=lambda r: order.index(setting(r))):
        base = baselines.get(setting(r))
        ratios = [f"{r[key] / base[key]:.2f}" if base else "" for key in ("best_ms", "peak_mb")]
        row = [
            *(r[key] for key in ("B", "T", "U", "V", "dtype", "peer")),
            f"{r['best_ms']:.0f}",
            f"{r['median_ms']:.0f}",
        ]
        row += [ratios[0], f"{r['peak_mb']:.0f}", ratios[1], f"{r['matmul_share']:.2f}", r["torch"].split("+")[0]]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def growth_plot(records: Sequence[Record], path: Path) -> None:
    """Best time and peak memory of each peer over T, U and V, the other two as in the first record."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--growth draws with matplotlib: pip install 'tokenverse_pp[plots]'") from error
    if not records:
        raise UserError("--growth: there are no records to plot")
    first = records[0]
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharey="row")
    for column, axis_key in enumerate("TUV"):
        fixed = [key for key in SIZE_KEYS if key != axis_key]
        chosen = [r for r in records if all(r[key] == first[key] for key in fixed)]
        for row, (value, label) in enumerate((("best_ms", "ms a step"), ("peak_mb", "MB over the base"))):
            axis = axes[row, column]
            for peer in dict.fromkeys(r["peer"] for r in chosen):
                points = sorted((r[axis_key], r[value]) for r in chosen if r["peer"] == peer)
                axis.plot(*zip(*points), marker="o", label=peer)
            axis.grid(alpha=0.3)
            axis.set_xlabel(axis_key if row else "")
            axis.set_ylabel("" if column else label)
    for axis in axes.flat:  # after all is drawn: the scale of a row is shared
        axis.set(xlim=(0, None), ylim=(0, None))
    axes[0, 0].legend()
    settings = ", ".join(f"{key} {first[key]}" for key in SIZE_KEYS)
    figure.suptitle(f"Pruned loss, forward + backward, one of T, U, V at a time\n{settings}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def put_between_marks(path: Path, table: str) -> None:
    """Replace what stands between the two marks of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{path} should hold the lines {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    write_text(path, f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


def main() -> None:
    """Print the table or put it into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="JSON file of benchmarks/loss.py")
    parser.add_argument("--into", type=Path, help="Markdown file with the two marks")
    args = parser.parse_args()
    try:
        records: List[Record] = json.loads(args.records.read_text(encoding="utf-8"))
        table = markdown_table(records)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{args.records} holds no records of benchmarks/loss.py ({error})") from error
    if args.into:
        put_between_marks(args.into, table)
    else:
        print(table)


if __name__ == "__main__":
    with report_errors():
        main()

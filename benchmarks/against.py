#!/usr/bin/env python3
"""The CPU speed of this checkout beside that of an earlier commit: training step, search and loss, taking turns.

    python benchmarks/against.py 48de927 --json against.json --fill docs/performance.md
    python benchmarks/against.py HEAD --cases loss --rounds 9          # what the machine's noise is

The commit is unpacked into a temporary folder (`git archive`). A process for each of the two checkouts, with one
thread each, prepares a case by that checkout's own benchmarks; then they take turns of half a second (at least one
run), so that what else the machine does hits both. A round is four turns of each, and gives a ratio: now to before, of
the best run of each. The median over the rounds is reported, by the clock and of the processor's time (for machines
with other work); a case with both above 1.05 is called slower.

One JSON record a line: commit, kind, case, before_ms, now_ms (the best), ratio, ratios, cpu_ratio, cpu_ratios, and
same: whether both give the same result (hypotheses; losses to 1e-4, relative).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type

from include import fill, markdown_table

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_text
from tokenverse_pp.cli.groups import report_errors

ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).resolve().with_name("against_worker.py")
MARKS = "<!-- CPU table: begin -->", "<!-- CPU table: end -->"
LIMIT = 1.05  # median ratios above it are called slower
TURNS = 4  # of each side in a round
Case = Tuple[str, str, Dict[str, Any]]  # kind, name, options
Record = Dict[str, Any]


def cases(dry: bool) -> List[Case]:
    """What is compared; tiny with ``dry``."""
    step = {"tasks": 5, "vocabulary": 500, "batch": 1, "duration": 5.0, "tokens": 30}
    frames = {"frames": 500, "vocab_size": 500, "dim": 512}
    sizes = [{"B": 4, "T": 250, "U": 40, "V": 500, "D": 512}, {"B": 8, "T": 500, "U": 80, "V": 500, "D": 512}]
    batches = [1, 16]
    if dry:
        step.update(vocabulary=60, batch=1, duration=0.5, tokens=5)
        frames, sizes, batches = {"frames": 20, "vocab_size": 20, "dim": 16}, [dict(B=2, T=20, U=5, V=30, D=16)], [2]
    found: List[Case] = []
    for encoder, precision in [("tiny", "fp32")] if dry else [("tiny", "fp32"), ("base", "bf16")]:
        name = f"{encoder}, {step['batch']} x {step['duration']:g} s, {precision}"
        found.append(("step", name, {**step, "encoder": encoder, "precision": precision}))
    for method, beam in (("greedy", 1), ("beam", 4)):
        for batch in batches:
            options = {"method": method, "beam": beam, "batch": batch, "dtype": "float32"}
            found.append(("search", f"{method} {beam}, batch {batch}", {**frames, **options}))
    for size in sizes:
        for dtype in ("float32", "bfloat16"):
            name = f"{' '.join(f'{key}{value}' for key, value in size.items())}, {dtype}"
            found.append(("loss", name, {**size, "dtype": dtype}))
    return found


class Side:
    """The process of one checkout."""

    def __init__(self, tree: Path):
        self.errors = tempfile.TemporaryFile("w+")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment.pop("PYTHONPATH", None)  # may name one of the checkouts
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(tree)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip

    def ask(self, **asked: Any) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` says why

    def answer(self) -> Record:
        """The answer to a line (raises UserError if the process failed)."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or ["no message"]
            raise UserError(f"the benchmark of {self.process.args[-1]} failed: {said[-1]}")  # type: ignore[index]
        answer: Record = json.loads(line)
        return answer

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def unpack(commit: str, folder: Path) -> None:
    """Put the package and the benchmarks of a commit into a folder."""
    archive = folder / "commit.tar"
    command = ["git", "-C", str(ROOT), "archive", "--output", str(archive), commit, "tokenverse_pp", "benchmarks"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{commit}: {' '.join(done.stderr.split())}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder)
    archive.unlink()


def full_name(revision: str) -> str:
    """The short hash of a revision."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "--verify", f"{revision}^{{commit}}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{revision}: no commit of {ROOT}")
    return done.stdout.strip()


def same(a: Any, b: Any) -> bool:
    """Whether two results are the same; losses to 1e-4."""
    return math.isclose(a, b, rel_tol=1e-4) if isinstance(a, float) else a == b


def compare(before: Side, now: Side, case: Case, rounds: int, seconds: float) -> Record:
    """The record of one case."""
    kind, name, options = case
    results = []
    for side in (before, now):
        side.ask(kind=kind, options=options)
        results.append(side.answer()["result"])
    best: Dict[Side, List[Record]] = {before: [], now: []}
    for number in range(rounds):
        turns: Dict[Side, List[Record]] = {before: [], now: []}
        for _ in range(TURNS):
            for side in (before, now) if number % 2 == 0 else (now, before):
                side.ask(seconds=seconds)
                turns[side].append(side.answer())
        for side in (before, now):
            best[side].append({field: min(turn[field] for turn in turns[side]) for field in ("ms", "cpu_ms")})

    def ratios(field: str) -> List[float]:
        return [round(b[field] / a[field], 4) for a, b in zip(best[before], best[now])]

    return {
        "kind": kind,
        "case": name,
        "before_ms": round(min(found["ms"] for found in best[before]), 3),
        "now_ms": round(min(found["ms"] for found in best[now]), 3),
        "ratio": statistics.median(ratios("ms")),
        "ratios": ratios("ms"),
        "cpu_ratio": statistics.median(ratios("cpu_ms")),
        "cpu_ratios": ratios("cpu_ms"),
        "same": same(*results),
    }


COLUMNS = {
    "what": "{kind}",
    "case": "{case}",
    "before, ms": "{before_ms:.4g}",
    "now, ms": "{now_ms:.4g}",
    "ratio": "{ratio:.2f}",
    "ratios": "{spread}",
    "of processor time": "{cpu_ratio:.2f}",
    "same result": "{same_result}",
}


def table(records: Sequence[Record]) -> str:
    """The records as Markdown."""
    shown = [
        {
            **record,
            "spread": f"{min(record['ratios']):.2f} to {max(record['ratios']):.2f}",
            "same_result": "yes" if record["same"] else "no",
        }
        for record in records
    ]
    first = records[0]
    head = (
        f"Before: commit {first['commit']}, now: {first['now']}; torch {first['torch']}, Python {first['python']}, "
        f"one thread, {first['rounds']} rounds of {TURNS} turns of {first['seconds']:g} s. "
        "A ratio below 1 is faster than before.\n\n"
    )
    return head + "\n".join(markdown_table(COLUMNS, shown)) + "\n"


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Compare all cases, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="of before")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here, one a line")
    parser.add_argument("--fill", type=Path, metavar="PAGE", help="put the table between the marks of this page")
    parser.add_argument("--cases", default="", help="only those whose kind and name contain this, e.g. 'loss B8'")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn [0.5]")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes")
    args = parser.parse_args(arguments)
    wanted = [case for case in cases(args.dry_run) if args.cases in f"{case[0]} {case[1]}"]
    if not wanted or args.rounds < 1:
        raise UserError(f"nothing to compare: no case has {args.cases!r}" if not wanted else "--rounds: at least 1")
    import torch

    about = {"commit": full_name(args.commit), "now": full_name("HEAD"), "torch": torch.__version__}
    about.update(python=platform.python_version(), rounds=args.rounds, seconds=args.seconds)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        unpack(args.commit, Path(folder))
        with Side(Path(folder)) as before, Side(ROOT) as now:
            for case in wanted:
                record = {**about, **compare(before, now, case, args.rounds, args.seconds)}
                records.append(record)
                slower = ", slower" * (min(record["ratio"], record["cpu_ratio"]) > LIMIT)
                print(
                    f"{record['kind']}, {record['case']}: {record['before_ms']:.4g} -> {record['now_ms']:.4g} ms, "
                    f"ratio {record['ratio']:.3f}, of processor time {record['cpu_ratio']:.3f}{slower}"
                    f"{'' if record['same'] else ', another result'}",
                    file=sys.stderr,
                )
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if args.json:
        write_text(args.json, lines)
    if args.fill:
        fill(args.fill, MARKS, f"\n{table(records)}\n")
    if not (args.json or args.fill):
        sys.stdout.write(lines)


if __name__ == "__main__":
    with report_errors():
        main()

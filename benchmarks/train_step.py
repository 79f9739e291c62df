#!/usr/bin/env python3
"""Where the time and memory of a training step go: data, encoder, predictor + joiner + loss, backward, optimiser.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py --json train_step.json --table train_step.md
    python benchmarks/train_step.py --encoders tiny --vary tasks --repeats 1        # seconds
    python benchmarks/train_step.py --encoders data2vec,moonshine,qwen3-asr --vary none --batch 1 --phases step
    python benchmarks/train_step.py --encoders xlsr --vary checkpoint --batch 1 --duration 20 --phases step --repeats 1

Encoders have random weights and the shape of a known model (``base``: wav2vec2-base, 95 M; ``xlsr``: XLSR-53, 317 M;
``tiny``: for trying this script; the others of --encoders: docs/encoders.md); audio is noise. Each case runs in a
process of its own, with --threads threads; the default is bf16 autocast, as a run on this CPU would use. A case is the
default one with one thing changed (--vary):

    duration     seconds of an utterance
    tokens       target tokens U an utterance
    vocabulary   V
    tasks        one task without task vectors, five with
    backend      the loss: native, and k2 where it is installed
    checkpoint   gradient checkpointing of the encoder
    ranks        one process and two under DDP (gloo), each with the same batch; and a plain matrix product the same way

One JSON record a line: encoder, backend, tasks, ranks, phase, ms (best of --repeats), peak_mb (over what the process
had before the model was built; the same in all phases of a case), and the sizes. ``step`` is a whole step as training
runs it. The parts are timed apart: ``loss_backward`` is the backward pass down to the encoder's output.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from train_step_worker import ENCODERS, PHASES, measure

DEFAULT = {
    "encoder": "base",
    "backend": "native",
    "tasks": 5,
    "ranks": 1,
    "batch": 2,
    "duration": 10.0,
    "tokens": 60,
    "vocabulary": 500,
    "checkpoint": False,
}
VARY: Dict[str, Sequence[Any]] = {
    "duration": (5.0, 20.0),
    "tokens": (30, 120),
    "vocabulary": (2000,),
    "tasks": (1,),
    "backend": ("k2",),
    "checkpoint": (True,),
    "ranks": (2,),
}


def cases(default: Dict[str, Any], encoders: Sequence[str], vary: Sequence[str]) -> List[Dict[str, Any]]:
    """The default case of each encoder, and for the first of them what is varied."""
    found = [{**default, "encoder": encoder} for encoder in encoders]
    found += [{**found[0], name: value} for name in vary for value in VARY[name]]
    return found


def run_case(case: Dict[str, Any], how: Dict[str, Any], threads: int) -> List[Dict[str, Any]]:
    """Measure a case in its own process (or its two, under torchrun)."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "records.json"
        job = {**case, **how, "output": str(output)}
        launcher = [sys.executable]
        if case["ranks"] > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(case["ranks"])]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        command = [*launcher, __file__, "--work", json.dumps(job)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"left out, {case}: {reason}", file=sys.stderr)
            return []
        records: List[Dict[str, Any]] = json.loads(output.read_text())
        return records


def table(records: Sequence[Dict[str, Any]]) -> str:
    """Markdown: a row a case, milliseconds of each phase; then ratios that the project states."""
    keys = ("encoder", "backend", "tasks", "ranks", "duration", "tokens", "vocabulary", "checkpoint")
    rows: Dict[tuple, Dict[str, Any]] = {}
    for record in records:
        rows.setdefault(tuple(record[key] for key in keys), {})[record["phase"]] = record
    names = [phase for phase in PHASES if any(phase in row for row in rows.values())]
    lines = [f"| {' | '.join([*keys, *names, 'peak MB'])} |", "|" + "---|" * (len(keys) + len(names) + 1)]
    for key, row in rows.items():
        numbers = [f"{row[name]['ms']:.0f}" if name in row else "" for name in names]
        lines.append(f"| {' | '.join([*map(str, key), *numbers, format(row['step']['peak_mb'], '.0f')])} |")
    first = next(iter(rows.values()), {})
    if {"predictor_joiner_loss", "loss_backward", "encoder", "encoder_backward"} <= set(first):
        loss = first["predictor_joiner_loss"]["ms"] + first["loss_backward"]["ms"]
        encoder = first["encoder"]["ms"] + first["encoder_backward"]["ms"]
        lines += ["", f"Loss, joiner and predictor on top of the encoder's forward + backward: {loss / encoder:.1%}."]
    notes = _scaling(rows)
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _scaling(rows: Dict[tuple, Dict[str, Any]]) -> List[str]:
    """What two ranks and five tasks cost, where both cases were measured."""
    lines = []
    first = next(iter(rows.values()), {})
    for key, row in rows.items():
        if key[3] == 2:
            for phase in (name for name in ("step", "matmul") if name in row):
                lines.append(f"Two ranks do {2 * first[phase]['ms'] / row[phase]['ms']:.2f} times the {phase}s of one.")
        if key[2] == 1 and first["step"]["tasks"] != 1:
            change = first["step"]["ms"] / row["step"]["ms"] - 1
            lines.append(f"Five tasks with vectors against one without: {change:+.1%} of a step.")
    return lines


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the cases one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the records here, one a line (default: standard output)")
    parser.add_argument("--table", metavar="FILE", help="write a Markdown table too")
    parser.add_argument("--encoders", default="base", help=f"comma-separated: {', '.join(ENCODERS)} [base]")
    parser.add_argument("--vary", default=",".join(VARY), help="comma-separated, or none [all]")
    for name in ("batch", "duration", "tokens", "vocabulary"):
        value = DEFAULT[name]
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"of the default case [{value}]")
    parser.add_argument("--phases", default="", help="comma-separated, e.g. step [all]")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of a rank [1]")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.work:
        measure(json.loads(args.work))
        return
    vary = [name for name in args.vary.split(",") if name and name != "none"]
    unknown = [name for name in vary if name not in VARY]
    if unknown:
        parser.error(f"--vary: expected some of {', '.join(VARY)}, got {unknown[0]!r}")
    records = []
    default = {**DEFAULT, **{name: getattr(args, name) for name in ("batch", "duration", "tokens", "vocabulary")}}
    how = {
        "precision": args.precision,
        "repeats": args.repeats,
        "phases": args.phases.split(",") if args.phases else [],
    }
    for case in cases(default, args.encoders.split(","), vary):
        found = run_case(case, how, args.threads)
        records += found
        step = next((r for r in found if r["phase"] == "step"), None)
        if step:
            print(f"{case}: {step['ms']:.0f} ms, {step['peak_mb']:.0f} MB", file=sys.stderr)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if args.json:
        Path(args.json).write_text(lines, encoding="utf-8")
    else:
        sys.stdout.write(lines)
    if args.table:
        Path(args.table).write_text(table(records), encoding="utf-8")


if __name__ == "__main__":
    main()

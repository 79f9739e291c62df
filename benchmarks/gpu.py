"""Everything that needs a GPU, in one run of a few minutes: equality, speed, memory, search, training, decoding.

    python benchmarks/gpu.py --json gpu.json --minutes 5
    python benchmarks/gpu.py --json gpu.json --fill docs/performance.md    # the tables of gpu.json; runs nothing
    python benchmarks/gpu.py --json dry.json --dry-run                     # tiny sizes on a CPU

One JSON record a line, written as soon as it is measured. An error becomes a record, and the run continues (in a new
process after one that makes the GPU unusable, such as an illegal memory access). What does
not fit into the time, or needs a package that is not installed, is recorded as skipped with the reason. The exit code
is 1 if anything failed. The sections, the most important first:

    equality      losses and gradients against float64 on the CPU
    loss          time, memory, kernel launches and host synchronisations of the loss
    step          a training step of XLSR-53's size, 16 x 15 s in bf16, in parts
    search        greedy and beam 4 on CPU and GPU, and whether they agree
    decode        the rate of decode.py's path with an encoder of that size
    peers         the loss of torchaudio, fast_rnnt and k2, where they can be imported
    parts         the parts of the loss
    more_steps    8 x 15 s, and 32 x 15 s with activation checkpointing
    toy           a short training of recipes/toy
    faults        trainings that run out of memory, lose their GPU, or start with a loss scale that is too high
    lstm          the searches with an LSTM predictor and ReLU, of Parakeet's size

Needs torch, triton and this package's dependencies; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from include import fill

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli.groups import report_errors

Record = Dict[str, Any]
# Name -> where it is, and its seconds on an H100. The order is that of the run.
SECTIONS: Dict[str, Tuple[str, str, float]] = {
    "equality": ("gpu_loss", "equality", 25),
    "loss": ("gpu_loss", "speed", 40),
    "step": ("gpu_model", "step", 60),
    "search": ("gpu_search", "search", 20),
    "decode": ("gpu_model", "decode", 25),
    "peers": ("gpu_loss", "peers", 35),
    "parts": ("gpu_loss", "parts", 15),
    "more_steps": ("gpu_model", "more_steps", 40),
    "toy": ("gpu_model", "toy", 40),
    "faults": ("gpu_faults", "faults", 75),
    "lstm": ("gpu_search", "lstm", 60),
}
DRY_SHARE = 0.1  # of these seconds, in a dry run
MARKS = "<!-- GPU tables: begin -->", "<!-- GPU tables: end -->"
Column = Tuple[str, str]  # heading, field
TABLES: Dict[str, Tuple[str, Sequence[Column]]] = {
    "equality": (
        "Equality with float64 on the CPU: relative errors",
        [(name, name) for name in ("function", "backend", "dtype", "B", "T", "U", "V")]
        + [("losses", "loss_error"), ("gradients", "grad_error"), ("same ranges", "same_ranges"), ("equal", "equal")],
    ),
    "loss": (
        "Loss, forward and backward",
        [(name, name) for name in ("peer", "mode", "budget", "B", "T", "U", "V", "ms")]
        + [("MB", "peak_mb"), ("kernels", "kernels"), ("waits", "waits"), ("card", "card")],
    ),
    "loss parts": (
        "Parts of the pruned loss, forward and backward, float32",
        [(name, name) for name in ("part", "B", "T", "U", "V", "ms")] + [("MB", "peak_mb"), ("kernels", "kernels")],
    ),
    "search": (
        "Search",
        [(name, name) for name in ("method", "batch", "device", "ms")]
        + [("utterances a second", "utt_per_s"), ("same as the CPU's", "agreement"), ("card", "card")],
    ),
    "lstm": (
        "Search with an LSTM predictor and a ReLU joiner of Parakeet's size",
        [(name, name) for name in ("method", "batch", "device", "ms")]
        + [("utterances a second", "utt_per_s"), ("same as the CPU's", "agreement")]
        + [("without TF32", "agreement_float32"), ("tokens", "tokens"), ("card", "card")],
    ),
    "step": (
        "Training step of XLSR-53's size, bf16",
        [("case", "case"), ("ms", "ms"), ("encoder forward", "encoder_forward_ms"), ("loss forward", "loss_forward_ms")]
        + [("loss backward", "loss_backward_ms"), ("encoder backward", "encoder_backward_ms")]
        + [("optimiser", "optimiser_ms"), ("loss share", "loss_share"), ("peak GB", "peak_gb")]
        + [("s of audio / s", "audio_s_per_s"), ("TFLOP/s", "tflops"), ("card", "card")],
    ),
    "decode": (
        "Decoding with an encoder of XLSR-53's size, beam 4",
        [("case", "case"), ("s of audio / s", "audio_s_per_s"), ("read ms", "read_ms"), ("encoder ms", "encoder_ms")]
        + [("search ms", "search_ms"), ("tokens / s of audio", "tokens_per_s"), ("card", "card")],
    ),
    "toy": ("Toy training", [("steps", "steps"), ("losses", "losses"), ("s of audio / s", "audio_s_per_s")]),
    "faults": (
        "Faults in training",
        [("case", "case"), ("status", "status"), ("exit code", "code"), ("one line", "one_line"), ("said", "said")]
        + [("resumed from", "resumed_from"), ("losses differ by", "difference"), ("at most", "limit")]
        + [("steps skipped", "skipped_steps"), ("loss scale", "scale_first"), ("at the end", "scale_last")],
    ),
}


def environment(run: Any) -> Record:
    """What the figures depend on, and what the card reaches at best."""
    import torch
    from gpu_run import timed

    import tokenverse_pp

    names = ("triton", "transformers", "torchaudio", "fast_rnnt", "k2")
    about: Record = {
        "device": "CPU" if run.dry else torch.cuda.get_device_name(),
        "dry_run": run.dry,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "tokenverse_pp": tokenverse_pp.__version__,
        "installed": [name for name in names if importlib.util.find_spec(name)],
    }
    size = 64 if run.dry else 8192
    x = torch.randn(size, size, device=run.device, dtype=torch.bfloat16)
    about["matmul_tflops"] = round(2 * size**3 / timed(lambda: x @ x, run.device, run.repeats)["best_ms"] / 1e9, 3)
    return about


def restart(args: argparse.Namespace, sections: Sequence[str], seconds: float) -> None:
    """Run the rest in a new process, since this one has lost its GPU."""
    print(f"the GPU fails in this process; a new one runs {', '.join(sections)}", file=sys.stderr)
    command = [sys.executable, __file__, "--json", str(args.json), "--append", "--sections", *sections]
    subprocess.call([*command, "--minutes", str(max(seconds, 1) / 60)])


def measure(args: argparse.Namespace) -> bool:
    """Run the sections; returns whether nothing failed."""
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
    import torch

    if not args.dry_run and not torch.cuda.is_available():
        raise UserError("torch finds no NVIDIA GPU here; --dry-run runs all of it with tiny sizes on the CPU")
    from gpu_run import GpuRun

    run = GpuRun(args.json, args.minutes, args.dry_run, args.append)
    wanted = [name for name in SECTIONS if name in args.sections]
    try:
        if not args.append:
            run.case("environment", "all", lambda: environment(run))
        for number, name in enumerate(wanted):
            module, function, needs = SECTIONS[name]
            if not run.works():
                restart(args, wanted[number:], run.left)
                return False

            def body(run: Any, module: str = module, function: str = function) -> None:
                # Imported here: a package that is missing costs the sections that need it.
                getattr(importlib.import_module(module), function)(run)

            run.section(name, needs * (DRY_SHARE if args.dry_run else 1), body)
    finally:
        run.close()
    count = {status: sum(r["status"] == status for r in run.records) for status in ("ok", "skipped", "failed")}
    print(f"{args.json}: " + ", ".join(f"{number} {status}" for status, number in count.items()), file=sys.stderr)
    return count["failed"] == 0


def read_records(path: Path) -> List[Record]:
    """The records of a JSON file; a last line that a killed run left half-written is passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--json {path}: {error.strerror}") from error
    records: List[Record] = []
    for number, line in enumerate(lines):
        try:
            record = json.loads(line)
            records.append({**record, "section": record["section"], "status": record["status"]})
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines) - 1 or not records:
                raise UserError(f"--json {path}: line {number + 1} is no record of benchmarks/gpu.py") from error
    return records


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(cell, value))
    return "" if value is None else str(value).replace("|", "/")


def tables(records: Sequence[Record]) -> str:
    """The records as Markdown."""
    about: Record = next((r for r in records if r["section"] == "environment" and r["status"] == "ok"), {})
    text = ""
    if about:
        text += (
            f"{about['device']}{' (dry run: tiny sizes, times mean nothing)' if about['dry_run'] else ''}, "
            f"torch {about['torch']}, {about['cpus']} CPU cores, tokenverse_pp {about['tokenverse_pp']}; "
            f"a bf16 matrix product of {about['matmul_tflops']:.3g} TFLOP/s.\n"
        )
    for section, (title, columns) in TABLES.items():
        rows = [r for r in records if r["section"] == section and "reason" not in r]
        if rows:
            lines = [[heading for heading, _ in columns], ["---"] * len(columns)]
            lines += [[cell(row.get(field)) for _, field in columns] for row in rows]
            text += f"\n**{title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    left = [r for r in records if "reason" in r]
    if left:
        text += "\n**Skipped or failed**\n\n"
        text += "".join(f"- {r['section']}, {r['case']}: {r['status']}: {r['reason']}\n" for r in left)
    return text


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Measure, or fill a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the records, one a line")
    parser.add_argument("--minutes", type=float, default=5, help="time for everything (default: 5)")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="NAME",
                        help="run these only")  # fmt: skip
    parser.add_argument("--append", action="store_true", help="add the records to --json instead of replacing it")
    parser.add_argument("--dry-run", action="store_true", help="run all of it with tiny sizes on the CPU")
    parser.add_argument("--fill", type=Path, metavar="PAGE",
                        help="put the tables of --json between the marks of this page; measures nothing")  # fmt: skip
    args = parser.parse_args(arguments)
    if not 0 < args.minutes <= 1440:
        raise UserError(f"--minutes: expected more than 0, at most 1440, got {args.minutes:g}")
    if args.fill:
        fill(args.fill, MARKS, f"\n{tables(read_records(args.json))}\n")
    elif not measure(args):
        sys.exit(1)


if __name__ == "__main__":
    with report_errors():
        main()

"""The section of benchmarks/gpu.py about faults: memory that runs out, a lost GPU, a loss scale that is too high.

What tests/faults and docs/training.md promise on a CPU, through recipes/train.py on the toy corpus, each run in a
process of its own. The runs that do not need each other run side by side. This file as a script is such a run with a
fault (`main`). On a CPU (the dry run) the errors of a GPU are raised by hand.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from gpu_run import GpuRun, Record, import_script

import tokenverse_pp
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.losses import devices
from tokenverse_pp.models import checkpoint
from tokenverse_pp.training import steps, trainer
from tokenverse_pp.training.log import read_log

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NONE = ("none", "0", "0")  # no fault
LIMIT = 200.0  # seconds that a run may take
# How far losses may be from those of an undisturbed run on a GPU, whose sums are not bit-equal: relative, or so many
# times what two undisturbed runs differ by. On a CPU not at all.
TOLERANCE, TIMES_NOISE = 1e-3, 5.0
MEMORY_MB = 48  # for the run that is to run out of it


class TrainRun:
    """A run of recipes/train.py in the background.

    Args:
        name: of the run.
        exp_dir: its experiment folder; stderr goes into a file beside it.
        options: of recipes/train.py, beside those of the toy.
        fault: the words before the options (`main`).
        fork: copy a process that has imported everything, which starts faster; else as a user starts it.
    """

    def __init__(self, name: str, exp_dir: Path, options: Record, fault: Sequence[str] = (), fork: bool = False):
        self.name, self.exp_dir = name, exp_dir
        self.stderr = exp_dir.with_name(f"{name}.stderr")
        words = [f"--{key}={value}" for key, value in {**options, "training.exp_dir": exp_dir}.items()]
        words = ["--config", str(ROOT / "recipes" / "toy" / "conf" / "toy.yaml"), *words]
        self.process: Any
        if fork:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["gpu_faults"])
            self.process = context.Process(target=forked, args=(str(self.stderr), *(fault or NONE), *words))
            self.process.start()
            return
        script = [str(HERE / "gpu_faults.py"), *fault] if fault else [str(ROOT / "recipes" / "train.py")]
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *script, *words], stdout=subprocess.DEVNULL, stderr=stderr, env=environment()
            )

    def wait(self) -> Optional[int]:
        """The exit code; None if it took longer than `LIMIT`."""
        if isinstance(self.process, subprocess.Popen):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(LIMIT)
            return None
        self.process.join(LIMIT)
        code: Optional[int] = self.process.exitcode
        return code

    def result(self) -> Record:
        """Wait for it: the exit code, and of a run that failed what it said, and whether that was one line."""
        code, said = self.wait(), self.stderr.read_text(encoding="utf-8", errors="replace")
        lines = said.strip().splitlines() or ["nothing"]
        errors = [line for line in lines if line.startswith("error: ")]
        # Of an abort in compiled code the end is a list of frames.
        line = (errors or [line for line in lines if "what():" in line] or lines)[-1]
        failed = {
            "said": line if len(line) < 400 else f"{line[:200]} .. {line[-200:]}",
            "one_line": len(errors) == 1 and errors[0] == lines[-1] and "Traceback" not in said,
        }
        resumed = re.findall(r"resuming from (step-\d+)", said)
        return {"code": code, **(failed if code != 0 else {}), "resumed_from": resumed[-1] if resumed else None}

    def end(self) -> None:
        """End the process if it still runs."""
        self.process.kill()
        self.wait()

    def logged(self) -> Dict[int, Record]:
        """The records of the steps in log.jsonl, by step."""
        path = self.exp_dir / "log.jsonl"
        return {r["step"]: r for r in read_log(path) if r["kind"] == "train"} if path.is_file() else {}


def environment() -> Dict[str, str]:
    """For a process: this package, this folder, and no network."""
    paths = [str(HERE), str(Path(tokenverse_pp.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}


def faults(run: GpuRun) -> None:
    """Memory, a lost GPU and a loss scale that is too high, one record each; and two undisturbed runs."""
    total, every, lost_at = (8, 3, 5) if run.dry else (40, 10, 26)
    # As in fp16, a gradient overflows at about 2 ** 15: on a CPU in a type that overflows at 2 ** 127.
    scale = {"precision": "fp32", "value": 120} if run.dry else {"precision": "fp16", "value": 24}
    started: List[TrainRun] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = corpus_options(folder, run.dry, total, every)
        mixed = {**common, "training.precision": scale["precision"]}
        high = str(scale["value"])
        if run.dry:
            os.environ.update(environment())  # for the process that is copied

        def start(name: str, options: Dict[str, Any], fault: Sequence[str] = (), exp: Optional[str] = None) -> TrainRun:
            started.append(TrainRun(name, folder / (exp or name), options, fault, fork=run.dry))
            return started[-1]

        try:
            whole, again = (start(name, common) for name in ("whole", "again"))
            lost = start("lost", common, ("lost", str(lost_at), "0"))
            memory = start("memory", {**common, "data.max_duration": 300}, ("memory", str(MEMORY_MB), "0"))
            scaled = start("scaled", mixed, ("none", "0", high))
            scaled_lost = start("scaled lost", mixed, ("lost", str(lost_at), high))
            noise = run_undisturbed(run, whole, again)
            run.case("faults", "out of memory", lambda: out_of_memory(memory), fault="memory")
            resume = partial(start, "lost, resumed", common, (), "lost")
            measure = partial(lost_and_resumed, lost, resume, whole, noise, run.dry)
            run.case("faults", f"GPU lost at step {lost_at}", measure, fault="lost")
            resume = partial(start, "scaled lost, resumed", mixed, ("none", "0", high), "scaled lost")
            measure = partial(lost_and_resumed, scaled_lost, resume, scaled, noise, run.dry)
            run.case("faults", f"GPU lost at step {lost_at}, loss scale too high", measure, fault="lost")
            run.case("faults", "loss scale too high", lambda: overflowing(scaled), fault="overflow")
        finally:
            for process in started:
                process.end()


def corpus_options(folder: Path, dry: bool, total: int, every: int) -> Record:
    """The options of all runs, after making their corpus."""
    prepare = import_script(ROOT / "recipes" / "toy" / "prepare.py")
    prepare.prepare_toy(folder / "data", {"test": 1, "train": 24 if dry else 400})
    return {
        "data.train": f"[{folder}/data/cuts_train.jsonl.gz]",
        "data.valid": "[]",
        "data.num_workers": 0,
        "data.num_buckets": 1,
        **({"data.max_duration": 8} if dry else {}),
        "model.encoder.name": f"{folder}/data/encoder",
        "tokenizer.vocab_size": 36 if dry else 38,
        "training.max_steps": total,
        "training.save_every": every,
        "training.log_every": 1,
        "training.threads": 1,
    }


def run_undisturbed(run: GpuRun, whole: TrainRun, again: TrainRun) -> float:
    """Record two undisturbed runs; return the largest relative difference of their losses."""
    noise = math.nan

    def measure() -> Record:
        nonlocal noise
        codes = [process.result()["code"] for process in (whole, again)]
        noise, first = difference(again, whole)
        return {"codes": codes, "difference": noise, "first_difference": first, "ok": codes == [0, 0]}

    run.case("faults", "two undisturbed runs", measure, fault="none")
    return noise


def out_of_memory(process: TrainRun) -> Record:
    """A line that names the cuts and the options, an exit code that is not 0, and no traceback."""
    found = process.result()
    named = bool(re.search(r"\btoy-train-\d+", found.get("said", ""))) and "--data.max_duration" in found["said"]
    return {**found, "names_cuts": named, "ok": bool(found["code"]) and found["one_line"] and named}


def lost_and_resumed(
    run: TrainRun, resume: Callable[[], TrainRun], undisturbed: TrainRun, noise: float, exact: bool
) -> Record:
    """A line, an exit code that is not 0, a last checkpoint whose checksums are right; and a second start from it.

    That one ends with the losses of the undisturbed run: exactly the same ones with ``exact``, else up to a multiple
    of what two undisturbed runs differ by (`TOLERANCE`).
    """
    first = run.result()
    folders = checkpoint.list_checkpoints(run.exp_dir)
    name = folders[-1].name if folders else None
    damage = checkpoint.damage(folders[-1]) if folders else "there is none"
    resumed = resume()
    second = resumed.result()
    undisturbed.wait()
    largest, at_first = difference(resumed, undisturbed, name)
    limit = 0.0 if exact else max(TOLERANCE, TIMES_NOISE * noise)
    scales = [[record["loss_scale"] for record in side.logged().values()] for side in (resumed, undisturbed)]
    fine = bool(first["code"]) and first["one_line"] and damage is None
    # An overflow that one of two runs on a GPU has and the other has not moves the scale.
    goes_on = second["code"] == 0 and second["resumed_from"] == name and (scales[0] == scales[1] or not exact)
    return {
        **first,
        "checkpoint": name,
        "damage": damage,
        "resumed_code": second["code"],
        "resumed_from": second["resumed_from"],
        "difference": largest,
        "first_difference": at_first,
        "limit": limit,
        "same_scale": scales[0] == scales[1],
        "ok": fine and goes_on and largest <= limit,
    }


def overflowing(process: TrainRun) -> Record:
    """Steps are skipped while the loss scale falls; then the run goes on, with losses that are finite."""
    found, logged = process.result(), process.logged()
    last = logged[max(logged)]
    losses = [record["pruned"] for record in logged.values()]
    scales = [record["loss_scale"] for record in logged.values()]
    finite = all(map(math.isfinite, losses))
    about = {"skipped_steps": last["skipped_steps"], "bad_steps": last["bad_steps"], "steps": max(logged)}
    about.update(scale_first=scales[0], scale_last=scales[-1], finite=finite)
    fine = 0 < last["skipped_steps"] < max(logged) and last["bad_steps"] == 0 and scales[-1] < scales[0]
    return {**found, **about, "ok": found["code"] == 0 and finite and fine}


def difference(run: TrainRun, expected: TrainRun, after: Optional[str] = None) -> Tuple[float, float]:
    """The largest relative difference of two runs' losses over all steps, and that of the first step after a folder.

    Infinite where they do not have the same steps.
    """
    here, there = run.logged(), expected.logged()
    if not here or set(here) != set(there):
        return math.inf, math.inf
    found = {step: abs(here[step]["pruned"] / there[step]["pruned"] - 1) for step in sorted(here)}
    begin = int(after.rpartition("-")[2]) + 1 if after else min(found)
    return max(found.values()), found.get(begin, math.inf)


def run_out_of_memory(megabytes: float) -> None:
    """Give this process so little of the GPU's memory; on a CPU, raise its error in the first forward pass."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(megabytes * 2**20 / torch.cuda.mem_get_info()[1])
    else:
        error = getattr(torch, "OutOfMemoryError", RuntimeError)  # torch 2.5 and later
        at_forward(1, lambda: throw(error("CUDA out of memory. Tried to allocate 2.00 GiB")))


def lose_gpu(step: float) -> None:
    """Fail an assertion on the GPU in the forward pass of a step; on a CPU, raise the error that this makes."""
    if torch.cuda.is_available():
        at_forward(int(step), lambda: torch._assert_async(torch.zeros(1, device="cuda")))
    else:
        error = getattr(torch, "AcceleratorError", RuntimeError)  # torch 2.8 and later
        said = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"
        at_forward(int(step), lambda: throw(error(said)))


FAULTS: Dict[str, Callable[[float], None]] = {
    "memory": run_out_of_memory,  # megabytes
    "lost": lose_gpu,  # the step, from 1
    "none": lambda value: None,
}


def throw(error: Exception) -> None:
    """Raise an error."""
    raise error


def at_forward(number: int, act: Callable[[], Any]) -> None:
    """Do something before the forward pass of this number, from 1."""
    forward, count = steps.forward, 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            act()
        return forward(*arguments, **options)

    steps.forward = counted


def start_scale(exponent: int) -> None:
    """Let the loss scale begin at a power of two; on a CPU too, which has none otherwise."""

    def scaler(device: torch.device, precision: str) -> Any:
        options = {"init_scale": 2.0**exponent, "growth_interval": devices.GROWTH_INTERVAL}
        return torch.amp.GradScaler(device.type, **options)

    trainer.grad_scaler = scaler


def main(fault: str, value: str, exponent: str, *options: str) -> None:
    """Run recipes/train.py with one of `FAULTS`, and with a loss scale that begins at 2 ** exponent (0: as it is)."""
    if int(exponent):
        start_scale(int(exponent))
    FAULTS[fault](float(value))
    with report_errors():
        import_script(ROOT / "recipes" / "train.py").main(list(options))


def forked(stderr: str, *words: str) -> None:
    """`main` in a copied process, with stderr in a file."""
    torch.set_num_threads(1)
    sys.stderr = open(stderr, "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), 2)
    main(*words)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""One side of benchmarks/against.py: runs the benchmarks of one checkout, a turn at a time, as it is told on stdin.

A line of stdin is ``{"kind", "options"}``, which prepares a case, or ``{"seconds"}``, a turn: the case runs as often as
fits into these seconds, at least once. Each line is answered by one on stdout. What is run are the checkout's own
modules, of any commit since these have been there: train_step_worker.py, search.py, search_cases.py, loss_worker.py.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict

Result = Any  # what JSON holds: the two sides' are compared


def step(options: Dict[str, Any]) -> Callable[[], Result]:
    """A whole training step (its own forward, backward and update); returns its loss."""
    import train_step_worker

    # Before 2026-11-26 the function had the other name.
    start = getattr(train_step_worker, "start_distributed", None) or train_step_worker.start_world
    job = {"backend": "native", "ranks": 1, "checkpoint": False, "repeats": 1, "phases": [], **options}
    with tempfile.TemporaryDirectory() as folder:
        measured = train_step_worker.Step(job, Path(folder), start())

    def run() -> Result:
        measured._whole()
        return measured.loss

    return run


def search(options: Dict[str, Any]) -> Callable[[], Result]:
    """A search over a batch; returns the tokens of the best hypotheses."""
    import search as benchmark
    from search_cases import Case

    sizes = ("frames", "batch", "vocab_size", "dim")
    case = Case(*(options[name] for name in sizes), seed=1)
    wanted = benchmark.SearchOptions(options["method"], options["beam"], joiner_dtype=options["dtype"])
    return lambda: [list(best.tokens) for best in benchmark.best_of(case, 0, options["batch"], wanted)]


def loss(options: Dict[str, Any]) -> Callable[[], Result]:
    """Forward and backward of the pruned loss with its joiner; returns the loss."""
    from loss_worker import Recipe

    size = {name: options[name] for name in "BTUVD"}
    return Recipe("native", size, s_range=5, autocast=options["dtype"] == "bfloat16").step


def turn(run: Callable[[], Result], seconds: float) -> Dict[str, Any]:
    """The best of the runs that fit into a time, by the clock and of the processor, in milliseconds."""
    started = time.perf_counter()
    wall, cpu = [], []
    while not wall or time.perf_counter() - started < seconds:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        result = run()
        wall.append(1000 * (time.perf_counter() - begun))
        cpu.append(1000 * (time.process_time() - begun_cpu))
    return {"ms": min(wall), "cpu_ms": min(cpu), "runs": len(wall), "result": result}


def main(tree: Path) -> None:
    """Answer the lines of stdin, with the modules of a checkout."""
    sys.path[:1] = [str(tree / "benchmarks"), str(tree)]  # in place of this script's folder
    import torch

    import tokenverse_pp

    if tree not in Path(tokenverse_pp.__file__).parents:
        sys.exit(f"{tokenverse_pp.__file__} is not of {tree}")
    torch.set_num_threads(1)
    kinds = {"step": step, "search": search, "loss": loss}
    answers, sys.stdout = sys.stdout, sys.stderr
    run = None
    for line in sys.stdin:
        asked = json.loads(line)
        if "kind" in asked:
            run = None  # frees the case before
            run = kinds[asked["kind"]](asked["options"])
            answer: Dict[str, Any] = {"result": run()}  # also warms up
        else:
            assert run is not None
            answer = turn(run, asked["seconds"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

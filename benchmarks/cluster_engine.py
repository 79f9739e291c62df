#!/usr/bin/env python3
"""What `--engine ray` costs: decoding with one worker of a local Ray cluster beside one process, the same batches.

    python benchmarks/cluster_engine.py --model exp/toy --cuts data/toy/cuts_test.jsonl.gz --times 5

Prints one JSON record: seconds until the first batch is done (start: Ray, the worker's imports, the model), seconds of
the batches after it, and the overhead of these in percent. Both take turns (--rounds), and the best of each counts.
``handover_ms`` is what a shard takes whose result is there already, in percent of a batch ``handover_percent``: the
same overhead, but for the work of Ray beside the batches, on a machine that has other things to do.
"""

from __future__ import annotations

import json
import os
import time
from functools import partial
from typing import Any, Callable, Dict, List, Tuple

import click

from tokenverse_pp.api.model import RecognizerJob, load_named
from tokenverse_pp.base.engine import EngineOptions, opened
from tokenverse_pp.base.options import DecodeOptions
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.data.distributed import set_threads
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.decoding.recognizer import plan_batches
from tokenverse_pp.decoding.run import batch_line, run_digest

Shards = List[Tuple[str, Any]]


def measure(kind: str, workers: int, start: Callable[[], Any], shards: Shards) -> Tuple[float, float, List[Any]]:
    """Seconds to the first result, seconds from there to the last, and the results."""
    options = EngineOptions(engine="ray", num_workers=workers) if kind == "ray" else EngineOptions()
    began = time.perf_counter()
    with opened(options) as engine:
        results = engine.run(start, shards)
        found = [next(results)]
        first = time.perf_counter()
        found.extend(results)
        return first - began, time.perf_counter() - first, found


def ready(result: Any) -> Callable[[Any], Any]:
    """Start a worker that knows the result of all shards."""
    return lambda shard: result


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@click.option("--model", required=True, help="Folder of the model.")
@click.option("--cuts", required=True, help="Manifest of the cuts.")
@click.option("--times", default=1, show_default=True, help="How often the cuts are decoded.")
@click.option("--max-duration", default=60.0, show_default=True, help="Seconds of padded audio in a batch.")
@click.option("--workers", default=1, show_default=True, help="Workers of Ray.")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each.")
def main(model: str, cuts: str, times: int, max_duration: float, workers: int, rounds: int) -> None:
    """See the module's docstring."""
    loaded, _ = load_named(model)
    set_threads(1, loaded.model)
    options = DecodeOptions(max_duration=max_duration)
    batches = plan_batches(list(read_cuts(cuts)), options)
    shards: Shards = [(f"{n}", group) for n, group in enumerate(batches * times)]
    start = RecognizerJob(batch_line, model, None, options, run_digest(loaded, options), threads=1)
    record: Dict[str, Any] = {"workers": workers, "shards": len(shards), "cpus": os.cpu_count()}
    runs: Dict[str, List[Tuple[float, float]]] = {"process": [], "ray": []}
    results = []
    for _ in range(rounds):
        for kind, found in runs.items():
            first, rest, lines = measure(kind, workers, start, shards)
            found.append((first, rest))
            results.append(lines)
    for kind, found in runs.items():
        record[f"{kind}_first_s"], record[f"{kind}_rest_s"] = (round(min(column), 3) for column in zip(*found))
    record["ms_a_shard"] = round(1000 * record["process_rest_s"] / (len(shards) - 1), 2)
    _, empty, _ = measure("ray", workers, partial(ready, results[0][0]), shards)
    record["handover_ms"] = round(1000 * empty / (len(shards) - 1), 2)
    record["handover_percent"] = round(100 * record["handover_ms"] / record["ms_a_shard"], 2)
    record["overhead_percent"] = round(100 * (record["ray_rest_s"] / record["process_rest_s"] - 1), 2)
    record["same_results"] = all(lines == results[0] for lines in results)
    click.echo(json.dumps(record))


if __name__ == "__main__":
    with report_errors():
        main()

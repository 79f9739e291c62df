#!/usr/bin/env python3
"""One measurement of benchmarks/loss.py, in a process of its own: prints its record as one line of JSON.

Runs under whatever interpreter has the peer (k2 has an environment of its own), so it wants nothing but torch, the
peer, and for the native backend this checkout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
MB = 1024  # the kernel speaks of kB
WARM_UP = {"B": 2, "T": 20, "U": 6, "V": 32, "D": 32}


def read_status(key: str) -> float:
    """A field of /proc/self/status in MB (VmRSS: memory now, VmHWM: its peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / MB
    raise SystemExit(f"no {key} in /proc/self/status: memory can be measured on Linux only")


class Recipe:
    """Projections, inputs and one training step of the loss for one peer."""

    def __init__(self, peer: str, size: Dict[str, int], s_range: int, autocast: bool):
        torch.manual_seed(0)
        self.peer, self.s_range, self.autocast = peer, s_range, autocast
        batch, frames, symbols, vocab, dim = (size[key] for key in "BTUVD")
        self.encoder_out = torch.randn(batch, frames, dim, requires_grad=True)
        self.predictor_out = torch.randn(batch, symbols + 1, dim, requires_grad=True)
        self.symbols = torch.randint(1, vocab, (batch, symbols))
        self.boundary = torch.tensor([[0, 0, symbols, frames]] * batch)
        self.simple_am, self.simple_lm = nn.Linear(dim, vocab), nn.Linear(dim, vocab)
        self.joiner_am, self.joiner_lm = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.joiner_output = nn.Linear(dim, vocab)

    def step(self) -> float:
        """One forward and backward pass; returns the loss."""
        loss_of = self._native if self.peer.startswith("native") else self._peer
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            am_simple, lm_simple = self.simple_am(self.encoder_out), self.simple_lm(self.predictor_out)
            am, lm = self.joiner_am(self.encoder_out), self.joiner_lm(self.predictor_out)
            loss = loss_of(am_simple, lm_simple, am, lm)
        loss.backward()
        for module in (self.simple_am, self.simple_lm, self.joiner_am, self.joiner_lm, self.joiner_output):
            module.zero_grad(set_to_none=True)
        self.encoder_out.grad = self.predictor_out.grad = None
        return float(loss.detach())

    def _native(self, am_simple: Tensor, lm_simple: Tensor, am: Tensor, lm: Tensor) -> Tensor:
        from tokenverse_pp.losses import DEFAULT_MEMORY_BUDGET, pruned_transducer_loss

        losses = pruned_transducer_loss(
            am_simple, lm_simple, am, lm, self.joiner_output, self.symbols, self.boundary,
            prune_range=self.s_range, lm_scale=0.25, am_scale=0.0, backend="native", reduction="sum",
            memory_budget=0 if self.peer == "native-low" else DEFAULT_MEMORY_BUDGET,
        )  # fmt: skip
        return 0.5 * losses.simple + losses.pruned

    def _peer(self, am_simple: Tensor, lm_simple: Tensor, am: Tensor, lm: Tensor) -> Tensor:
        library: Any = __import__(self.peer)
        common = {"symbols": self.symbols, "termination_symbol": 0, "boundary": self.boundary, "reduction": "sum"}
        with torch.autocast("cpu", enabled=False):
            simple, (px_grad, py_grad) = library.rnnt_loss_smoothed(
                lm=lm_simple.float(), am=am_simple.float(), lm_only_scale=0.25, am_only_scale=0.0,
                return_grad=True, **common,
            )  # fmt: skip
        ranges = library.get_rnnt_prune_ranges(px_grad, py_grad, self.boundary, self.s_range)
        am_band, lm_band = library.do_rnnt_pruning(am, lm, ranges)
        logits = self.joiner_output(torch.tanh(am_band + lm_band))
        with torch.autocast("cpu", enabled=False):
            pruned = library.rnnt_loss_pruned(logits=logits.float(), ranges=ranges, **common)
        return 0.5 * simple + pruned


def timed_steps(recipe: Recipe, repeat: int, seconds: float) -> Tuple[float, List[float], List[float]]:
    """Loss, and milliseconds (by the clock, of the processor) of up to `repeat` steps, after one that does not count.

    Stops early after `seconds`, but not before two steps.
    """
    times: List[float] = []
    cpu_times: List[float] = []
    loss = recipe.step()
    while len(times) < repeat and (len(times) < 2 or sum(times) < seconds * 1000):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        loss = recipe.step()
        times.append((time.perf_counter() - begin) * 1000)
        cpu_times.append((time.process_time() - cpu_begin) * 1000)
    return loss, times, cpu_times


def joiner_gflop(size: Dict[str, int], s_range: int) -> float:
    """Operations of the joiner's three matrix products (logits, gradient of the rows, of the weights)."""
    return 3 * 2 * size["B"] * size["T"] * s_range * size["D"] * size["V"] / 1e9


def matmul_rate(size: Dict[str, int], dtype: str) -> float:
    """GFLOP/s of one cache-sized product with the joiner's shape, best of some: what the machine can reach."""
    rows = torch.randn(1024, size["D"], dtype=getattr(torch, dtype))
    weight = torch.randn(size["D"], size["V"], dtype=getattr(torch, dtype))
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        torch.mm(rows, weight)
        best = min(best, time.perf_counter() - begin)
    return 2 * rows.numel() * size["V"] / best / 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--size", required=True, help='{"B": 8, "T": 500, "U": 80, "V": 500, "D": 512}')
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--s-range", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeat", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--peers-dir", required=True)
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), args.peers_dir]
    torch.set_num_threads(args.threads)
    if not args.peer.startswith("native"):
        __import__(args.peer)
    size: Dict[str, int] = json.loads(args.size)
    autocast = args.dtype == "bfloat16"
    # Libraries load and compile kernels on first use; that is nobody's memory.
    Recipe(args.peer, WARM_UP, args.s_range, autocast).step()
    recipe = Recipe(args.peer, size, args.s_range, autocast)
    base_mb = read_status("VmRSS")
    loss, times, cpu_times = timed_steps(recipe, args.repeat, args.seconds)
    peak_mb = read_status("VmHWM") - base_mb
    gflop, rate = joiner_gflop(size, args.s_range), matmul_rate(size, args.dtype)
    record = {
        "peer": args.peer,
        **size,
        "s_range": args.s_range,
        "dtype": args.dtype,
        "threads": args.threads,
        "best_ms": round(min(times), 2),
        "median_ms": round(statistics.median(times), 2),
        "best_cpu_ms": round(min(cpu_times), 2),
        "steps": len(times),
        "peak_mb": round(peak_mb, 1),
        "joiner_gflop": round(gflop, 3),
        "matmul_gflop_per_s": round(rate, 1),
        "matmul_share": round(gflop / rate / min(times) * 1000, 3),
        "loss": loss,
        "torch": torch.__version__,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()

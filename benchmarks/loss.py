#!/usr/bin/env python3
"""Time and memory of the pruned transducer loss, forward + backward, beside the peers that import.

    python benchmarks/loss.py --json loss.json
    python benchmarks/loss.py --sizes B8T500U80V500 --peers native,fast_rnnt --dtypes float32,bfloat16 --json loss.json

One step is the whole recipe: the four projections, the smoothed simple loss, the pruning ranges, the joiner and the
pruned loss, forward and backward. Every (size, peer, type) runs in a process of its own. `native-low` is the native
backend with a memory budget of 0. `bfloat16` means autocast: the joiner in bfloat16, the losses in float32,
for every peer. `best_cpu_ms` is the processor's time (all threads), for machines that do other work as well.

fast_rnnt is looked for in --peers-dir too (.ci/build_peers.sh builds it there); k2 runs under --k2-python, the
interpreter of .ci/k2_env.sh's environment, if that exists (with that environment's older torch).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

ROOT = Path(__file__).resolve().parent.parent
SIZES = ("B4T250U40V500", "B8T500U80V100", "B8T500U80V500", "B8T500U80V2000", "B8T500U80V5000", "B4T500U100V4000")
PEERS = ("native", "native-low", "fast_rnnt", "k2")


def parse_size(text: str) -> Dict[str, int]:
    """`B8T500U80V500` (optionally `D512`, the default) -> {"B": 8, "T": 500, ...}."""
    size = {"D": 512, **{key: int(value) for key, value in re.findall(r"([BTUVD])(\d+)", text)}}
    if set(size) != set("BTUVD"):
        raise SystemExit(f"size {text!r} should look like B8T500U80V500 or B8T500U80V500D256")
    return size


def read_status(key: str) -> float:
    """A field of /proc/self/status in MB (VmRSS: memory now, VmHWM: its peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {key} in /proc/self/status: memory can be measured on Linux only")


def joiner_gflop(size: Dict[str, int], s_range: int) -> float:
    """Operations of the joiner's three matrix products (logits, gradient of the rows, of the weights)."""
    return 3 * 2 * size["B"] * size["T"] * s_range * size["D"] * size["V"] / 1e9


class Recipe:
    """Projections, inputs and one training step of the loss for one peer."""

    def __init__(self, peer: str, size: Dict[str, int], s_range: int, autocast: bool):
        import torch

        torch.manual_seed(0)
        self.torch, self.peer, self.s_range, self.autocast = torch, peer, s_range, autocast
        batch, frames, symbols, vocab, dim = (size[key] for key in "BTUVD")
        self.encoder_out = torch.randn(batch, frames, dim, requires_grad=True)
        self.predictor_out = torch.randn(batch, symbols + 1, dim, requires_grad=True)
        self.symbols = torch.randint(1, vocab, (batch, symbols))
        self.boundary = torch.tensor([[0, 0, symbols, frames]] * batch)
        linear = torch.nn.Linear
        self.simple_am, self.simple_lm = linear(dim, vocab), linear(dim, vocab)
        self.joiner_am, self.joiner_lm = linear(dim, dim), linear(dim, dim)
        self.joiner_output = linear(dim, vocab)

    def step(self) -> float:
        """One forward and backward pass; returns the loss."""
        torch = self.torch
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            am_simple, lm_simple = self.simple_am(self.encoder_out), self.simple_lm(self.predictor_out)
            am, lm = self.joiner_am(self.encoder_out), self.joiner_lm(self.predictor_out)
            if self.peer.startswith("native"):
                loss = self._native(am_simple, lm_simple, am, lm)
            else:
                loss = self._peer(am_simple, lm_simple, am, lm)
        loss.backward()
        for module in (self.simple_am, self.simple_lm, self.joiner_am, self.joiner_lm, self.joiner_output):
            module.zero_grad(set_to_none=True)
        self.encoder_out.grad = self.predictor_out.grad = None
        return float(loss.detach())

    def _native(self, am_simple: Any, lm_simple: Any, am: Any, lm: Any) -> Any:
        from tokenverse_pp.loss import DEFAULT_MEMORY_BUDGET, pruned_transducer_loss

        losses = pruned_transducer_loss(
            am_simple, lm_simple, am, lm, self.joiner_output, self.symbols, self.boundary,
            prune_range=self.s_range, lm_scale=0.25, am_scale=0.0, backend="native", reduction="sum",
            memory_budget=0 if self.peer == "native-low" else DEFAULT_MEMORY_BUDGET,
        )  # fmt: skip
        return 0.5 * losses.simple + losses.pruned

    def _peer(self, am_simple: Any, lm_simple: Any, am: Any, lm: Any) -> Any:
        library = __import__(self.peer)
        common = {"symbols": self.symbols, "termination_symbol": 0, "boundary": self.boundary, "reduction": "sum"}
        with self.torch.autocast("cpu", enabled=False):
            simple, (px_grad, py_grad) = library.rnnt_loss_smoothed(
                lm=lm_simple.float(), am=am_simple.float(), lm_only_scale=0.25, am_only_scale=0.0,
                return_grad=True, **common,
            )  # fmt: skip
        ranges = library.get_rnnt_prune_ranges(px_grad, py_grad, self.boundary, self.s_range)
        am_band, lm_band = library.do_rnnt_pruning(am, lm, ranges)
        logits = self.joiner_output(self.torch.tanh(am_band + lm_band))
        with self.torch.autocast("cpu", enabled=False):
            pruned = library.rnnt_loss_pruned(logits=logits.float(), ranges=ranges, **common)
        return 0.5 * simple + pruned


def work(args: argparse.Namespace) -> None:
    """The process of one measurement: prints its record as JSON."""
    sys.path[:0] = [str(ROOT), str(args.peers_dir)]
    import torch

    torch.set_num_threads(args.threads)
    if not args.peer.startswith("native"):
        __import__(args.peer)
    size = parse_size(args.size)
    autocast = args.dtype == "bfloat16"
    # Libraries load and compile kernels on first use; that is nobody's memory.
    Recipe(args.peer, {"B": 2, "T": 20, "U": 6, "V": 32, "D": 32}, args.s_range, autocast).step()
    recipe = Recipe(args.peer, size, args.s_range, autocast)
    base_mb = read_status("VmRSS")
    loss, times, cpu_times = 0.0, [], []
    for _ in range(args.repeat + 1):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        loss = recipe.step()
        times.append((time.perf_counter() - begin) * 1000)
        cpu_times.append((time.process_time() - cpu_begin) * 1000)
    gflop = joiner_gflop(size, args.s_range)
    times, cpu_times = times[1:], cpu_times[1:]
    record = {"peer": args.peer, **size, "s_range": args.s_range, "dtype": args.dtype, "threads": args.threads}
    record.update(best_ms=round(min(times), 2), median_ms=round(statistics.median(times), 2))
    record["best_cpu_ms"] = round(min(cpu_times), 2)
    record.update(peak_mb=round(read_status("VmHWM") - base_mb, 1), torch=torch.__version__, loss=loss)
    record.update(joiner_gflop=round(gflop, 3), joiner_gflop_per_s=round(gflop / min(times) * 1000, 1))
    record["matmul_gflop_per_s"] = round(matmul_rate(size, args.dtype), 1)
    print(json.dumps(record))


def matmul_rate(size: Dict[str, int], dtype: str) -> float:
    """GFLOP/s of one cache-sized product with the joiner's shape, best of some: what the machine can reach."""
    import torch

    rows = torch.randn(1024, size["D"], dtype=getattr(torch, dtype))
    weight = torch.randn(size["D"], size["V"], dtype=getattr(torch, dtype))
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        torch.mm(rows, weight)
        best = min(best, time.perf_counter() - begin)
    return 2 * rows.numel() * size["V"] / best / 1e9


def measure(peer: str, size: str, dtype: str, args: argparse.Namespace) -> Optional[Dict[str, Any]]:
    """Run one measurement in its own process; None if the peer is not there."""
    python = args.k2_python if peer == "k2" else sys.executable
    if not Path(python).exists():
        print(f"skipped {peer}: no interpreter {python}", file=sys.stderr)
        return None
    command = [str(python), str(Path(__file__).resolve()), "--worker", "--peer", peer, "--size", size]
    command += ["--dtype", dtype, "--threads", str(args.threads), "--repeat", str(args.repeat)]
    command += ["--s-range", str(args.s_range), "--peers-dir", str(args.peers_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"skipped {peer} {size} {dtype}: {reason}", file=sys.stderr)
        return None
    record: Dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(
        f"{record['peer']:>10} {size:>16} {dtype:>8}  best {record['best_ms']:8.1f} ms  "
        f"median {record['median_ms']:8.1f} ms  cpu {record['best_cpu_ms']:8.1f} ms  peak {record['peak_mb']:7.1f} MB  "
        f"{record['joiner_gflop_per_s'] / record['matmul_gflop_per_s']:.2f} of the matmul rate"
    )
    return record


def write_json(records: List[Dict[str, Any]], path: Path) -> None:
    """Write through a temporary name, so that an interrupted run leaves no half file."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(records, file, indent=1)
        file.write("\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def main() -> None:
    """Parse the command line; run all measurements, or be the process of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES), help="comma-separated, B8T500U80V500[D512]")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--dtypes", default="float32", help="float32, bfloat16 or both, comma-separated")
    parser.add_argument("--s-range", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=7, help="timed steps after one warm-up")
    parser.add_argument("--peers-dir", type=Path, default=ROOT / ".cache" / "peers")
    parser.add_argument("--k2-python", default=os.environ.get("K2_PYTHON", str(ROOT / ".cache/k2env/bin/python")))
    parser.add_argument("--json", type=Path, help="where the list of records goes")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    for name in ("--peer", "--size", "--dtype"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    records = []
    for size in args.sizes.split(","):
        parse_size(size)
        for dtype in args.dtypes.split(","):
            for peer in args.peers.split(","):
                record = measure(peer, size, dtype, args)
                if record is not None:
                    records.append(record)
    if args.json:
        write_json(records, args.json)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Time and memory of the pruned transducer loss, forward + backward, beside the peers that import.

    python benchmarks/loss.py --json loss.json --table
    python benchmarks/loss.py --sizes B8T500U80V500 --peers native,fast_rnnt --dtypes float32,bfloat16 --json loss.json
    python benchmarks/loss.py --sizes growth --peers native,native-low,fast_rnnt --json growth.json --growth growth.png

One step is the whole recipe: the four projections, the smoothed simple loss, the pruning ranges, the joiner and the
pruned loss, forward and backward. Every (size, peer, type) runs in a process of its own (loss_worker.py). `native-low`
is the native backend with a memory budget of 0. `bfloat16` means autocast: the joiner in bfloat16, the losses in
float32, for every peer. `best_cpu_ms` is the processor's time (all threads), for machines that do other work as well;
`matmul_share` is the time that the joiner's three products would take at the machine's rate, over `best_ms`.

fast_rnnt is looked for in --peers-dir too (.ci/build_peers.sh builds it there); k2 runs under --k2-python, the
interpreter of .ci/k2_env.sh's environment, if that exists (with that environment's older torch).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from loss_report import growth_plot, markdown_table

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_json
from tokenverse_pp.cli.groups import report_errors

ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).resolve().with_name("loss_worker.py")
PEERS = ("native", "native-low", "fast_rnnt", "k2")
SIZE_SETS = {
    "default": (
        "B4T250U40V500", "B8T500U80V100", "B8T500U80V500", "B8T500U80V2000", "B8T500U80V5000", "B4T500U100V4000",
    ),
    # From the first size on, one of T, U and V at a time.
    "growth": (
        "B4T250U50V500", "B4T125U50V500", "B4T500U50V500", "B4T1000U50V500",
        "B4T250U25V500", "B4T250U100V500", "B4T250U200V500",
        "B4T250U50V250", "B4T250U50V1000", "B4T250U50V2000", "B4T250U50V4000",
    ),
}  # fmt: skip
KEY = ("peer", "B", "T", "U", "V", "D", "s_range", "dtype", "threads")


def parse_sizes(text: str) -> List[Dict[str, int]]:
    """Comma-separated `B8T500U80V500` (optionally `D512`, the default) or names of SIZE_SETS -> [{"B": 8, ..}, ..]."""
    sizes = []
    for word in text.split(","):
        for name in SIZE_SETS.get(word, (word,)):
            found = re.findall(r"([BTUVD])(\d+)", name)
            size = {"D": 512, **{key: int(value) for key, value in found}}
            if set(size) != set("BTUVD") or "".join(f"{key}{value}" for key, value in found) != name:
                sets = ", ".join(SIZE_SETS)
                raise UserError(f"--sizes {name!r}: expected B8T500U80V500, B8T500U80V500D256, or one of {sets}")
            sizes.append({key: size[key] for key in "BTUVD"})
    return sizes


def measure(peer: str, size: Dict[str, int], dtype: str, args: argparse.Namespace) -> Optional[Dict[str, Any]]:
    """Run one measurement in its own process; None if the peer is not there."""
    python = args.k2_python if peer == "k2" else sys.executable
    if not Path(python).exists():
        print(f"skipped {peer}: no interpreter {python}", file=sys.stderr)
        return None
    command = [str(python), str(WORKER), "--peer", peer, "--size", json.dumps(size), "--dtype", dtype]
    for name in ("threads", "repeat", "seconds", "s_range", "peers_dir"):
        command += ["--" + name.replace("_", "-"), str(getattr(args, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    name = "".join(f"{key}{value}" for key, value in size.items())
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"skipped {peer} {name} {dtype}: {reason}", file=sys.stderr)
        return None
    record: Dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(
        f"{peer:>10} {name:>20} {dtype:>8}  best {record['best_ms']:8.1f} ms  median {record['median_ms']:8.1f} ms  "
        f"cpu {record['best_cpu_ms']:8.1f} ms  peak {record['peak_mb']:7.1f} MB  matmul {record['matmul_share']:.2f}",
        file=sys.stderr,
    )
    return record


def read_records(path: Path) -> Dict[Tuple[Any, ...], Dict[str, Any]]:
    """The records of an earlier run by what was measured; none if there is no such file."""
    if not path.exists():
        return {}
    try:
        return {tuple(record[key] for key in KEY): record for record in json.loads(path.read_text())}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no records of this benchmark ({error})") from error


def main() -> None:
    """Run all measurements; then the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", default="default", help=f"comma-separated: B8T500U80V500[D512], {', '.join(SIZE_SETS)}"
    )
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--dtypes", default="float32", help="float32, bfloat16 or both, comma-separated; empty: none")
    parser.add_argument("--s-range", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=7, help="timed steps after one warm-up")
    parser.add_argument("--seconds", type=float, default=5, help="no further step after these, from two on")
    parser.add_argument("--peers-dir", type=Path, default=os.environ.get("PEERS_DIR", ROOT / ".cache" / "peers"))
    parser.add_argument("--k2-python", default=os.environ.get("K2_PYTHON", ROOT / ".cache/k2env/bin/python"))
    parser.add_argument("--json", type=Path, help="where the list of records goes")
    parser.add_argument("--add", action="store_true", help="keep what is in the --json file and was not measured again")
    parser.add_argument("--table", action="store_true", help="print all records as a Markdown table")
    parser.add_argument("--growth", type=Path, metavar="PNG", help="plot time and memory over T, U and V")
    args = parser.parse_args()
    sizes = parse_sizes(args.sizes)
    if args.add and not args.json:
        raise UserError("--add needs --json, the file to add to")
    records = read_records(args.json) if args.add else {}
    for size in sizes:
        for dtype in filter(None, args.dtypes.split(",")):
            for peer in args.peers.split(","):
                record = measure(peer, size, dtype, args)
                if record is not None:
                    records[tuple(record[key] for key in KEY)] = record
    found = list(records.values())
    if args.json:
        write_json(args.json, found)
    if args.table:
        print(markdown_table(found))
    if args.growth:
        growth_plot(found, args.growth)


if __name__ == "__main__":
    with report_errors():
        main()

"""Time and memory of the manifest commands, with lhotse's nearest commands beside them.

    OMP_NUM_THREADS=1 python benchmarks/manifests.py --json manifests.json

Each command runs in a process of its own on made-up cuts (two turns on average, with speakers, languages, endpoints
and an entity each; audio is never opened). Records: command, peer (tokenverse_pp or lhotse), cuts, seconds (wall
clock, with start and imports), cpu_seconds, peak_mb (of resident memory), limit. A peer's command that is not done
after --limit seconds is stopped: its seconds are null, its peak_mb is what it had reached. lhotse's commands do less
(`validate` looks at no labels, `copy` changes none), but read and write the same cuts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

WORDS = "oui non bonjour merci demain lundi paris lyon new york je vais à la gare avec amélie trois quatre".split()
TEMPLATES = 997  # different cuts; all others repeat them under other ids
SPEAKERS = 5000
POLL = 0.02  # seconds
# Both command lines are a function `cli` of a module.
ENTRY = ["-c", "import sys; from importlib import import_module; import_module(sys.argv.pop(1)).cli()"]


def cut_lines(first: int, count: int) -> Iterator[str]:
    """Cuts as lines of JSON, without lhotse: a million in some seconds."""
    rng = random.Random(0)
    templates = [
        json.dumps(_cut(rng), ensure_ascii=False).replace("%", "%%").replace("@", "%d") for _ in range(TEMPLATES)
    ]
    ids = [template.count("%d") for template in templates]
    for number in range(first, first + count):
        which = number % TEMPLATES
        yield templates[which] % ((number,) * ids[which]) + "\n"


def _cut(rng: random.Random) -> Dict[str, Any]:
    """A cut whose number is written ``@``."""
    supervisions, end = [], 0.0
    for i in range(rng.randint(1, 3)):
        words = rng.choices(WORDS, k=rng.randint(4, 16))
        seconds = round(0.35 * len(words), 3)
        entities = [{"start": 0, "end": len(words[0]), "type": "X"}]
        supervisions.append(
            {
                **{
                    "id": f"cut-@-{i}",
                    "recording_id": "rec-@",
                    "start": round(end, 3),
                    "duration": seconds,
                    "channel": 0,
                },
                **{"text": " ".join(words), "language": "fr", "speaker": f"spk-{rng.randrange(SPEAKERS)}"},
                "custom": {"endpoint": True, "entities": entities},
            }
        )
        end += seconds + 0.2
    seconds = round(end, 3)
    source = {"type": "file", "channels": [0], "source": "audio/rec-@.flac"}
    recording = {"id": "rec-@", "sources": [source], "sampling_rate": 16000, "num_samples": round(seconds * 16000)}
    recording.update(duration=seconds, channel_ids=[0])
    tasks = {"tasks": ["asr", "scd", "endp", "ner", "lid"], "corpus": "made-up"}
    cut = {"id": "cut-@", "start": 0.0, "duration": seconds, "channel": 0, "supervisions": supervisions}
    return {**cut, "recording": recording, "custom": tasks, "type": "MonoCut"}


def write_cuts(folder: Path, count: int) -> Tuple[Path, Path, Path]:
    """A manifest of all cuts, and its two halves."""
    whole, halves = folder / f"{count}.jsonl.gz", (folder / f"{count}a.jsonl.gz", folder / f"{count}b.jsonl.gz")
    for path, first, number in (
        (whole, 0, count),
        (halves[0], 0, count // 2),
        (halves[1], count // 2, count - count // 2),
    ):
        with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
            file.writelines(cut_lines(first, number))
    return (whole, *halves)


def commands(folder: Path, count: int) -> List[Tuple[str, str, List[str]]]:
    """(command, peer, arguments) of all that is run on a number of cuts."""
    whole, a, b = map(str, write_cuts(folder, count))
    gazetteer, out = folder / "places.tsv", str(folder / "out.jsonl.gz")
    gazetteer.write_text("new york\tLOC\nparis\tLOC\namélie\tPER\n", encoding="utf-8")
    ours, lhotse = [*ENTRY, "tokenverse_pp.cli.main", "manifest"], [*ENTRY, "lhotse.bin.lhotse"]
    label = ["label", whole, out, "--gazetteer", str(gazetteer), "--replace-labels", "--overwrite"]
    return [
        ("validate", "tokenverse_pp", [*ours, "validate", whole]),
        ("validate", "lhotse", [*lhotse, "validate", whole]),
        ("stats", "tokenverse_pp", [*ours, "stats", whole]),
        ("cut describe", "lhotse", [*lhotse, "cut", "describe", whole]),
        ("mix", "tokenverse_pp", [*ours, "mix", a, b, out, "--overwrite"]),
        ("combine", "lhotse", [*lhotse, "combine", a, b, out]),
        ("label", "tokenverse_pp", [*ours, *label]),
        ("copy", "lhotse", [*lhotse, "copy", whole, out]),
    ]


def measure(arguments: Sequence[str], limit: Optional[float]) -> Dict[str, Any]:
    """Run Python in a process; wall clock and CPU seconds, and the peak of its resident memory."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, *arguments], stdout=said, stderr=said)
        stopped = False
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            if limit is not None and not stopped and time.perf_counter() - start > limit:
                process.kill()
                stopped = True
            time.sleep(POLL)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode and not stopped:
            said.seek(0)
            sys.exit(f"{' '.join(arguments)} failed:\n{said.read().decode(errors='replace')}")
    return {
        "seconds": None if stopped else round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),  # Linux counts KiB
        "limit": limit,
    }


def table(records: Sequence[Dict[str, Any]]) -> str:
    """Markdown: a row a command and size."""
    lines = ["| command | peer | cuts | seconds | CPU seconds | peak MB |", "|---|---|---|---|---|---|"]
    for r in records:
        seconds = f"stopped at {r['limit']:.0f}" if r["seconds"] is None else f"{r['seconds']:.1f}"
        cells = [r["command"], r["peer"], f"{r['cuts']:,}", seconds, f"{r['cpu_seconds']:.1f}", f"{r['peak_mb']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run all commands at all sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json", metavar="FILE", help="write the records here, as one JSON list (default: standard output)"
    )
    parser.add_argument("--table", metavar="FILE", help="write a Markdown table too")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="cuts")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds after which a peer is stopped")
    parser.add_argument("--peers", nargs="+", default=["tokenverse_pp", "lhotse"], help="whose commands to run")
    parser.add_argument("--commands", nargs="+", help="which of them to run (default: all)")
    args = parser.parse_args(arguments)
    records = []
    for count in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            for command, peer, line in commands(Path(folder), count):
                if peer not in args.peers or (args.commands and command not in args.commands):
                    continue
                found = measure(line, None if peer == "tokenverse_pp" else args.limit)
                records.append({"command": command, "peer": peer, "cuts": count, **found})
                seconds = f"over {args.limit:.0f}" if found["seconds"] is None else f"{found['seconds']:.1f}"
                print(
                    f"{peer:13} {command:12} {count:8} cuts {seconds:>8} s {found['peak_mb']:8.0f} MB", file=sys.stderr
                )
    if args.table:
        Path(args.table).write_text(table(records), encoding="utf-8")
    text = json.dumps(records, indent=1) + "\n"
    if args.json:
        Path(args.json).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()

"""benchmarks/sampler_restore.py through its command line."""

import itertools
import json
import subprocess
import sys

from toy_runs import ROOT, environment


def test_records(tmp_path):
    script, output = ROOT / "benchmarks" / "sampler_restore.py", tmp_path / "r.json"
    command = [sys.executable, script, "--cuts", "300", "--json", output]
    subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    expected = set(itertools.product(("jsonl", "jsonl.gz"), (0.0, 0.5, 0.999), (False, True)))
    assert {(r["format"], r["place"], r["encode"]) for r in records} == expected
    assert all(r["cuts"] == 300 and r["seconds"] > 0 and r["cpu_seconds"] > 0 for r in records)

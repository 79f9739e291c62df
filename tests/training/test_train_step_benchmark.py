"""benchmarks/train_step.py: its records have what the others read, and its parts make up about a step."""

import json
import subprocess
import sys

import pytest
from toy_runs import ROOT, environment


@pytest.mark.slow
def test_records_and_table(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "train_step.py", "--encoders", "tiny", "--vary", "tasks"]
    command += ["--precision", "fp32", "--repeats", "1", "--json", tmp_path / "r.json", "--table", tmp_path / "r.md"]
    done = subprocess.run(list(map(str, command)), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "r.json").read_text().splitlines()]
    cases = {record["tasks"]: {} for record in records}
    for record in records:
        assert {"encoder", "backend", "tasks", "ranks", "phase", "ms", "peak_mb"} <= set(record), done.stderr
        cases[record["tasks"]][record["phase"]] = record
    assert set(cases) == {5, 1}
    for phases in cases.values():
        assert {"data", "encoder", "predictor_joiner_loss", "optimiser", "step"} <= set(phases)
        assert all(record["ms"] > 0 and record["peak_mb"] > 1 for record in phases.values())
        # The wanted number of target tokens, to within a word.
        assert abs(phases["step"]["target_tokens"] - phases["step"]["tokens"]) < 15
    table = (tmp_path / "r.md").read_text()
    assert table.count("| tiny |") == 2 and "Five tasks with vectors against one without" in table

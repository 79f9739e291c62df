"""The benchmarks of training through their command lines: records that others read, and XLSR-53 at its real size."""

import itertools
import json
import math
import subprocess
import sys

import pytest
from toy_runs import ROOT, environment

pytestmark = pytest.mark.slow


def records_of(tmp_path, script, *options):
    """What a benchmark writes to its JSON file, and what it says."""
    output = tmp_path / "r.json"
    command = [sys.executable, ROOT / "benchmarks" / script, "--json", output, *options]
    done = subprocess.run(list(map(str, command)), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in output.read_text().splitlines()], done.stderr


def test_records_of_sampler_restore(tmp_path):
    records, _ = records_of(tmp_path, "sampler_restore.py", "--cuts", 300)
    expected = set(itertools.product(("jsonl", "jsonl.gz"), (0.0, 0.5, 0.999), (False, True)))
    assert {(r["format"], r["place"], r["encode"]) for r in records} == expected
    assert all(r["cuts"] == 300 and r["seconds"] > 0 and r["cpu_seconds"] > 0 for r in records)


@pytest.mark.slow
def test_records_and_table_of_train_step(tmp_path):
    options = ["--encoders", "tiny", "--vary", "tasks", "--precision", "fp32", "--repeats", 1]
    records, said = records_of(tmp_path, "train_step.py", *options, "--table", tmp_path / "r.md")
    cases = {record["tasks"]: {} for record in records}
    for record in records:
        assert {"encoder", "backend", "tasks", "ranks", "phase", "ms", "peak_mb"} <= set(record), said
        cases[record["tasks"]][record["phase"]] = record
    assert set(cases) == {5, 1}
    for phases in cases.values():
        assert {"data", "encoder", "predictor_joiner_loss", "optimiser", "step"} <= set(phases)
        assert all(record["ms"] > 0 and record["peak_mb"] > 1 for record in phases.values())
        # The wanted number of target tokens, to within a word.
        assert abs(phases["step"]["target_tokens"] - phases["step"]["tokens"]) < 15
    table = (tmp_path / "r.md").read_text()
    assert table.count("| tiny |") == 2 and "Five tasks with vectors against one without" in table


@pytest.mark.slow
def test_xlsr_53_takes_steps_with_and_without_checkpointing(tmp_path):
    """With random weights, two optimiser steps of 20 s of audio fit and give a loss."""
    options = ["--encoders", "xlsr", "--vary", "checkpoint", "--batch", 1, "--duration", 20]
    records, said = records_of(tmp_path, "train_step.py", *options, "--phases", "step", "--repeats", 1)
    plain, again = sorted(records, key=lambda record: record["checkpoint"])
    assert (plain["checkpoint"], again["checkpoint"]) == (False, True), said
    assert 310e6 < plain["encoder_parameters"] < 325e6  # the published figure is 317 M
    assert math.isfinite(plain["loss"]) and math.isfinite(again["loss"])
    assert again["peak_mb"] < plain["peak_mb"]
    for record in (plain, again):  # pytest -s shows it
        name = "checkpointing" if record["checkpoint"] else "no checkpointing"
        print(f"XLSR-53, 20 s, {record['precision']}, {name}: {record['ms']:.0f} ms, {record['peak_mb']:.0f} MB")

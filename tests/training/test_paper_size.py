"""XLSR-53 at its real size, with random weights: two optimiser steps of 20 s of audio fit and give a loss."""

import json
import math
import subprocess
import sys

import pytest
from toy_runs import ROOT, environment


@pytest.mark.slow
def test_xlsr_53_takes_steps_with_and_without_checkpointing(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "train_step.py", "--encoders", "xlsr", "--vary", "checkpoint"]
    command += ["--batch", "1", "--duration", "20", "--phases", "step", "--repeats", "1", "--json", tmp_path / "r.json"]
    done = subprocess.run(list(map(str, command)), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "r.json").read_text().splitlines()]
    plain, again = sorted(records, key=lambda record: record["checkpoint"])
    assert (plain["checkpoint"], again["checkpoint"]) == (False, True), done.stderr
    assert 310e6 < plain["encoder_parameters"] < 325e6  # the published figure is 317 M
    assert math.isfinite(plain["loss"]) and math.isfinite(again["loss"])
    assert again["peak_mb"] < plain["peak_mb"]
    for record in (plain, again):  # pytest -s shows it
        name = "checkpointing" if record["checkpoint"] else "no checkpointing"
        print(f"XLSR-53, 20 s, {record['precision']}, {name}: {record['ms']:.0f} ms, {record['peak_mb']:.0f} MB")

"""benchmarks/loss.py through its command line, on a size that takes a moment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "loss.py"
FIELDS = {"peer", "B", "T", "U", "V", "D", "s_range", "dtype", "threads", "best_ms", "median_ms", "peak_mb", "torch"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")
def test_records_of_the_native_backend_and_a_missing_peer(tmp_path):
    out = tmp_path / "loss.json"
    options = ["--sizes", "B2T20U5V30D16", "--peers", "native,native-low,k2", "--k2-python", str(tmp_path / "none")]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options, "--repeat", "1", "--json", str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "skipped k2" in done.stderr
    records = json.loads(out.read_text())
    assert [record["peer"] for record in records] == ["native", "native-low"]
    assert all(FIELDS <= set(record) for record in records)
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], rel=1e-5)


def test_bad_size_is_named():
    done = subprocess.run([sys.executable, str(SCRIPT), "--sizes", "B2T20"], capture_output=True, text=True)
    assert done.returncode != 0 and "B2T20" in done.stderr

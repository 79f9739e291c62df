"""benchmarks/loss.py and loss_report.py through their command lines, on a size that takes a moment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy_runs import environment

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parent.parent.parent / "benchmarks"
FIELDS = {
    "peer", "B", "T", "U", "V", "D", "s_range", "dtype", "threads", "best_ms", "median_ms", "peak_mb", "torch",
    "joiner_gflop", "matmul_share",
}  # fmt: skip
MARKS = "<!-- loss table: begin -->", "<!-- loss table: end -->"


def run(script, *args):
    command = [sys.executable, str(FOLDER / script), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment())


def record(peer, best_ms, peak_mb, size=500):
    return {
        "peer": peer, "B": 8, "T": 500, "U": 80, "V": size, "D": 512, "s_range": 5, "dtype": "float32", "threads": 1,
        "best_ms": best_ms, "median_ms": best_ms + 1, "peak_mb": peak_mb, "matmul_share": 0.5, "torch": "2.0+cpu",
    }  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")
def test_records_of_the_native_backend_and_a_missing_peer(tmp_path):
    out, png = tmp_path / "loss.json", tmp_path / "growth.png"
    pytest.importorskip("matplotlib")
    options = ["--sizes", "B2T20U5V30D16", "--k2-python", tmp_path / "none", "--repeat", 1, "--json", out]
    first = run("loss.py", *options, "--peers", "native,native-low,k2")
    assert first.returncode == 0, first.stderr
    assert "skipped k2" in first.stderr
    second = run("loss.py", *options, "--dtypes", "", "--add", "--table", "--growth", png)
    assert second.returncode == 0, second.stderr
    records = json.loads(out.read_text())
    assert [r["peer"] for r in records] == ["native", "native-low"]
    assert all(FIELDS <= set(r) for r in records)
    assert all(r["joiner_gflop"] == pytest.approx(3 * 2 * 2 * 20 * 5 * 16 * 30 / 1e9, abs=1e-3) for r in records)
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], rel=1e-5)
    assert [line.split(" | ")[5] for line in second.stdout.splitlines()[4:]] == ["native", "native-low"]
    assert png.read_bytes().startswith(b"\x89PNG")


def test_table_compares_equal_settings_and_goes_between_the_marks(tmp_path):
    records = [record("native", 50.0, 30.0), record("fast_rnnt", 100.0, 60.0), record("native", 9.0, 9.0, size=100)]
    (tmp_path / "loss.json").write_text(json.dumps(records))
    page = tmp_path / "loss.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    for _ in range(2):
        done = run("loss_report.py", tmp_path / "loss.json", "--into", page)
        assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "\nD 512, s_range 5, threads 1\n" in text
    assert text.startswith(f"before\n{MARKS[0]}\n") and text.endswith(f"{MARKS[1]}\nafter\n") and "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("| 8")]
    assert rows == [
        "| 8 | 500 | 80 | 500 | float32 | native | 50 | 51 | 0.50 | 30 | 0.50 | 0.50 | 2.0 |",
        "| 8 | 500 | 80 | 500 | float32 | fast_rnnt | 100 | 101 | 1.00 | 60 | 1.00 | 0.50 | 2.0 |",
        "| 8 | 500 | 80 | 100 | float32 | native | 9 | 10 |  | 9 |  | 0.50 | 2.0 |",
    ]


@pytest.mark.parametrize(
    "script, args, said",
    [
        ("loss.py", ["--sizes", "B2T20"], "--sizes 'B2T20'"),
        ("loss.py", ["--add"], "--add needs --json"),
        ("loss_report.py", ["PAGE"], "no records"),
        ("loss_report.py", ["RECORDS", "--into", "PAGE"], "should hold the lines"),
    ],
)
def test_bad_input_is_one_line(tmp_path, script, args, said):
    (tmp_path / "PAGE").write_text("# no marks")
    (tmp_path / "RECORDS").write_text("[]")
    done = run(script, *(tmp_path / arg if arg in ("PAGE", "RECORDS") else arg for arg in args))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr

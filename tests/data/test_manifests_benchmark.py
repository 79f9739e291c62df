"""benchmarks/manifests.py through its command line, on a size that takes a moment."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tokenverse_pp.data.editing.stats import count_manifests

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "manifests.py"


@pytest.fixture(scope="module")
def script():
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_made_up_cuts_are_valid(script, tmp_path):
    whole, *halves = script.write_cuts(tmp_path, 1001)
    stats = count_manifests([whole])["languages"]["all"]
    assert stats["cuts"] == 1001 and stats["tasks"]["ner"]["labelled"]["cuts"] == 1001
    ids = [json.loads(line)["id"] for line in script.cut_lines(0, 1001)]
    assert len(set(ids)) == 1001
    assert [count_manifests([half])["languages"]["all"]["cuts"] for half in halves] == [500, 501]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
def test_records(tmp_path):
    out = tmp_path / "manifests.json"
    options = ["--sizes", "1000", "--commands", "validate", "--json", str(out)]
    subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, check=True)
    records = json.loads(out.read_text())
    assert [(r["command"], r["peer"]) for r in records] == [("validate", "tokenverse_pp"), ("validate", "lhotse")]
    assert all(r["cuts"] == 1000 and r["seconds"] > 0 and r["peak_mb"] > 10 for r in records)


def test_a_peer_over_the_limit_is_stopped(script):
    record = script.measure(["-c", "import time; time.sleep(60)"], limit=0.2)
    assert record["seconds"] is None and record["limit"] == 0.2 and record["peak_mb"] > 0
    with pytest.raises(SystemExit, match="failed"):
        script.measure(["-c", "raise ValueError('no')"], limit=None)

"""benchmarks/streaming.py on a toy model: its records and tables, and how it pairs tokens with their references."""

import json

import pytest
from scripts import ROOT, load_script
from toy_runs import assert_one_line, call

PARTS = {"speed", "long", "delay", "agreement", "re-decoding"}


@pytest.fixture(scope="module")
def delay():
    return load_script(ROOT / "benchmarks" / "streaming_delay.py", "streaming_delay")


@pytest.fixture(scope="module")
def benchmark(delay):
    return load_script(ROOT / "benchmarks" / "streaming.py", "streaming_benchmark")


@pytest.mark.slow
def test_records_and_tables(benchmark, finished_run, tiny_corpus, tmp_path):
    out, page = tmp_path / "streaming.json", tmp_path / "streaming.md"
    arguments = ["--model", finished_run, "--cuts", tiny_corpus / "cuts_test.jsonl.gz", "--quick"]
    assert call(benchmark.main, *arguments, "--json", out, "--table", page).code == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {record["what"] for record in records} == PARTS
    for record in records:
        assert record["chunk_ms"] == 640 and record["method"] in ("greedy", "beam")
        if record["what"] == "delay":
            assert record["told"] <= record["references"]
        elif record["what"] == "agreement":
            assert record["same"] == record["cuts"] == 3
        else:
            assert 0 < record["median_ms"] <= record["p99_ms"] and record["rss_mb"] > 10
    speed = [record for record in records if record["what"] == "speed"]
    assert [(r["method"], r["streams"]) for r in speed] == [(m, n) for m in ("greedy", "beam") for n in (1, 4)]
    long = [record["minutes"] for record in records if record["what"] == "long" and record["method"] == "beam"]
    assert long == [pytest.approx(10 * 0.64 / 60), pytest.approx(28 * 0.64 / 60)]
    rows = [line for line in page.read_text().splitlines() if line.startswith("|") and "---" not in line]
    assert len(rows) == len(records) + 4


def test_a_peer_shorter_than_a_chunk_is_refused(benchmark, tmp_path):
    arguments = ["--model", tmp_path, "--cuts", tmp_path, "--peer-seconds", "1"]
    assert_one_line(call(benchmark.main, *arguments), "--peer-seconds 1")


def test_references_are_paired_with_the_nearest_token_once(delay):
    told = [delay.Told("[ENDP]", start, start + 0.02, start + 0.5, start + 0.5) for start in (1.2, 1.9, 9.0)]
    pairs = delay.pair(told, [1.0, 2.0, 5.0])
    assert [(one.start, time) for one, time in pairs] == [(1.2, 1.0), (1.9, 2.0)]

"""benchmarks/search.py on a tiny size: its records, its table, and what it says where icefall cannot run."""

import importlib.util
import json

import pytest
from toy_runs import ROOT, call

SMALL = ["--frames", "30", "--vocab-size", "20", "--dim", "16", "--batch", "2", "--beam", "2", "--repeats", "1"]


@pytest.fixture(scope="module")
def benchmark():
    """The script as a module; it finds its neighbours, as when Python runs it."""
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location("search_benchmark", folder / "search.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        spec.loader.exec_module(module)
    return module


def test_records_and_table(benchmark, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("Speed:\n<!-- search table: begin -->\nold\n<!-- search table: end -->\nMore.\n")
    benchmark.main([*SMALL, "--json", str(tmp_path / "search.json"), "--markdown", "--fill", str(page)])
    records = [json.loads(line) for line in (tmp_path / "search.json").read_text().splitlines()]
    ran = {(r["method"], r["dtype"]) for r in records} - {("k2_fast_beam", "float32")}
    both = {(method, dtype) for method in ("greedy", "beam") for dtype in ("float32", "bfloat16")}
    assert ran == both | {("full_beam", "float32")}
    for record in records:
        assert (record["peer"], record["batch"], record["search_share"]) == ("tokenverse_pp", 2, None)
        assert record["utt_per_s"] == pytest.approx(2 / record["seconds"])
        assert record["rtf"] == pytest.approx(record["seconds"] / (2 * 30 * 0.02))
        if record["method"] == "full_beam":  # it searches another model
            assert record["agreement"] is None
        else:
            assert 0 <= record["agreement"] <= 1 and record["agreement_with"] == "tokenverse_pp float32"
    assert {r["agreement"] for r in records if r["method"] in ("greedy", "beam") and r["dtype"] == "float32"} == {1.0}
    table = capsys.readouterr().out
    assert len(table.splitlines()) == len(records) + 2
    assert page.read_text() == f"Speed:\n{benchmark.MARKS[0]}\n{table}{benchmark.MARKS[1]}\nMore.\n"


@pytest.mark.slow
def test_icefall_that_does_not_run_is_said_in_one_line(benchmark, tmp_path):
    failure = call(benchmark.main, *SMALL, "--icefall", tmp_path)
    assert failure.code == 2 and f"--icefall {tmp_path}: its search did not run" in failure.stderr
    assert "beam_search" in failure.stderr and failure.stderr.count("\n") == 1


def test_there_must_be_something_to_compare_with(benchmark):
    assert "--compare needs --icefall" in call(benchmark.main, *SMALL, "--compare", 4).stderr

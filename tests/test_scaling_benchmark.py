"""benchmarks/scaling.py: a dry run of everything, and the page it fills."""

import json
import subprocess
import sys

import pytest
from scripts import ROOT, load_script
from toy_runs import assert_one_line, call, environment

SCRIPT = ROOT / "benchmarks" / "scaling.py"
PAGE = ROOT / "docs" / "scaling.md"


@pytest.fixture
def script():
    pytest.importorskip("torch.utils.flop_counter", reason="torch 2.1")
    return load_script(SCRIPT, "scaling")


@pytest.mark.slow
def test_dry_run_measures_all_sections_and_fills_the_page(script, tmp_path):
    out, page = tmp_path / "dry.json", tmp_path / "page.md"
    command = [sys.executable, SCRIPT, "--dry-run", "--json", out]
    subprocess.run(list(map(str, command)), env=environment(), capture_output=True, check=True)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {record["section"] for record in records} == set(script.SECTIONS) == set(script.TABLES)
    [found] = [record for record in records if record["section"] == "ranks"]
    assert (found["lost"], found["twice"]) == (0, 0)
    page.write_text("".join(f"a\n\n<!-- {name}: begin -->\n<!-- {name}: end -->\n" for name in script.TABLES))
    assert call(script.main, "--json", out, "--fill", page).code == 0
    assert page.read_text().count("\n|---") == len(script.TABLES)


def test_page_holds_the_records(script, tmp_path):
    records = script.read_records(ROOT / "benchmarks" / "results" / "growth.json")
    page = tmp_path / "scaling.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    script.fill_tables(page, records)
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
    resumes = [record for record in records if record["section"] == "resume"]
    assert {record["cuts"] for record in resumes} == {100_000_000}
    assert all(record["seconds"] < 60 and record["peak_mb"] < 1000 for record in resumes)
    for name in ("storage", "growth"):  # reckoned: as the script reckons them today
        module = load_script(SCRIPT.with_name("scaling_steps.py"), "scaling_steps")
        assert list(getattr(module, name)(False)) == [record for record in records if record["section"] == name]


def test_options_that_say_nothing_to_do(script, tmp_path):
    assert_one_line(call(script.main), "--json, --counts or --times")
    assert_one_line(call(script.main, "--fill", tmp_path / "page.md"), "--fill: expected --json")
    (tmp_path / "a.json").write_text("no\n")
    assert_one_line(call(script.main, "--json", tmp_path / "a.json", "--fill", PAGE), "a.json")

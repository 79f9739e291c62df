"""The documents: tables are those that the benchmarks wrote, and links lead somewhere."""

import re

import pytest
from scripts import ROOT, load_script

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_included_tables_are_the_benchmarks_own(document):
    include = load_script(ROOT / "benchmarks" / "include.py", "include")
    text = document.read_text(encoding="utf-8")
    assert include.filled(text) == text, "run python benchmarks/include.py"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(document):
    text = re.sub(r"`[^`]*`|^    .*$", "", document.read_text(encoding="utf-8"), flags=re.M)  # no links in code
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_a_table_is_put_behind_its_mark_and_replaced_there(tmp_path, monkeypatch):
    include = load_script(ROOT / "benchmarks" / "include.py", "include")
    monkeypatch.setattr(include, "ROOT", tmp_path)
    (tmp_path / "t.md").write_text("| new |\n")
    text = "before\n\n<!-- include: t.md -->\n\nafter\n"
    once = include.filled(text)
    assert once == "before\n\n<!-- include: t.md -->\n\n| new |\n\n<!-- end -->\n\nafter\n"
    assert include.filled(once.replace("new", "old")) == include.filled(once) == once

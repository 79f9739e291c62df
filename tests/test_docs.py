"""The documents: tables are those that the benchmarks wrote, links and anchors lead somewhere, and the pages build."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from browser import chromium
from scripts import ROOT, load_script

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/**/*.md"), *ROOT.glob("tokenverse_pp/**/*.md")]
)
FENCE = re.compile(r"^```.*?^```", flags=re.M | re.S)
CODE = re.compile(r"`[^`]*`|^    .*$", flags=re.M)


def anchors(document):
    """What GitHub and mkdocs.yml make of the document's headings."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", document.read_text(encoding="utf-8")), flags=re.M):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower())
        found.add(plain.replace(" ", "-"))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_included_tables_are_the_benchmarks_own(document):
    include = load_script(ROOT / "benchmarks" / "include.py", "include")
    text = document.read_text(encoding="utf-8")
    assert include.filled(text) == text, "run python benchmarks/include.py"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(document):
    text = CODE.sub("", FENCE.sub("", document.read_text(encoding="utf-8")))  # no links in code
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text):
        if "://" not in target:
            file = document.parent / target if target else document
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_a_table_is_put_behind_its_mark_and_replaced_there(tmp_path, monkeypatch):
    include = load_script(ROOT / "benchmarks" / "include.py", "include")
    monkeypatch.setattr(include, "ROOT", tmp_path)
    (tmp_path / "t.md").write_text("| new |\n")
    text = "before\n\n<!-- include: t.md -->\n\nafter\n"
    once = include.filled(text)
    assert once == "before\n\n<!-- include: t.md -->\n\n| new |\n\n<!-- end -->\n\nafter\n"
    assert include.filled(once.replace("new", "old")) == include.filled(once) == once


@pytest.mark.parametrize("picture", sorted(ROOT.glob("docs/assets/*.svg")), ids=lambda path: path.name)
def test_pictures_are_svg_that_says_what_it_shows(picture):
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.parse(picture).getroot()
    assert root.tag == f"{svg}svg" and root.get("viewBox")
    assert root.find(f"{svg}title").text.strip() and root.find(f"{svg}desc").text.strip()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built pages."""
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.browser
def test_search_works_in_pages_that_are_opened_as_files(site, tmp_path):
    with chromium(tmp_path / "profile") as page:
        page.set_window_size(1300, 900)
        page.get((site / "recipes" / "toy" / "index.html").as_uri())
        box = page.find_element("css selector", "input.md-search__input")
        box.click()
        box.send_keys("hotwords")
        page.implicitly_wait(60)
        first = page.find_element("css selector", ".md-search-result__item a")
        assert "hotwords.html" in first.get_attribute("href")
        first.click()
        assert "names.txt" in page.find_element("css selector", "article").text


def test_the_pages_build_without_a_warning_and_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?(//|https?:)", text)
        loaded += re.findall(r"<link[^>]*\srel=[\"']?stylesheet[^>]*\shref=[\"']?(?://|https?:)", text)
        assert loaded == [], page

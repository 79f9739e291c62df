"""The notebook runs from its first cell to its last, and its model does what the text says."""

import json
import os
import sys
from pathlib import Path

import pytest
from scripts import ROOT
from toy_runs import environment

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def printed(cell):
    """What a cell wrote to standard output."""
    return "".join(output["text"] for output in cell["outputs"] if output.get("name") == "stdout")


def test_the_notebook_is_committed_without_output():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Five minutes on two quiet cores, most of them training."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()

    scores = json.loads((tmp_path / "exp" / "quickstart" / "decode" / "scores.json").read_text(encoding="utf-8"))
    assert scores["wer"]["all"]["wer"] < 0.2 and scores["lid"]["accuracy"] > 0.8
    assert min(scores[name]["text"]["f1"] for name in ("scd", "endp")) > 0.8
    (asked,) = [printed(cell) for cell in notebook.cells if "for tasks in (" in cell.source]
    written = dict(line.split(maxsplit=1) for line in asked.splitlines())
    assert "[" not in written["asr"] and written["asr,lid"].startswith("[QA")
    assert "[SCD]" in written["asr,scd,endp"] and "[NE]" not in written["asr,scd,endp"]
    (streamed,) = [printed(cell) for cell in notebook.cells if "transcriber.push(" in cell.source]
    assert "final" in streamed and "pause" in streamed and streamed.splitlines()[-1].split()[2] == "end"

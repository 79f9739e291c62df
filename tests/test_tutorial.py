"""The tutorial runs as it stands: every command of its bash blocks, in order, on less data and with fewer steps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import ROOT, load_script
from toy_runs import environment, read_cuts

from tokenverse_pp.data.manifests import read_cuts as read_manifest

TUTORIAL = ROOT / "docs" / "tutorial.md"
SMALLER = {
    "--train 1500 --dev 20 --test 20": "--train 80 --dev 4 --test 4",
    "--training.max_steps 600": "--training.max_steps 8",
}


def tutorial_script():
    """The bash blocks of the page, with smaller numbers."""
    text = "\n".join(re.findall(r"^```bash\n(.*?)^```", TUTORIAL.read_text(encoding="utf-8"), flags=re.M | re.S))
    for said, smaller in SMALLER.items():
        assert text.count(said) == 1, said
        text = text.replace(said, smaller)
    return text


def test_toy_cuts_become_files_with_marks(tiny_corpus, tmp_path):
    as_files = load_script(ROOT / "recipes" / "toy" / "as_files.py", "as_files")
    numbers = as_files.write_files(tiny_corpus / "cuts_train.jsonl.gz", tmp_path)
    cuts = read_cuts(tiny_corpus)
    assert numbers == {
        "sentences": sum(len(cut.supervisions) == 1 for cut in cuts),
        "calls": sum(len(cut.supervisions) > 1 for cut in cuts),
    }
    rows = (tmp_path / "calls" / "turns.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + sum(len(cut.supervisions) for cut in cuts if len(cut.supervisions) > 1)
    assert "](PER)" in (tmp_path / "sentences" / "table.csv").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
    pytest.importorskip("onnxscript")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euxc", tutorial_script()],
        cwd=tmp_path,
        env={**environment(), "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    work = tmp_path / "tutorial"
    tasks = {
        name: next(iter(read_manifest(work / f"{name}.jsonl.gz"))).custom["tasks"] for name in ("sentences", "calls")
    }
    assert tasks == {"sentences": ["asr", "ner", "lid"], "calls": ["asr", "scd", "endp", "lid"]}
    scores = json.loads((work / "decoded" / "scores.json").read_text(encoding="utf-8"))
    assert {"wer", "scd", "endp", "ner", "lid"} <= set(scores)
    assert (work / "decoded" / "report.html").is_file() and (work / "exp" / "model" / "calibration.json").is_file()
    heard = len(list((work / "calls" / "audio").iterdir()))
    assert len(list((work / "transcripts").glob("*.json"))) == len(list((work / "transcripts").glob("*.srt"))) == heard

"""The tutorial runs as it stands: every command of its bash blocks, in order; and its model is as good as it says."""

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


def tutorial_script():
    """The bash blocks of the page."""
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", TUTORIAL.read_text(encoding="utf-8"), flags=re.M | re.S))


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
def test_the_tutorial_reaches_its_scores(tmp_path):
    """Ten minutes on two quiet cores, half of it training."""
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
    decoded = ("decoded_sentences", "decoded_calls", "decoded")
    scores = [json.loads((work / name / "scores.json").read_text(encoding="utf-8")) for name in decoded]
    sentences, calls, every = scores
    assert all(found["wer"]["all"]["wer"] < 0.2 and found["lid"]["accuracy"] > 0.8 for found in scores)
    assert min(sentences["ner"]["exact"]["f1"], calls["scd"]["text"]["f1"], calls["endp"]["text"]["f1"]) > 0.8
    assert {"scd", "endp", "ner"} <= set(every)
    drawn = re.findall(r"^(\S+) +\d+ +[\d.]+ +[\d.]+%", done.stderr, flags=re.M)
    assert drawn == ["calls_sets-cuts_train", "sentences_sets-cuts_train"]
    assert (work / "decoded" / "report.html").is_file() and (work / "exp" / "model" / "calibration.json").is_file()
    heard = len(list((work / "calls" / "audio").iterdir()))
    assert len(list((work / "transcripts").glob("*.json"))) == len(list((work / "transcripts").glob("*.srt"))) == heard

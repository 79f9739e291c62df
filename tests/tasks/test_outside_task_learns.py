"""The tasks of docs/new_task.md, learnt: labelled, trained, decoded and scored by the commands of the document."""

import json
import shlex
import subprocess
import sys

import pytest
import yaml
from lhotse import CutSet
from outside_task import commands, write_cuts, write_plugin
from scripts import ROOT
from toy_runs import environment

SIZES = {"train": 1500, "dev": 100, "test": 200}


@pytest.mark.slow
def test_tasks_of_the_document_are_learnt(toy_prepare, tmp_path):
    """With the toy recipe's configuration: about three minutes on a core of its own."""
    toy_prepare.prepare_toy(tmp_path / "toy", SIZES)
    write_plugin(tmp_path)
    # In short cuts the first voice, which decides the emotion, is most of what is heard.
    cuts = write_cuts(tmp_path / "toy", tmp_path, longest=2.5)
    config = yaml.safe_load((ROOT / "recipes" / "toy" / "conf" / "toy.yaml").read_text(encoding="utf-8"))
    config["data"].update(train=[str(cuts["train"])], valid=[])
    config["tasks"] = {"languages": ["qaa", "qab"]}  # the command line names the tasks
    config["model"]["encoder"]["name"] = str(tmp_path / "toy" / "encoder")
    config["training"].update(exp_dir=str(tmp_path / "exp"), max_steps=900, average_last=1, threads=1)
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(config))
    first = next(iter(CutSet.from_file(cuts["train"]))).id
    for words in commands(CUT_ID=first):
        if words[0] == "python":
            words = [sys.executable, str(ROOT / words[1]), *words[2:]]
        else:
            words = [sys.executable, "-m", "tokenverse_pp.cli.main", *words[1:]]
        done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, (shlex.join(words), done.stderr)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["emo"]["all"]["f1"] > 0.9, scores["emo"]
    assert scores["num"]["exact"]["f1"] > 0.9, scores["num"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="classes-emo"' in page and "num exact" in page

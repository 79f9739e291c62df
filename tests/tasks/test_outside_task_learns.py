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

SIZES = {"train": 1500, "test": 200}
CONFIG = {
    "data": {"max_duration": 20, "num_buckets": 4, "num_workers": 0},
    "tokenizer": {"vocab_size": 34},
    "model": {
        "encoder": {"kind": "finetune", "random_init": True, "freeze_feature_encoder": False},
        "spec_augment": {"time_share": 0.0, "channel_share": 0.0},
        "loss": {"warm_steps": 150, "ctc_scale": 5.0},
        "predictor_dim": 128,
        "predictor_dropout": 0.2,
        "joiner_dim": 128,
    },
    "optim": {"lr": 3e-3, "warmup_steps": 80},
    "training": {"max_steps": 400, "precision": "bf16", "save_every": 200, "average_last": 1, "threads": 1},
}


@pytest.mark.slow
def test_tasks_of_the_document_are_learnt(toy_prepare, tmp_path):
    """About two minutes on one core; no code of the package is touched."""
    toy_prepare.prepare_toy(tmp_path / "toy", SIZES)
    write_plugin(tmp_path)
    cuts = write_cuts(tmp_path / "toy", tmp_path, longest=2.5)
    CONFIG["data"]["train"] = [str(cuts["train"])]
    CONFIG["model"]["encoder"]["name"] = str(tmp_path / "toy" / "encoder")
    CONFIG["training"]["exp_dir"] = str(tmp_path / "exp")
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(CONFIG))
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

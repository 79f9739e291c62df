"""recipes/train.py on two ranks under torchrun: one is killed; another number of ranks goes on."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_runs import call_ok, finish, start, toy_options

from tokenverse_pp.models import checkpoint
from tokenverse_pp.training.log import read_log

pytestmark = pytest.mark.slow
SMALL = {"data__max_cuts": 4, "training__save_every": 2, "training__valid_every": 2}


def rank_pids(launcher):
    """{rank: process id} of the processes that a torchrun has started."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            variables = dict(v.split("=", 1) for v in (folder / "environ").read_text().split("\0") if "=" in v)
        except (OSError, ValueError, IndexError):
            continue
        if folder.name.isdigit() and parent == str(launcher.pid) and "RANK" in variables:
            found[int(variables["RANK"])] = int(folder.name)
    return found


def test_killed_rank_is_named_by_the_other_which_stops_and_both_go_on_exactly(tiny_corpus, tmp_path):
    options = {**SMALL, "training__max_steps": 16}
    process = start("train.py", *toy_options(tiny_corpus, tmp_path / "exp", **options), ranks=2)
    for line in process.stderr:
        if line.startswith("step 4:"):
            os.kill(rank_pids(process)[0], signal.SIGKILL)
            break
    began = time.monotonic()
    failure = finish(process, timeout=60)
    assert failure.code != 0 and time.monotonic() - began < 40  # URGENT, and torchrun's own 30 s at most
    assert "error: rank 1 stops: rank 0 has given no sign of life" in failure.stderr, failure.stderr
    for folder in ("exp", "unbroken"):
        done = finish(start("train.py", *toy_options(tiny_corpus, tmp_path / folder, **options), ranks=2))
        assert done.code == 0 and ("resuming from step-" in done.stderr) == (folder == "exp"), done.stderr
    ours, theirs = (load_file(tmp_path / folder / "model" / checkpoint.WEIGHTS) for folder in ("exp", "unbroken"))
    for key, value in theirs.items():
        assert torch.allclose(ours[key], value, rtol=0, atol=1e-6), key


def test_run_of_two_ranks_goes_on_with_one(train_script, tiny_corpus, tmp_path):
    exp_dir = tmp_path / "exp"
    # DDP is made anew when layers are unfrozen.
    stages = "[[0, 0], [1, 1], [2, -1]]"
    options = toy_options(tiny_corpus, exp_dir, **SMALL, training__max_steps=3, training__freeze=stages)
    first = finish(start("train.py", *options, ranks=2))
    assert first.code == 0, first.stderr
    assert checkpoint.read_state(exp_dir / "checkpoints" / "step-00000003")["batch"] == 1  # of two a rank and epoch
    done = call_ok(train_script.main, *toy_options(tiny_corpus, exp_dir, **SMALL, training__max_steps=7))
    assert "step-00000003 is of 2 ranks, now 1" in done.stderr
    log = [r for r in read_log(exp_dir / "log.jsonl") if r["kind"] == "train"]
    assert [(r["step"], r["epoch"]) for r in log] == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2)]


def test_ranks_that_read_their_own_parts_resume_with_the_same_batches(tiny_corpus, tmp_path):
    options = {**SMALL, "data__rank_parts": "true", "data__round_cuts": 7, "data__num_workers": 1}
    options.update(training__max_steps=6, training__keep_last=9)
    for folder in ("unbroken", "exp"):
        done = finish(start("train.py", *toy_options(tiny_corpus, tmp_path / folder, **options), ranks=2))
        assert done.code == 0, done.stderr
        if folder == "unbroken":  # as a run that was lost after its first checkpoint
            first = checkpoint.list_checkpoints(tmp_path / folder)[0]
            shutil.copytree(first, tmp_path / "exp" / "checkpoints" / first.name)
            assert checkpoint.read_state(first)["round"] > 0
    assert "resuming from step-00000002" in done.stderr
    ours, theirs = (load_file(tmp_path / folder / "model" / checkpoint.WEIGHTS) for folder in ("exp", "unbroken"))
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key

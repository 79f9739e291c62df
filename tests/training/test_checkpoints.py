"""Checkpoints: complete or absent, retained, averaged, and exact for the optimiser."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from toy_runs import assert_one_line, call, toy_options

from tokenverse_pp.base.config_files import from_dict
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli.main import cli
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.models import checkpoint
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.training.checkpoints import RUNNING, RunningAverage, Saver, average, average_between, recover_run


def write(exp_dir, step, value=0.0):
    folder = checkpoint.checkpoint_dir(exp_dir, step)
    state = {"step": step, "epoch": 0, "batch": step, "world_size": 1}
    weights = {"w": torch.full((2,), value), "seen": torch.tensor([value > 0.5])}
    checkpoint.write_folder(folder, {checkpoint.WEIGHTS: weights}, {checkpoint.STATE: json.dumps(state).encode()})
    return folder


def test_interrupted_writing_leaves_no_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, 1, 1.0)

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", die)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", die)
        for step in (2, 3):
            with pytest.raises(KeyboardInterrupt):
                write(tmp_path, step)
    # What was written under a temporary name is complete, and still no checkpoint.
    assert (tmp_path / "checkpoints" / "step-00000003.tmp" / checkpoint.STATE).is_file()
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == ["step-00000001"]
    write(tmp_path, 3, 4.0)  # what is left of the first try is no obstacle
    assert torch.equal(
        load_file(checkpoint.list_checkpoints(tmp_path)[-1] / checkpoint.WEIGHTS)["w"], torch.full((2,), 4.0)
    )
    assert not (tmp_path / "checkpoints" / "step-00000003.tmp").exists()


@pytest.mark.parametrize(
    ("renames", "again", "expected"), [(0, 0, 1.0), (1, 0, 2.0), (2, 0, 2.0), (0, 1, 1.0), (1, 1, 2.0)]
)
def test_a_kill_at_any_rename_leaves_the_old_or_the_new_folder(tmp_path, monkeypatch, renames, again, expected):
    replace, done = os.replace, []

    def die(*args):
        raise KeyboardInterrupt

    def value():
        [folder] = checkpoint.list_checkpoints(tmp_path)
        assert checkpoint.damage(folder, needed=()) is None
        return checkpoint.read_tensors(folder / checkpoint.WEIGHTS)["w"][0].item()

    write(tmp_path, 1, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: done.append(replace(*paths)) if len(done) < renames else die())
        patch.setattr(shutil, "rmtree", lambda path, **options: done and die())  # of the old folder, in the end
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 1, 2.0)
    if again:  # the next try is killed too, before it has written its files
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_file", die)
            with pytest.raises(KeyboardInterrupt):
                write(tmp_path, 1, 3.0)
    recover_run(tmp_path)
    assert value() == expected
    write(tmp_path, 1, 4.0)
    assert value() == 4.0 and [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_what_another_process_replaces_is_left_to_it(tmp_path):
    pytest.importorskip("fcntl")
    old = write(tmp_path, 1, 1.0)
    old = old.rename(f"{old}{checkpoint.OLD}")
    lock = "f = open(sys.argv[1], 'a+b'); fcntl.lockf(f, fcntl.LOCK_EX)"
    hold = f"import fcntl, sys; {lock}; print(flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", hold, str(tmp_path / RUNNING)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        recover_run(tmp_path)
        assert old.is_dir()
        other.stdin.close()
    recover_run(tmp_path)
    assert not old.is_dir() and len(checkpoint.list_checkpoints(tmp_path)) == 1


def test_a_replacement_that_is_not_whole_is_not_recovered(tmp_path):
    new, old = write(tmp_path, 1, 1.0), write(tmp_path, 2, 2.0)
    new, old = new.rename(f"{old}{checkpoint.TEMPORARY}"), old.rename(f"{old}{checkpoint.OLD}")
    (new / checkpoint.WEIGHTS).write_bytes(b"cut off")
    recover_run(tmp_path)
    [folder] = checkpoint.list_checkpoints(tmp_path)
    assert checkpoint.read_tensors(folder / checkpoint.WEIGHTS)["w"].tolist() == [2.0, 2.0]
    folder.rename(old)
    (old / checkpoint.WEIGHTS).unlink()  # a deletion that was killed
    recover_run(tmp_path)
    assert checkpoint.list_checkpoints(tmp_path) == []


def test_a_failing_rename_keeps_the_old_folder(tmp_path, monkeypatch):
    write(tmp_path, 1, 1.0)
    replace = os.replace

    def failing(source, target):
        if str(source).endswith(checkpoint.TEMPORARY):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(UserError, match="No space left on device"):
            write(tmp_path, 1, 2.0)
    assert average(checkpoint.list_checkpoints(tmp_path))["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64, None])
def test_damaged_or_missing_tensors_are_named(tmp_path, content):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        checkpoint.read_tensors(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_state_is_named(tmp_path):
    (tmp_path / checkpoint.STATE).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"state\.json: cannot be read"):
        checkpoint.read_state(tmp_path)


def test_average_is_the_mean(tmp_path):
    folders = [write(tmp_path, step, value) for step, value in ((1, 0.25), (2, 1.0), (3, 4.0))]
    assert average(folders[:2])["w"].tolist() == [0.625, 0.625]
    mean = average(folders)
    assert mean["w"].tolist() == [1.75, 1.75] and mean["w"].dtype == torch.float32
    assert mean["seen"].tolist() == [True]  # the last one's
    assert average(folders[:1])["w"].tolist() == [0.25, 0.25]


def test_checkpoints_of_other_tensors_are_not_averaged(tmp_path):
    first, last = write(tmp_path, 1), write(tmp_path, 2)
    whole = {"w": torch.ones(2), "seen": torch.tensor([True])}
    cases = {
        "it lacks tensor w": {"seen": torch.tensor([True])},
        "it has the additional tensor ctc.bias": {**whole, "ctc.bias": torch.ones(2)},
        "its tensor w has shape (3,), not (2,)": {**whole, "w": torch.ones(3)},
    }
    for said, weights in cases.items():
        save_file(weights, first / checkpoint.WEIGHTS)
        checkpoint.write_checksums(first)
        with pytest.raises(UserError) as caught:
            average([first, last])
        assert str(caught.value) == f"{first}: cannot be averaged with {last.name}: {said}"
    # Layers of the pretrained encoder that nothing reads were saved before.
    save_file({**whole, "encoder.backbone.encoder.layers.3.bias": torch.ones(2)}, first / checkpoint.WEIGHTS)
    checkpoint.write_checksums(first)
    assert average([first, last])["w"].tolist() == [0.5, 0.5]


def train_step(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 4, generator=generator)
    optimizer.zero_grad()
    model(x).pow(2).sum().backward()
    optimizer.step()


def build():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    groups = [{"params": model[0].parameters(), "weight_decay": 0.1}, {"params": model[2].parameters()}]
    return model, torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98))


def test_optimizer_goes_on_bit_by_bit(tmp_path):
    model, optimizer = build()
    for seed in range(5):
        train_step(model, optimizer, seed)
    save_file(checkpoint.optimizer_tensors(optimizer), tmp_path / "o.safetensors")
    resumed, fresh = build()
    resumed.load_state_dict(model.state_dict())
    checkpoint.load_optimizer(fresh, checkpoint.read_tensors(tmp_path / "o.safetensors"))
    for seed in range(5, 8):
        train_step(model, optimizer, seed)
        train_step(resumed, fresh, seed)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters()))
    assert [group["weight_decay"] for group in fresh.param_groups] == [0.1, 0.01]
    # Without the state it would not have been so.
    forgetful, empty = build()
    forgetful.load_state_dict(model.state_dict())
    train_step(model, optimizer, 9)
    train_step(forgetful, empty, 9)
    assert not torch.equal(model[0].weight, forgetful[0].weight)


PERIOD = 3


def history(steps):
    generator = torch.Generator().manual_seed(1)
    return [{"w": torch.randn(5, generator=generator), "n": torch.tensor([i])} for i in range(1, steps + 1)]


def write_running(exp_dir, step, weights, running):
    state = {"step": step, "epoch": 0, "batch": step, "world_size": 1, "average_period": PERIOD}
    folder = checkpoint.checkpoint_dir(exp_dir, step)
    tensors = {checkpoint.WEIGHTS: weights, checkpoint.AVERAGE: running.tensors}
    checkpoint.write_folder(folder, tensors, {checkpoint.STATE: json.dumps(state).encode()})
    return folder


def write_two(exp_dir):
    """The checkpoints of steps 3 and 9 of a run."""
    running, folders = RunningAverage(PERIOD), []
    for step, entry in enumerate(history(9), start=1):
        running.update(entry, step)
        if step in (3, 9):
            folders.append(write_running(exp_dir, step, entry, running))
    return folders


def test_it_is_the_mean_of_every_period(tmp_path):
    weights, running, folders = history(20), RunningAverage(PERIOD), {}
    for step, entry in enumerate(weights, start=1):
        running.update(entry, step)
        if step in (7, 8, 19):
            folders[step] = write_running(tmp_path, step, entry, running)
    every = torch.stack([weights[i - 1]["w"] for i in range(3, 19, 3)]).double()
    assert torch.allclose(running.tensors["w"], every.mean(0)) and "n" not in running.tensors
    found = average_between(folders[7], folders[19])  # steps 9, 12, 15, 18
    assert torch.allclose(found["w"], every[2:].mean(0).float(), atol=1e-6) and found["w"].dtype == torch.float32
    assert found["n"].tolist() == [19]
    with pytest.raises(UserError, match="no period"):
        average_between(folders[7], folders[8])


@pytest.mark.parametrize("period", [0, PERIOD])
def test_final_model_does_not_contain_what_the_run_started_from(tmp_path, period):
    exp_dir = tmp_path / "exp"
    t = {"exp_dir": str(exp_dir), "average_last": 5, "average_period": period}
    saver = Saver(from_dict({"training": t}), None, None, None, train_tokenizer(["ab ba"], build_tasks(["asr"]), 8), 1)
    saver.prepare([])

    def written():
        saver.write_model()
        return checkpoint.read_tensors(exp_dir / "model" / checkpoint.WEIGHTS)["w"]

    start = write(exp_dir, 0, 100.0)
    assert written().tolist() == [100.0, 100.0]  # there is no other
    first, last = write_two(exp_dir)
    assert start.is_dir()
    assert torch.equal(written(), (average_between(first, last) if period else average([first, last]))["w"])


@pytest.mark.parametrize("file", [checkpoint.WEIGHTS, checkpoint.AVERAGE])
def test_damaged_checkpoints_are_not_averaged(tmp_path, file):
    """One changed bit of a number gives no error when the file is read."""
    folders = write_two(tmp_path)
    averages = {checkpoint.WEIGHTS: lambda: average(folders), checkpoint.AVERAGE: lambda: average_between(*folders)}
    averages[file]()
    path = folders[0] / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"{file}: damaged: it differs from its sum"):
        averages[file]()


@pytest.mark.slow
def test_run_with_a_running_average_resumes_exactly_and_its_model_is_that_average(train_script, tiny_corpus, tmp_path):
    def train(name, **changes):
        small = {"data__valid": [], "training__save_every": 2, "data__max_cuts": 4, "training__average_period": 1}
        options = toy_options(tiny_corpus, tmp_path / name, **{**small, "training__max_steps": 6, **changes})
        return call(train_script.main, *options)

    assert train("whole").code == 0
    assert train("parts", training__max_steps=4).code == 0 and train("parts").code == 0
    for name in ("model/model.safetensors", "checkpoints/step-00000006/average.safetensors"):
        ours, theirs = (load_file(tmp_path / run / name) for run in ("parts", "whole"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    first, last = (checkpoint.checkpoint_dir(tmp_path / "whole", step) for step in (2, 6))
    expected = average_between(first, last)
    found = load_file(tmp_path / "whole" / "model" / checkpoint.WEIGHTS)
    assert all(torch.equal(found[key], expected[key]) for key in found)
    arguments = ["average", "--running", "--last", "3", str(tmp_path / "whole"), str(tmp_path / "model")]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    written = load_file(tmp_path / "model" / checkpoint.WEIGHTS)
    assert all(torch.equal(written[key], expected[key]) for key in written)
    assert_one_line(train("parts", training__average_period=2, training__max_steps=7), "average_period=1, not 2")

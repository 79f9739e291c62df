"""Checkpoints: whole or not there at all, few enough, readable, averaged, and exact for the optimiser."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models import checkpoint
from tokenverse_pp.training.checkpoints import average, retain


def write(exp_dir, step, value=0.0):
    folder = checkpoint.checkpoint_dir(exp_dir, step)
    state = {"step": step, "epoch": 0, "batch": step, "world_size": 1}
    weights = {"w": torch.full((2,), value), "seen": torch.tensor([value > 0.5])}
    checkpoint.write_folder(folder, {checkpoint.WEIGHTS: weights}, {checkpoint.STATE: json.dumps(state).encode()})
    return folder


def test_newest_comes_last(tmp_path):
    for step in (200, 5, 1000, 90000):
        write(tmp_path, step)
    assert [checkpoint.read_state(p)["step"] for p in checkpoint.list_checkpoints(tmp_path)] == [5, 200, 1000, 90000]
    assert checkpoint.list_checkpoints(tmp_path / "nothing") == []


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


def test_folder_that_is_there_is_replaced(tmp_path):
    write(tmp_path, 1, 1.0)
    folder = write(tmp_path, 1, 2.0)
    assert checkpoint.read_tensors(folder / checkpoint.WEIGHTS)["w"].tolist() == [2.0, 2.0]


def test_only_the_last_are_kept(tmp_path):
    for step in range(1, 8):
        write(tmp_path, step)
        retain(tmp_path, 3, 0, "loss")
    assert [p.name[-1] for p in checkpoint.list_checkpoints(tmp_path)] == ["5", "6", "7"]


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64, None])
def test_damaged_or_missing_tensors_are_named(tmp_path, content):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        checkpoint.read_tensors(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_tensors_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.randn(100)}, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged"):
        checkpoint.read_tensors(path)


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
        "it has, unlike that, tensor ctc.bias": {**whole, "ctc.bias": torch.ones(2)},
        "its tensor w has shape (3,), not (2,)": {**whole, "w": torch.ones(3)},
    }
    for said, weights in cases.items():
        save_file(weights, first / checkpoint.WEIGHTS)
        with pytest.raises(UserError) as caught:
            average([first, last])
        assert str(caught.value) == f"{first}: cannot be averaged with {last.name}: {said}"
    # Layers of the pretrained encoder that nothing reads were saved before.
    save_file({**whole, "encoder.backbone.encoder.layers.3.bias": torch.ones(2)}, first / checkpoint.WEIGHTS)
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

"""The running average of weights: the mean of all the periods, of those between two checkpoints, and over a resume."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from toy_runs import assert_one_line, call, toy_options

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli.main import cli
from tokenverse_pp.models import checkpoint
from tokenverse_pp.training.checkpoints import RunningAverage, average_between

PERIOD = 3


def history(steps):
    generator = torch.Generator().manual_seed(1)
    return [{"w": torch.randn(5, generator=generator), "n": torch.tensor([i])} for i in range(1, steps + 1)]


def write(exp_dir, step, weights, running):
    state = {"step": step, "epoch": 0, "batch": step, "world_size": 1, "average_period": PERIOD}
    folder = checkpoint.checkpoint_dir(exp_dir, step)
    tensors = {checkpoint.WEIGHTS: weights, checkpoint.AVERAGE: running.tensors}
    checkpoint.write_folder(folder, tensors, {checkpoint.STATE: json.dumps(state).encode()})
    return folder


def test_it_is_the_mean_of_every_period(tmp_path):
    weights, running, folders = history(20), RunningAverage(PERIOD), {}
    for step, entry in enumerate(weights, start=1):
        running.update(entry, step)
        if step in (7, 8, 19):
            folders[step] = write(tmp_path, step, entry, running)
    every = torch.stack([weights[i - 1]["w"] for i in range(3, 19, 3)]).double()
    assert torch.allclose(running.tensors["w"], every.mean(0)) and "n" not in running.tensors
    found = average_between(folders[7], folders[19])  # steps 9, 12, 15, 18
    assert torch.allclose(found["w"], every[2:].mean(0).float(), atol=1e-6) and found["w"].dtype == torch.float32
    assert found["n"].tolist() == [19]
    with pytest.raises(UserError, match="no period"):
        average_between(folders[7], folders[8])


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

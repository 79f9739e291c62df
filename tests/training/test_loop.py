"""The loop around the steps, in this process: what it gives up on, and what it averages."""

import pytest
import torch
from toy_runs import toy_parts

from tokenverse_pp.errors import UserError
from tokenverse_pp.training import checkpoint
from tokenverse_pp.training.data import TrainSampler
from tokenverse_pp.training.distributed import World, autocast
from tokenverse_pp.training.loop import MAX_SKIPPED, Trainer
from tokenverse_pp.training.rounds import open_rounds
from tokenverse_pp.training.setup import load_model


def trainer(corpus, exp_dir, wanted=bool, **changes):
    parts = toy_parts(corpus, **changes)
    parts.config.training.exp_dir = str(exp_dir)
    sampler = TrainSampler(open_rounds(parts.config.data, 1), parts.config.data, 1, World(), wanted)
    return Trainer(parts.config, parts.model, parts.dataset, sampler, None, World())


def run(started):
    started.start()
    return started.run()


def test_epochs_end_the_run_and_the_last_step_is_saved(tiny_corpus, tmp_path):
    folder = run(trainer(tiny_corpus, tmp_path, training__epochs=1, training__max_steps=100, data__max_cuts=6))
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000003"]
    assert checkpoint.read_state(checkpoint.list_checkpoints(tmp_path)[0])["batch"] == 3
    assert load_model(folder).model.training is False


def test_final_model_is_the_mean_of_the_last_checkpoints(tiny_corpus, tmp_path):
    changes = {"training__max_steps": 3, "training__save_every": 1, "training__average_last": 2}
    folder = run(trainer(tiny_corpus, tmp_path, **changes))
    last = [checkpoint.read_tensors(p / checkpoint.WEIGHTS) for p in checkpoint.list_checkpoints(tmp_path)[-2:]]
    found = checkpoint.read_tensors(folder / checkpoint.WEIGHTS)
    for key in ("joiner.output.weight", "feature_vectors.table"):
        assert torch.allclose(found[key], (last[0][key] + last[1][key]) / 2)


def test_run_without_cuts_is_refused(tiny_corpus, tmp_path):
    with pytest.raises(UserError, match="no cut is left"):
        run(trainer(tiny_corpus, tmp_path, wanted=lambda cut: False))


def test_too_many_steps_without_a_gradient_end_the_run(tiny_corpus, tmp_path, capsys):
    started = trainer(tiny_corpus, tmp_path, data__max_cuts=1, training__max_steps=100)
    with torch.no_grad():
        started.model.joiner.output.bias[3] = float("nan")
    with pytest.raises(UserError, match=f"{MAX_SKIPPED} steps in a row"):
        run(started)
    lines = capsys.readouterr().err.splitlines()
    assert sum("skipped: loss or gradient not finite" in line and "toy-train-" in line for line in lines) == MAX_SKIPPED


def test_resumed_run_with_another_number_of_ranks_says_so(tiny_corpus, tmp_path, capsys):
    run(trainer(tiny_corpus, tmp_path, training__max_steps=1))
    state = checkpoint.list_checkpoints(tmp_path)[0] / checkpoint.STATE
    state.write_text(state.read_text().replace('"world_size": 1', '"world_size": 3'))
    again = trainer(tiny_corpus, tmp_path, training__max_steps=1)
    again.start()
    assert again.step == 1 and "it had 3" in capsys.readouterr().err


def test_exp_dir_that_cannot_be_made_is_refused(tiny_corpus, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"--training\.exp_dir"):
        run(trainer(tiny_corpus, tmp_path / "file"))


def test_world_of_one():
    world = World()
    flags = torch.tensor([True, False])
    world.any_(flags)
    assert world.sum([1, 2.5]) == [1.0, 2.5] and flags.tolist() == [True, False]
    assert world.from_first(lambda: 3) == 3 and world.is_first
    model = torch.nn.Linear(1, 1)
    assert world.wrap(model) is model


def test_mixed_precision_that_torch_does_not_have_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "1.13.1")
    autocast(torch.device("cpu"), "fp32")
    with pytest.raises(UserError, match="bf16 on a CPU needs torch 2"):
        autocast(torch.device("cpu"), "bf16")

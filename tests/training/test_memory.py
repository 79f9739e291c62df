"""How many encoder layers are recomputed: by number, and by the memory that is measured."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_runs import call_ok, toy_options, toy_parts

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.samplers import TrainSampler, open_rounds
from tokenverse_pp.training import memory
from tokenverse_pp.training.log import read_log
from tokenverse_pp.training.memory import fewest, memory_limit, memory_of_updates, pick_recomputed
from tokenverse_pp.training.optim import make_optimizer


@given(st.integers(0, 40), st.integers(0, 45))
def test_fewest_is_the_least_that_fits(most, least):
    tried = []

    def fits(count):
        tried.append(count)
        return count >= least

    assert fewest(fits, most) == min(least, most)
    assert len(tried) <= 2 + most.bit_length() and len(set(tried)) == len(tried)


def test_limit_is_a_share_of_the_gpu_or_what_is_asked_for(monkeypatch):
    config, device = Config(), torch.device("cpu")
    config.training.memory_gb = 2
    assert memory_limit(device, config) is None
    monkeypatch.setattr(memory, "device_memory", lambda device: 1000.0)
    assert memory_limit(device, config) == 2048
    config.training.memory_gb = None
    assert memory_limit(device, config) == pytest.approx(900)


def build(corpus, **changes):
    parts = toy_parts(corpus, data__max_cuts=3, model__encoder__checkpoint_layers="auto", **changes)
    sampler = TrainSampler(open_rounds(parts.config.data, 1), parts.config.data, 1, DistributedContext())
    optimizer = make_optimizer(parts.model.train(), parts.config.optim, ())
    return parts, (parts.model, optimizer, sampler, parts.dataset, parts.config, DistributedContext())


def test_memory_of_updates_is_that_of_moments_and_gradients(tiny_corpus):
    parts, (model, optimizer, *_) = build(tiny_corpus)
    size = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad) / 2**20
    assert memory_of_updates(model, optimizer, parts.config, DistributedContext()) == pytest.approx(2 * size)
    parts.config.training.accumulate = 2
    assert memory_of_updates(model, optimizer, parts.config, DistributedContext(0, 2)) == pytest.approx(4 * size)
    model.simple_am.weight.grad = torch.zeros_like(model.simple_am.weight)
    optimizer.step()
    assert memory_of_updates(model, optimizer, parts.config, DistributedContext()) == pytest.approx(size)


@pytest.mark.parametrize(
    "limit, count, said", [(100, 0, "of 100 MB"), (70, 1, "of 70 MB"), (45, 2, "of 45 MB"), (5, 2, "more than 5 MB")]
)
def test_as_few_layers_are_recomputed_as_fit(tiny_corpus, monkeypatch, limit, count, said):
    """Memory that each layer's activations take away 30 MB of; without recomputing the device is full from 70 MB on."""
    parts, arguments = build(tiny_corpus, model__vectors__strategy="combination")
    stack, layers = parts.model.encoder.layer_stacks()[0]
    before = {key: value.clone() for key, value in parts.model.state_dict().items()}
    run = memory.run_largest

    def run_or_fail(*arguments):
        run(*arguments)
        if limit <= 70 and stack.recomputed == 0:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(memory, "run_largest", run_or_fail)
    monkeypatch.setattr(memory, "memory_limit", lambda *_: limit)
    monkeypatch.setattr(memory, "memory_of_updates", lambda *_: 5.0)
    monkeypatch.setattr(memory, "peak_memory", lambda _: 75.0 - 30.0 * stack.recomputed)
    line = pick_recomputed(*arguments)
    assert layers == 2 and stack.recomputed == count
    assert line.startswith(f"recomputing {count} of 2 encoder layers: peak {80 - 30 * count} MB") and line.endswith(
        said
    )
    assert all(torch.equal(value, before[key]) for key, value in parts.model.state_dict().items())
    assert all(p.grad is None for p in parts.model.parameters())


def test_batch_that_fits_in_no_way_is_named(tiny_corpus, monkeypatch):
    _, arguments = build(tiny_corpus)

    def explode(*arguments):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(memory, "run_largest", explode)
    monkeypatch.setattr(memory, "memory_limit", lambda *_: 100)
    with pytest.raises(UserError, match=r"out of memory on a batch of \d cuts"):
        pick_recomputed(*arguments)


def test_without_a_gpu_auto_leaves_what_is_asked_for(tiny_corpus, tmp_path, train_script):
    parts, arguments = build(tiny_corpus, model__encoder__gradient_checkpointing="true")
    assert pick_recomputed(*arguments) == "" and parts.model.encoder.layer_stacks()[0][0].recomputed == 2
    changes = {"model__encoder__checkpoint_layers": "auto", "training__max_steps": 1, "data__max_batch_tokens": 50}
    call_ok(train_script.main, *toy_options(tiny_corpus, tmp_path / "exp", data__valid=[], **changes))
    assert len([r for r in read_log(tmp_path / "exp" / "log.jsonl") if r["kind"] == "train"]) == 1

"""The whole model and a training run: real k2 beside the native backend. Runs in .ci/k2_env.sh's environment."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import RNNT_TYPES
from lhotse import CutSet
from toy_runs import call, read_cuts, toy_options, toy_parts

from tokenverse_pp.losses import k2_available, native
from tokenverse_pp.losses.k2 import load_k2
from tokenverse_pp.training.log import read_log
from tokenverse_pp.training.steps import forward

pytestmark = [
    pytest.mark.k2,
    pytest.mark.skipif(not k2_available(), reason="k2 is not installed; see .ci/k2_env.sh"),
]


@pytest.fixture(scope="module")
def toy(tiny_corpus):
    """A model with task vectors, and a ragged batch in which one reference is empty."""
    parts = toy_parts(tiny_corpus, model__vectors__placement="both", model__loss__ctc_scale=0.5)
    for table in (parts.model.feature_vectors.table, parts.model.encoder_vectors.table):
        torch.nn.init.normal_(table, std=0.1)
    batch = parts.dataset[CutSet.from_cuts(read_cuts(tiny_corpus)[:4])]
    batch["token_lens"] = batch["token_lens"].clone()
    batch["token_lens"][1] = 0
    with torch.no_grad():  # the front end computes in float32 only
        batch["inputs"], batch["lens"] = parts.model.encoder.extract(batch["inputs"], batch["lens"])
    assert len(set(batch["lens"].tolist())) > 1 and len(set(batch["token_lens"].tolist())) > 2
    return parts.model, batch


def losses_and_grads(toy, monkeypatch, dtype, **loss_options):
    """Simple and pruned losses of `Transducer.forward`, and the gradients of all parameters of a weighted sum."""
    model, batch = toy
    model.to(dtype)
    monkeypatch.setattr(model.config, "loss", dataclasses.replace(model.config.loss, **loss_options))
    losses = forward(model, batch, stored=True)
    weights = torch.arange(1, len(losses.simple) + 1, dtype=dtype)
    model.zero_grad(set_to_none=True)
    (weights * (0.5 * losses.simple + losses.pruned)).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"simple": losses.simple.detach(), "pruned": losses.pruned.detach(), **grads}


def share_ranges(monkeypatch):
    """k2 gets the windows that native chose before: rounding breaks near-ties either way, in k2 as in ours."""
    chosen = []
    choose = native.get_rnnt_prune_ranges
    monkeypatch.setattr(native, "get_rnnt_prune_ranges", lambda *args: chosen.append(choose(*args)) or chosen[0])
    monkeypatch.setattr(load_k2(), "get_rnnt_prune_ranges", lambda *args: chosen[0])


def assert_same(ours, theirs, tolerance):
    """Each tensor within `tolerance` of the largest number in k2's; what should be zero (the attention's key biases)
    within that of a millionth of the largest gradient."""
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("encoder.") for name in theirs) and "joiner.output.weight" in theirs
    least = 1e-6 * max(x.abs().max() for x in theirs.values())
    for name, expected in theirs.items():
        assert torch.isfinite(expected).all(), name
        assert (ours[name] - expected).abs().max() <= tolerance * max(expected.abs().max(), least), name


@pytest.mark.parametrize("scales", [{"lm_scale": 0.25, "am_scale": 0.0}, {"lm_scale": 0.0, "am_scale": 0.1}])
@pytest.mark.parametrize("delay_penalty", [0.0, 0.05])
@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_model_in_float64(toy, monkeypatch, rnnt_type, delay_penalty, scales):
    if rnnt_type != "regular":
        share_ranges(monkeypatch)
    options = {"rnnt_type": rnnt_type, "delay_penalty": delay_penalty, **scales}
    ours = losses_and_grads(toy, monkeypatch, torch.float64, backend="native", **options)
    theirs = losses_and_grads(toy, monkeypatch, torch.float64, backend="k2", **options)
    assert_same(ours, theirs, 1e-8)


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_model_in_float32(toy, monkeypatch, rnnt_type):
    share_ranges(monkeypatch)
    options = {"rnnt_type": rnnt_type, "delay_penalty": 0.05}
    ours = losses_and_grads(toy, monkeypatch, torch.float32, backend="native", **options)
    theirs = losses_and_grads(toy, monkeypatch, torch.float32, backend="k2", **options)
    assert_same(ours, theirs, 1e-4)


def test_training_descends_alike(tiny_corpus, tmp_path, train_script):
    """The same seed: the curves part only as float32 rounding makes them."""
    curves, steps = [], 6
    for backend in ("native", "k2"):
        changes = {"model__loss__backend": backend, "training__max_steps": steps, "training__valid_every": 100}
        done = call(train_script.main, *toy_options(tiny_corpus, tmp_path / backend, **changes))
        assert done.code == 0, done.stderr
        curves.append([r for r in read_log(tmp_path / backend / "log.jsonl") if r["kind"] == "train"])
    ours, theirs = curves
    assert [r["step"] for r in ours] == [r["step"] for r in theirs] == list(range(1, steps + 1))
    for name in ("loss", "simple", "pruned", "grad_norm"):
        assert [r[name] for r in ours] == pytest.approx([r[name] for r in theirs], rel=1e-3), name
    assert ours[-1]["simple"] < 0.7 * ours[0]["simple"]

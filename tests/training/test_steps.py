"""One optimizer step, and the scan of the largest batches before the first one."""

import math

import pytest
import torch
from lhotse import CutSet
from toy_runs import call, read_cuts, toy_options, toy_parts

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.samplers import TrainSampler, open_rounds
from tokenverse_pp.training.log import read_log
from tokenverse_pp.training.optim import TrainedRows, make_optimizer
from tokenverse_pp.training.steps import Stepper, as_record, cut_ids, scan, worst_batches
from tokenverse_pp.training.transfer import Before


def build(corpus, **changes):
    """Parts, a stepper over them, and batches of the first cuts by their indices."""
    parts = toy_parts(corpus, **changes)
    optimizer = make_optimizer(parts.model, parts.config.optim, ())
    stepper = Stepper(parts.model.train(), optimizer, parts.config, DistributedContext())
    cuts = read_cuts(corpus)
    return parts, stepper, lambda *rows: parts.dataset[CutSet.from_cuts([cuts[i] for i in rows])]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("split", [[(0,), (1,), (2,), (3,)], [(3, 1), (0, 2)], [(0, 1, 2), (3,)]])
def test_batches_of_a_step_may_be_cut_as_one_likes(tiny_corpus, split):
    results, models = [], []
    for batches in ([(0, 1, 2, 3)], split):
        parts, stepper, batch = build(tiny_corpus)
        results.append(as_record(stepper([batch(*rows) for rows in batches], 5)))
        models.append(weights(parts.model))
    assert results[1] == pytest.approx(results[0], rel=1e-4)
    assert torch.allclose(models[1], models[0], atol=2e-5)  # Adam divides by the gradient's own size


def test_loss_is_a_mean_over_frames_with_the_scales_of_the_step(tiny_corpus):
    parts, stepper, batch = build(tiny_corpus, model__loss__warm_steps=10, model__loss__simple_scale=0.5)
    with torch.no_grad():
        one = batch(0, 1)
        losses = parts.model(one["inputs"], one["lens"], one["active"], one["tokens"], one["token_lens"])
    found = stepper([one], 5)
    frames = float(losses.frames.sum())
    assert found.frames == frames and found.tokens == float(one["token_lens"].sum())
    assert found.simple == pytest.approx(float(losses.simple.sum()) / frames, rel=1e-5)
    assert found.loss == pytest.approx(0.75 * found.simple + 0.55 * found.pruned, rel=1e-6)
    assert found.seconds == pytest.approx(one["seconds"])


def test_gradient_is_clipped_to_its_norm(tiny_corpus):
    _, stepper, batch = build(tiny_corpus, optim__clip=0.25)
    kept = []
    stepper.optimizer.step = lambda: kept.append(torch.cat([p.grad.flatten() for p in stepper.parameters]).norm())
    result = stepper([batch(0, 1)], 0)
    assert result.grad_norm > 1.0 and [float(norm) for norm in kept] == [pytest.approx(0.25, rel=1e-3)]


def test_a_step_is_the_same_whatever_was_drawn_before(tiny_corpus):
    noisy = {"model__spec_augment__time_share": 0.3, "model__predictor_dropout": 0.3}
    found = []
    for seed in (1, 2):
        parts, stepper, batch = build(tiny_corpus, **noisy)
        torch.manual_seed(seed)
        stepper([batch(0, 1)], 7)
        found.append(weights(parts.model))
    assert torch.equal(found[0], found[1])
    parts, stepper, batch = build(tiny_corpus, **noisy)
    stepper([batch(0, 1)], 8)
    assert not torch.allclose(found[0], weights(parts.model), atol=1e-5)


def test_any_seed_is_taken(tiny_corpus, monkeypatch):
    seeds, set_seed = [], torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or set_seed(seed))
    parts, stepper, batch = build(tiny_corpus, training__seed=2**70 + 3)
    for parts.config.training.seed in (42, -1, 5 * 10**9):
        stepper([batch(0)], 7)
    weights_seed, small, negative, large = seeds
    assert weights_seed == 3 and small == (42 * 1_000_003 + 7) * 4096
    assert large == (5 * 10**9 * 1_000_003 + 7) * 4096 - 2**64
    set_seed((-1 * 1_000_003 + 7) * 4096)
    assert negative == torch.initial_seed()


def test_step_that_is_not_finite_is_passed_over(tiny_corpus):
    parts, stepper, batch = build(tiny_corpus)
    before = weights(parts.model).clone()
    bad = batch(0, 1)
    bad["inputs"][0, 100] = float("nan")
    result = stepper([bad], 0)
    assert result.skipped and torch.equal(weights(parts.model), before)
    assert not stepper([batch(0, 1)], 1).skipped and not torch.equal(weights(parts.model), before)
    assert cut_ids([bad, batch(2)]) == [*bad["cut_ids"], *batch(2)["cut_ids"]]
    assert "skipped" not in as_record(result)


def test_loss_of_nan_with_finite_gradients_is_passed_over(tiny_corpus):
    parts, stepper, batch = build(tiny_corpus)
    with torch.no_grad():
        parts.model.joiner.output.bias[3] = float("nan")
    before = parts.model.simple_am.weight.detach().clone()
    result = stepper([batch(0, 1)], 0)
    assert math.isfinite(result.grad_norm) and math.isnan(result.pruned)
    assert result.skipped and torch.equal(parts.model.simple_am.weight, before)


def test_overflow_in_frozen_rows_costs_no_update(tiny_corpus):
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("no GradScaler for CPUs before torch 2.3")
    parts, stepper, batch = build(tiny_corpus)
    model = parts.model
    before = Before(parts.tokenizer.vocab_size - 1, list(parts.tasks.names), ["feature_vectors"], False)
    rows = TrainedRows(model, before, parts.tasks.names, "new")
    optimizer = make_optimizer(model, parts.config.optim, (), rows.partly)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    stepper = Stepper(model, optimizer, parts.config, DistributedContext(), scaler, rows)
    weight = model.joiner.output.weight
    frozen = torch.ones(len(weight), 1).index_fill_(0, torch.tensor([len(weight) - 1]), 0.0).bool()
    weight.register_hook(lambda gradient: gradient.masked_fill(frozen, float("inf")))
    old = weight.detach().clone()
    result = stepper([batch(0, 1)], 0)
    assert not result.skipped and scaler.get_scale() == 1.0
    assert not torch.equal(weight[-1], old[-1]) and torch.equal(weight[:-1], old[:-1])


@pytest.mark.skipif(torch.__version__.startswith("1."), reason="torch 2.0 brought LayerNorm in mixed types to CPUs")
def test_bfloat16_gives_about_the_same(tiny_corpus):
    exact, rough = (
        stepper([batch(0, 1, 2)], 5)
        for _, stepper, batch in (build(tiny_corpus), build(tiny_corpus, training__precision="bf16"))
    )
    assert rough.pruned == pytest.approx(exact.pruned, rel=0.02) and rough.pruned != exact.pruned


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()])
def test_batch_that_does_not_fit_is_named(tiny_corpus, monkeypatch, error):
    _, stepper, batch = build(tiny_corpus)

    def explode(*arguments, **options):
        raise error

    monkeypatch.setattr(stepper.model, "forward", explode)
    bad = batch(0, 1)
    with pytest.raises(UserError, match=r"out of memory on a batch of 2 cuts.*--data\.max_duration") as caught:
        stepper([bad], 0)
    assert all(cut_id in str(caught.value) for cut_id in bad["cut_ids"])
    monkeypatch.setattr(stepper.model, "forward", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stepper([bad], 0)


def build_sampler(corpus, **changes):
    parts = toy_parts(corpus, data__max_cuts=3, **changes)
    return parts, TrainSampler(open_rounds(parts.config.data, 1), parts.config.data, 1, DistributedContext())


def test_worst_batches_are_those_of_the_longest_cut_and_target(tiny_corpus):
    parts, sampler = build_sampler(tiny_corpus)
    worst = worst_batches(sampler, parts.dataset)
    cuts = read_cuts(tiny_corpus)
    longest = max(cuts, key=lambda cut: cut.duration)
    assert longest.id in [cut.id for cut in worst["longest cut"]]
    assert len(worst["most cuts"]) == 3
    tokens = parts.dataset[worst["most tokens"]]
    assert tokens["tokens"].numel() >= parts.dataset[worst["longest cut"]]["tokens"].numel()


def test_scan_leaves_no_trace_and_reports_memory(tiny_corpus):
    parts, sampler = build_sampler(tiny_corpus, model__vectors__strategy="combination")
    before = {key: value.clone() for key, value in parts.model.state_dict().items()}
    lines = scan(parts.model.train(), sampler, parts.dataset, parts.config, DistributedContext())
    assert lines and all(line.startswith("scan, ") and "peak" in line and " MB" in line for line in lines)
    assert all(torch.equal(value, before[key]) for key, value in parts.model.state_dict().items())
    assert all(p.grad is None for p in parts.model.parameters())


def test_batch_that_does_not_fit_is_named_before_the_first_step(tiny_corpus, monkeypatch):
    parts, sampler = build_sampler(tiny_corpus)
    most = max(read_cuts(tiny_corpus), key=lambda cut: cut.duration)
    whole = parts.model.forward

    def small_machine(inputs, *arguments, **options):
        if inputs.shape[1] >= most.num_samples:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return whole(inputs, *arguments, **options)

    monkeypatch.setattr(parts.model, "forward", small_machine)
    with pytest.raises(UserError, match="out of memory on a batch") as caught:
        scan(parts.model, sampler, parts.dataset, parts.config, DistributedContext())
    assert most.id in str(caught.value)


@pytest.mark.slow
def test_run_is_the_same_with_a_scan(train_script, tiny_corpus, tmp_path):
    logs = []
    for wanted in ("true", "false"):
        changes = {"data__valid": [], "training__scan": wanted, "training__max_steps": 2}
        done = call(train_script.main, *toy_options(tiny_corpus, tmp_path / wanted, **changes))
        assert done.code == 0 and ("scan, most audio" in done.stderr) == (wanted == "true")
        logs.append([r["loss"] for r in read_log(tmp_path / wanted / "log.jsonl") if r["kind"] == "train"])
    assert logs[0] == logs[1] and len(logs[0]) == 2

"""Parameter groups, schedules, frozen layers and adapters."""

import math

import pytest
import torch
from toy_runs import SPLIT, call_ok, save_frozen_encoder, toy_options, toy_parts

from tokenverse_pp.base.config import LossConfig, OptimConfig
from tokenverse_pp.base.config_files import parse_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.losses.devices import grad_scaler
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import load_model, pretrained_prefixes
from tokenverse_pp.training.checkpoints import Saver
from tokenverse_pp.training.optim import (
    FreezeSchedule,
    loss_scales,
    lr_factor,
    make_optimizer,
    parameter_groups,
    set_lr,
)
from tokenverse_pp.training.steps import Progress

CONFIG = OptimConfig(lr=0.1, encoder_lr=0.01, vector_lr=0.3, weight_decay=0.5, warmup_steps=10)


@pytest.fixture(scope="module")
def model(tiny_corpus):
    return toy_parts(tiny_corpus, model__vectors__placement="both", model__encoder__freeze_feature_encoder="true").model


def test_groups_hold_every_trained_parameter_once(model):
    groups = parameter_groups(model, CONFIG, ("encoder.backbone.",))
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert any(not p.requires_grad for p in model.parameters())


def test_rate_and_decay_of_each_parameter(model):
    settings = {
        id(p): (group["base_lr"], group["weight_decay"])
        for group in parameter_groups(model, CONFIG, ("encoder.backbone.",))
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            lr, decay = settings[id(parameter)]
            others = 0.01 if name.startswith("encoder.backbone.") else 0.1
            assert lr == (0.3 if name.endswith("vectors.table") else others), name
            undecayed = name.endswith(("bias", "vectors.table")) or "norm" in name
            assert decay == (0.0 if undecayed else 0.5), name
    names = dict(model.named_parameters())
    assert settings[id(names["feature_vectors.table"])] == (0.3, 0.0)
    assert settings[id(names["joiner.output.weight"])] == (0.1, 0.5)


def test_random_encoder_has_the_rate_of_the_rest(model):
    assert {group["base_lr"] for group in parameter_groups(model, CONFIG, ())} == {0.1, 0.3}


def test_pretrained_encoder_is_known_by_its_configuration(tiny_corpus):
    config = toy_parts(tiny_corpus).config
    assert pretrained_prefixes(config) == ()
    config.model.encoder.random_init = False
    assert pretrained_prefixes(config) == ("encoder.backbone.",)


@pytest.mark.parametrize("decay", ["constant", "inverse_sqrt", "cosine"])
def test_schedules_rise_and_fall(decay):
    config = OptimConfig(warmup_steps=10, decay=decay)
    rates = [lr_factor(step, config, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert max(rates) == pytest.approx(1.0)
    after = rates[10:]
    assert all(a >= b for a, b in zip(after, after[1:])) and min(rates) >= 0
    expected = {"constant": 1.0, "inverse_sqrt": math.sqrt(10 / 56), "cosine": 0.5}[decay]
    assert rates[55] == pytest.approx(expected)
    if decay == "cosine":
        assert rates[100] == pytest.approx(0.0)


def test_no_warm_up_is_possible():
    assert lr_factor(0, OptimConfig(warmup_steps=0, decay="constant"), 10) == 1.0


def test_every_group_follows_the_schedule(model):
    optimizer = make_optimizer(model, CONFIG, ("encoder.backbone.",))
    set_lr(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.05, 0.005, 0.15}
    assert isinstance(optimizer, torch.optim.AdamW)


def test_loss_scales_warm_up_as_in_icefall():
    config = LossConfig(simple_scale=0.5, warm_steps=2000)
    for step in (0, 1, 500, 1999, 2000, 9999):
        # icefall egs/librispeech/ASR/zipformer/train.py: compute_loss
        simple = 0.5 if step >= 2000 else 1.0 - (step / 2000) * (1.0 - 0.5)
        pruned = 1.0 if step >= 2000 else 0.1 + 0.9 * (step / 2000)
        assert loss_scales(step, config) == pytest.approx((simple, pruned))
    assert loss_scales(0, LossConfig(simple_scale=0.5, warm_steps=0)) == (0.5, 1.0)


FROM_PRETRAINED = {"model__encoder__freeze_feature_encoder": "true"}


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad and name.startswith("encoder.")}


def test_stages_unfreeze_from_the_top_and_never_what_is_frozen_for_good(tiny_corpus):
    model = toy_parts(tiny_corpus, **FROM_PRETRAINED).model
    whole = trained(model)
    highest = len(model.encoder.backbone.layers) - 1
    schedule = FreezeSchedule(model, [[0, 0], [3, 1], [5, -1]])
    assert [schedule.apply(step) for step in range(7)] == [True, False, False, True, False, True, False]
    assert trained(model) == whole and not any("convolutions" in name for name in whole)
    assert schedule.apply(0) and trained(model) == set()
    assert schedule.apply(4)
    assert all(f".layers.{highest}." in name or "encoder.layer_norm" in name for name in trained(model))
    assert any(f".layers.{highest}." in name for name in trained(model))
    assert model.joiner.output.weight.requires_grad


def test_without_stages_nothing_changes(tiny_corpus):
    model = toy_parts(tiny_corpus).model
    before = trained(model)
    assert not FreezeSchedule(model, []).apply(0) and trained(model) == before


def test_impossible_schedules_are_refused(tiny_corpus, tmp_path):
    model = toy_parts(tiny_corpus).model
    with pytest.raises(UserError, match="not 99"):
        FreezeSchedule(model, [[0, 99]])
    frozen = toy_parts(tiny_corpus, **save_frozen_encoder(tiny_corpus, tmp_path / "encoder")).model
    with pytest.raises(UserError, match="kind finetune"):
        FreezeSchedule(frozen, [[0, 0]])
    for bad in ("[[1, 0]]", "[[0, 0], [0, 1]]", "[[0]]", "[[0, -2]]"):
        with pytest.raises(UserError, match=r"--training\.freeze"):
            parse_config([f"--training.freeze={bad}"])


@pytest.mark.slow
def test_frozen_weights_stand_still_until_their_stage_and_a_resume_keeps_it(train_script, tiny_corpus, tmp_path):
    changes = {
        "data__valid": [],
        "data__max_cuts": 4,
        "training__save_every": 1,
        "training__keep_last": 9,
        "optim__decay": "constant",
        "training__freeze": "[[0, 0], [2, 1], [4, -1]]",
    }
    for name, ends in (("whole", [6]), ("parts", [3, 6])):
        for steps in ends:
            options = toy_options(tiny_corpus, tmp_path / name, **changes, training__max_steps=steps)
            call_ok(train_script.main, *options)
    weights = [
        checkpoint.read_tensors(checkpoint.checkpoint_dir(tmp_path / "whole", step) / checkpoint.WEIGHTS)
        for step in range(1, 7)
    ]
    lowest, highest = (f"encoder.backbone.encoder.layers.{n}.attention.q_proj.weight" for n in (0, 1))

    def moves(key):
        return [not torch.equal(a[key], b[key]) for a, b in zip(weights, weights[1:])]

    assert moves(lowest) == [False, False, False, True, True]
    assert moves(highest) == [False, True, True, True, True]
    assert all(moves("joiner.output.weight"))
    ours = checkpoint.read_tensors(checkpoint.checkpoint_dir(tmp_path / "parts", 6) / checkpoint.WEIGHTS)
    assert all(torch.equal(ours[key], weights[-1][key]) for key in ours)


def test_learning_rate_falls_from_layer_to_layer(tiny_corpus):
    model = toy_parts(tiny_corpus).model
    config = OptimConfig(lr=1.0, encoder_lr=0.1, layer_decay=0.5)
    rates = {id(p): g["base_lr"] for g in parameter_groups(model, config, ("encoder.backbone.",)) for p in g["params"]}
    backbone = model.encoder.backbone
    count = len(backbone.layers)
    for number, layer in enumerate(backbone.layers):
        assert {rates[id(p)] for p in layer.parameters()} == {0.1 * 0.5 ** (count - 1 - number)}
    assert {rates[id(p)] for p in backbone.projection.parameters()} == {0.1 * 0.5**count}
    assert rates[id(model.joiner.output.weight)] == 1.0
    with pytest.raises(UserError, match=r"--optim\.layer_decay"):
        parse_config(["--optim.layer_decay=1.5"])


# Of the toy encoder's two layers the lower one runs. With the rates below, the groups have another order if both count.
RATES = {"optim__lr": 0.07, "optim__encoder_lr": 0.1, "optim__layer_decay": 0.5}
LOWER = {**SPLIT, **RATES, "model__encoder__random_init": "false"}


@pytest.fixture(scope="module")
def lower(tiny_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lower") / "encoder"
    return {**LOWER, "model__encoder__name": save_frozen_encoder(tiny_corpus, folder)["model__encoder__name"]}


def test_learning_rate_falls_from_the_highest_layer_that_runs(tiny_corpus, lower):
    parts = toy_parts(tiny_corpus, **lower)
    groups = parameter_groups(parts.model, parts.config.optim, pretrained_prefixes(parts.config))
    rates = {id(p): group["base_lr"] for group in groups for p in group["params"]}
    assert {rates[id(p)] for p in parts.model.encoder.backbone.layers[0].parameters()} == {0.1}
    assert len(parts.model.encoder.backbone.layers) == 2


@pytest.mark.parametrize("before", [True, False])
def test_moments_are_those_of_their_parameters_whatever_layers_counted(tiny_corpus, tmp_path, lower, before):
    """Before format 3 of state.json, layers counted that did not run."""
    moments = []
    for step in (3, 0):
        parts = toy_parts(tiny_corpus, **lower)
        parts.config.training.exp_dir = str(tmp_path)
        arguments = (parts.model, parts.config.optim, pretrained_prefixes(parts.config))
        optimizer = make_optimizer(*arguments)
        if step and before:
            optimizer = torch.optim.AdamW(parameter_groups(*arguments, top=2), lr=1.0)
        saver = Saver(
            parts.config, parts.model, optimizer, grad_scaler(torch.device("cpu"), "fp32"), parts.tokenizer, 1
        )
        if step:
            for number, parameter in enumerate(p for p in parts.model.parameters() if p.requires_grad):
                parameter.grad = torch.full_like(parameter, 1.0 + number)
            optimizer.step()
            saver.origin["format"] = 2 if before else saver.origin["format"]
            saver.prepare([])
            saver.save(Progress(step))
        else:
            assert saver.load(checkpoint.checkpoint_dir(tmp_path, 3))[0].step == 3
        trained = {name: p for name, p in parts.model.named_parameters() if p in optimizer.state}
        moments.append({name: optimizer.state[p]["exp_avg"] for name, p in trained.items()})
    assert moments[0].keys() == moments[1].keys() and len(moments[0]) > 20
    assert all(torch.equal(value, moments[1][name]) for name, value in moments[0].items())


def test_run_with_adapters_resumes_and_loads_as_a_plain_encoder(train_script, tiny_corpus, tmp_path):
    pytest.importorskip("peft")
    changes = {"data__valid": [], "data__max_cuts": 4, "model__encoder__lora_rank": 2, "optim__decay": "constant"}
    for steps in (1, 2):
        options = toy_options(tiny_corpus, tmp_path / "exp", **changes, training__max_steps=steps)
        call_ok(train_script.main, *options)
    saved = checkpoint.read_tensors(tmp_path / "exp" / "model" / checkpoint.WEIGHTS)
    adapter = [key for key in saved if "lora_B" in key]
    assert adapter and all(saved[key].abs().sum() > 0 for key in adapter)
    loaded = load_model(tmp_path / "exp")
    assert not any("lora" in key for key in loaded.model.state_dict()) and loaded.config.model.encoder.lora_rank == 0
    name = adapter[0].replace("lora_B.default.weight", "weight")
    base = saved[name.replace(".weight", ".base_layer.weight")]
    product = saved[adapter[0]] @ saved[adapter[0].replace("lora_B", "lora_A")]
    assert torch.allclose(loaded.model.state_dict()[name], base + 16.0 / 2 * product, atol=1e-6)

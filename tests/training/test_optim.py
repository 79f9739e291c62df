"""Parameter groups and schedules."""

import math

import pytest
import torch
from toy_runs import toy_parts

from tokenverse_pp.base.config import LossConfig, OptimConfig
from tokenverse_pp.models.bundle import pretrained_prefixes
from tokenverse_pp.training.optim import loss_scales, lr_factor, make_optimizer, parameter_groups, set_lr

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

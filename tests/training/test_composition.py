"""Padding, bucketing and the composition of batches do not change an utterance's loss."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lhotse import CutSet
from toy_runs import read_cuts, save_frozen_encoder, toy_parts

from tokenverse_pp.base.config import DataConfig
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.samplers import SamplerState, TrainSampler, open_rounds
from tokenverse_pp.training.steps import forward

CTC = {"model__loss__ctc_scale": 0.3}


@pytest.fixture(scope="module", params=["finetune", "frozen"])
def measured(request, tiny_corpus, tmp_path_factory):
    """A model in eval mode with vectors that are not zero, and the losses of each cut alone."""
    changes = {}
    if request.param == "frozen":
        changes = save_frozen_encoder(tiny_corpus, tmp_path_factory.mktemp("frozen") / "encoder")
    parts = toy_parts(tiny_corpus, model__vectors__placement="both", **CTC, **changes)
    with torch.no_grad():
        for name, parameter in parts.model.named_parameters():
            if name.endswith("vectors.table"):
                parameter.normal_(std=0.3)
    alone = {cut.id: losses_of(parts, [cut])[cut.id] for cut in read_cuts(tiny_corpus)}
    return parts, alone


@torch.no_grad()
def losses_of(parts, cuts):
    """{cut id: simple, pruned and CTC loss} of cuts in one batch."""
    batch = parts.dataset[CutSet.from_cuts(cuts)]
    losses = forward(parts.model.eval(), batch, stored=False)
    columns = torch.stack([losses.simple, losses.pruned, losses.ctc], dim=1)
    return dict(zip(batch["cut_ids"], columns.tolist()))


def assert_same(found, alone):
    for cut_id, losses in found.items():
        assert losses == pytest.approx(alone[cut_id], rel=1e-4), cut_id


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 15), min_size=2, max_size=6, unique=True))
def test_any_batch_gives_each_utterance_its_own_loss(measured, tiny_corpus, rows):
    parts, alone = measured
    cuts = read_cuts(tiny_corpus)
    assert_same(losses_of(parts, [cuts[i] for i in rows]), alone)


@pytest.mark.parametrize("limits", [{"num_buckets": 1, "max_cuts": 7}, {"num_buckets": 4, "max_duration": 10.0}])
def test_batches_of_an_epoch_give_each_utterance_its_own_loss(measured, limits):
    parts, alone = measured
    config = DataConfig(train=parts.config.data.train, **limits)
    seen = {}
    for _, cuts in TrainSampler(open_rounds(config, 1), config, 1, DistributedContext()).batches(SamplerState()):
        seen.update(losses_of(parts, list(cuts)))
    assert seen.keys() == alone.keys()
    assert_same(seen, alone)

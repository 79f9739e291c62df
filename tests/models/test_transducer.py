"""The whole model: task vectors at both places, batches, gradients and checkpoints."""

import pytest
import torch
from lhotse import CutSet
from toy_runs import read_cuts, save_frozen_encoder, toy_parts

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.encoders.base import length_mask
from tokenverse_pp.training.steps import forward

PLACES = [(place, strategy) for place in ("features", "encoder", "both") for strategy in ("sum", "combination")]


def build(corpus, placement="none", strategy="sum", **changes):
    return toy_parts(corpus, model__vectors__placement=placement, model__vectors__strategy=strategy, **changes)


@pytest.fixture(scope="module")
def plain(tiny_corpus):
    return build(tiny_corpus)


@pytest.fixture(scope="module")
def batch(plain, tiny_corpus):
    """Five utterances of different lengths."""
    return plain.dataset[CutSet.from_cuts(read_cuts(tiny_corpus)[:5])]


def tables(model):
    return [v.table for v in (model.feature_vectors, model.encoder_vectors) if v is not None]


def encode(model, batch, active=None):
    with torch.no_grad():
        return model.encode(batch["inputs"], batch["lens"], batch["active"] if active is None else active)[0]


@pytest.mark.parametrize("placement, strategy", PLACES)
def test_zero_vectors_are_the_plain_model(tiny_corpus, plain, batch, placement, strategy):
    model = build(tiny_corpus, placement, strategy).model
    assert len(tables(model)) == (2 if placement == "both" else 1)
    assert not any(table.any() for table in tables(model))
    # A model without vectors, with all the other weights the same.
    bare = {k: v for k, v in model.state_dict().items() if "vectors" not in k}
    plain.model.load_state_dict(bare)
    assert torch.equal(encode(model, batch), encode(plain.model, batch))
    with torch.no_grad():
        ours, theirs = (forward(m, batch, stored=False) for m in (model, plain.model))
    assert torch.equal(ours.simple, theirs.simple) and torch.equal(ours.pruned, theirs.pruned)


@pytest.mark.parametrize("placement, strategy", PLACES)
def test_a_flipped_task_changes_the_output_after_training(tiny_corpus, batch, placement, strategy):
    model = build(tiny_corpus, placement, strategy).model
    flipped = batch["active"].clone()
    flipped[:, 3] = 0
    assert torch.equal(encode(model, batch), encode(model, batch, flipped))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for active in (batch["active"], flipped):
        forward(model, {**batch, "active": active}, stored=False).simple.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    change = (encode(model, batch) - encode(model, batch, flipped)).abs()
    assert change.max() > 1e-4


def test_vectors_are_added_where_they_should_be(tiny_corpus, batch):
    model = build(tiny_corpus, "both").model
    for table in tables(model):
        torch.nn.init.normal_(table)
    with torch.no_grad():
        features, lens = model.encoder.extract(batch["inputs"], batch["lens"])
        shift = batch["active"] @ model.feature_vectors.table
        out, _ = model.encoder.contextualise(features + shift[:, None], lens)
        expected = out + (batch["active"] @ model.encoder_vectors.table)[:, None]
    assert torch.allclose(encode(model, batch), expected, atol=1e-6)


@pytest.fixture(scope="module")
def kinds(tiny_corpus, tmp_path_factory):
    """Options for each kind of encoder."""
    frozen = save_frozen_encoder(tiny_corpus, tmp_path_factory.mktemp("kinds") / "encoder")
    split = {
        **frozen,
        "model__encoder__kind": "split",
        "model__encoder__split_layer": 1,
        "model__encoder__layers": [-1],
    }
    return {"finetune": {}, "frozen": frozen, "split": split}


@pytest.mark.parametrize("kind", ["frozen", "split"])
def test_registers_are_frames_of_zeros_before_the_features(tiny_corpus, kinds, batch, kind):
    sizes = {**kinds[kind], "model__encoder__stack": 2}
    model = build(tiny_corpus, "features", **sizes, model__vectors__registers=6).model
    bare = build(tiny_corpus, "features", **sizes).model
    bare.load_state_dict(model.state_dict())
    for table in tables(model) + tables(bare):
        table.data.fill_(0.7)
    with torch.no_grad():
        features, lens = model.encoder.extract(batch["inputs"], batch["lens"])
        shifted = features + model.feature_vectors(batch["active"])[:, None]
        shifted = torch.cat([features.new_zeros(len(lens), 6, features.shape[2]), shifted], 1)
        expected, frames = model.encoder.contextualise(shifted, lens + 6)
        out, out_lens = model.encode(batch["inputs"], batch["lens"], batch["active"])
        assert torch.equal(out_lens, frames - 3) and torch.equal(out, expected[:, 3:])
        without, same = bare.encode(batch["inputs"], batch["lens"], batch["active"])
        assert torch.equal(same, out_lens) and without.shape == out.shape and not torch.equal(without, out)
        for row in range(2):  # padded as alone
            size = batch["lens"][row : row + 1]
            alone, _ = model.encode(batch["inputs"][row : row + 1, : int(size)], size, batch["active"][row : row + 1])
            torch.testing.assert_close(out[row, : out_lens[row]], alone[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["frozen", "split"])
def test_registers_in_chunks_are_seen_from_the_first_to_the_last(tiny_corpus, kinds, batch, kind):
    """Other numbers in the frames of the registers would change every frame; the number of frames stays."""
    sizes = {**kinds[kind], "model__encoder__stack": 2}
    model = build(tiny_corpus, "features", **sizes, model__vectors__registers=6).model
    chunks, contextualise = ChunkOptions(320, 0), model.encoder.contextualise
    arguments = (batch["inputs"], batch["lens"], batch["active"])
    with torch.no_grad():
        plain, lens = model.encode(*arguments, chunks=chunks)
        rubbish = torch.randn(len(lens), 6, model.encoder.feature_dim)
        assert torch.equal(lens, model.encoder.output_lens(model.encoder.feature_lens(batch["lens"])))

        def other(features, *rest):
            return contextualise(torch.cat([rubbish, features[:, 6:]], dim=1), *rest)

        model.encoder.contextualise = other
        changed, _ = model.encode(*arguments, chunks=chunks)
    for row, size in enumerate(lens):
        assert (changed - plain).abs().amax(2)[row, :size].min() > 1e-6


@pytest.mark.parametrize(
    "kind, changes, told",
    [
        ("split", {"registers": 3}, "expected a multiple of --model.encoder.stack=2"),
        ("split", {"registers": 2, "placement": "encoder"}, "needs --model.vectors.placement"),
        ("finetune", {"registers": 2}, "needs --model.vectors.placement"),
    ],
)
def test_registers_that_do_not_fit_are_refused(tiny_corpus, kinds, kind, changes, told):
    changes = {f"model__vectors__{name}": value for name, value in changes.items()}
    placement = changes.pop("model__vectors__placement", "features")
    with pytest.raises(UserError, match=told):
        build(tiny_corpus, placement, **{**kinds[kind], "model__encoder__stack": 2}, **changes)


def gradients_at_the_seam(model, batch, monkeypatch):
    """One training pass -> where the features behind masks and vectors are all zero or the bare vector, (N, T); and
    the norm of the gradient of the vector from each frame (N, T)."""
    seen, contextualise = [], model.encoder.contextualise

    def spy(features, lens, chunks=None, registers=0):
        shift = (features - model.feature_vectors(batch["active"])[:, None]).abs().amax(2)
        seen.append((features, (features.abs().amax(2) == 0) | (shift < 1e-7), lens))
        features.retain_grad()
        return contextualise(features, lens, chunks)

    monkeypatch.setattr(model.encoder, "contextualise", spy)
    torch.manual_seed(3)
    forward(model, batch, stored=False).simple.sum().backward()
    ((features, masked, lens),) = seen
    masked &= length_mask(lens, features.shape[1], features.device)
    return features, masked, features.grad.norm(dim=2)


@pytest.mark.parametrize("kind", ["finetune", "frozen", "split"])
def test_masked_frames_neither_hold_nor_train_the_vector(tiny_corpus, kinds, batch, kind, monkeypatch):
    """Behind the masks, a frame of nothing but a small vector is blown up by a layer norm, and so is its gradient."""
    masks = {f"model__spec_augment__{k}": v for k, v in {"time_share": 0.3, "time_span": 10, "fill": "zero"}.items()}
    ratio, share = {}, {}
    for is_masked in (True, False):
        model = build(tiny_corpus, "features", model__vectors__masked=is_masked, **masks, **kinds[kind]).model.train()
        torch.nn.init.normal_(model.feature_vectors.table, std=1e-4)
        features, masked, norms = gradients_at_the_seam(model, batch, monkeypatch)
        assert masked.any()
        assert (features[masked].abs().amax() == 0) == is_masked
        # The gradient of masked frames is large in both orders; masks keep it from what was added before them.
        ratio[is_masked] = float(norms[masked].mean() / norms[~masked].mean())
        share[is_masked] = float(model.feature_vectors.table.grad.norm())
    assert ratio[False] > 3
    # wav2vec2's layer norm comes behind a convolution, which brings in frames that are not masked.
    assert share[True] < share[False] / (1.5 if kind == "finetune" else 10)


def test_without_masks_the_order_changes_nothing(tiny_corpus, batch):
    losses = []
    for is_masked in ("true", "false"):
        model = build(tiny_corpus, "both", model__vectors__masked=is_masked).model.train()
        for table in tables(model):
            torch.nn.init.constant_(table, 0.1)
        torch.manual_seed(0)
        losses.append(forward(model, batch, stored=False).simple)
    assert torch.equal(*losses)


@pytest.mark.parametrize("placement, strategy", PLACES)
def test_rows_of_inactive_tasks_are_in_the_graph_without_a_gradient(tiny_corpus, batch, placement, strategy):
    model = build(tiny_corpus, placement, strategy).model.train()
    active = batch["active"].clone()
    active[:, 2:4] = 0
    losses = forward(model, {**batch, "active": active}, stored=False)
    (losses.simple.sum() + losses.pruned.sum()).backward()
    for table in tables(model):
        moved = [i for i, row in enumerate(table.grad.abs().sum(dim=1).tolist()) if row != 0.0]
        assert moved == ([0, 1, 4] if strategy == "sum" else [0b1001])
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []  # DDP would wait for them for ever


def test_loss_of_an_utterance_does_not_depend_on_its_batch(tiny_corpus, batch):
    parts = build(tiny_corpus, "both")
    for table in tables(parts.model):
        torch.nn.init.normal_(table, std=0.1)
    cuts = read_cuts(tiny_corpus)[:5]
    active = batch["active"].clone()
    active[1, 2:] = 0  # not all the same tasks

    def losses(rows):
        part = parts.dataset[CutSet.from_cuts([cuts[i] for i in rows])]
        with torch.no_grad():
            found = forward(parts.model, {**part, "active": active[rows]}, stored=False)
        return torch.stack([found.simple, found.pruned, found.frames.float()], dim=1)

    together = losses([0, 1, 2, 3, 4])
    assert together.isfinite().all() and len(set(batch["lens"].tolist())) == 5
    for rows in ([0], [1], [2], [3], [4], [4, 2], [1, 0, 3]):
        assert torch.allclose(losses(rows), together[rows], rtol=1e-4), rows


def test_padding_of_inputs_and_targets_does_not_matter(plain, batch):
    dirty = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    for i in range(5):
        dirty["inputs"][i, batch["lens"][i] :] = 7.0
        dirty["tokens"][i, batch["token_lens"][i] :] = 3
    with torch.no_grad():
        clean, found = forward(plain.model, batch, stored=False), forward(plain.model, dirty, stored=False)
    assert torch.allclose(found.simple, clean.simple, rtol=1e-5)
    assert torch.allclose(found.pruned, clean.pruned, rtol=1e-5)


def test_checkpoint_holds_the_model(tiny_corpus, batch):
    parts = build(tiny_corpus, "both", "combination")
    model, other = parts.model, build(tiny_corpus, "both", "combination", training__seed=7).model
    for table in tables(model):
        torch.nn.init.normal_(table)
    assert not torch.equal(encode(model, batch), encode(other, batch))
    assert other.load_checkpoint_state(model.checkpoint_state()) is None
    assert torch.equal(encode(model, batch), encode(other, batch))


def test_checkpoint_that_does_not_fit_is_named_and_not_loaded(plain):
    state = plain.model.checkpoint_state()
    key = "joiner.output.weight"
    before = plain.model.joiner.output.weight.clone()
    assert key in plain.model.load_checkpoint_state({k: v for k, v in state.items() if k != key})
    assert "extra" in plain.model.load_checkpoint_state({**state, "extra": torch.zeros(1)})
    problem = plain.model.load_checkpoint_state({**state, key: torch.zeros(60, 32)})
    assert key in problem and "(60, 32)" in problem and "(50, 32)" in problem
    assert torch.equal(plain.model.joiner.output.weight, before)


def test_weights_depend_on_the_seed_alone(tiny_corpus):
    torch.manual_seed(123)
    first = build(tiny_corpus).model.state_dict()
    torch.manual_seed(456)
    second, other = build(tiny_corpus).model.state_dict(), build(tiny_corpus, training__seed=1).model.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["joiner.output.weight"], other["joiner.output.weight"])

"""The parts of a transducer: task vectors, SpecAugment, predictor, joiner, CTC."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet
from toy_runs import read_cuts, toy_parts

from tokenverse_pp.base.config import SpecAugmentConfig, VectorsConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.predictor import StatelessPredictor, grouped_by_product
from tokenverse_pp.models.transducer import (
    MAX_COMBINATION_TASKS,
    Joiner,
    SpecAugment,
    TaskVectors,
    recoded,
)
from tokenverse_pp.training.steps import forward


def active_tasks(tasks):
    return st.lists(
        st.lists(st.booleans(), min_size=tasks - 1, max_size=tasks - 1).map(lambda bits: [True, *bits]),
        min_size=1,
        max_size=5,
    )


def random_vectors(strategy, tasks=4, dim=3, **form):
    vectors = TaskVectors(tasks, dim, strategy, **form)
    torch.nn.init.normal_(vectors.table)
    return vectors


@given(active_tasks(4))
def test_sum_adds_the_rows_of_the_active_tasks(active):
    vectors = random_vectors("sum")
    expected = [sum(vectors.table[i] for i in range(4) if mask[i]) for mask in active]
    assert torch.allclose(vectors(torch.tensor(active, dtype=torch.float32)), torch.stack(expected), atol=1e-6)


@given(active_tasks(4), st.floats(0.1, 10))
def test_centred_subtracts_the_rows_of_inactive_tasks(active, scale):
    vectors = random_vectors("sum", code="centred", scale=scale)
    expected = [scale * sum(vectors.table[i] * (1 if mask[i] else -1) for i in range(4)) for mask in active]
    assert torch.allclose(vectors(torch.tensor(active, dtype=torch.float32)), torch.stack(expected), atol=1e-4)


FORMS = [VectorsConfig(code=code, scale=scale) for code in ("binary", "centred") for scale in (1.0, 5.0)]


@pytest.mark.parametrize("old, new", list(itertools.product(FORMS, FORMS)))
def test_a_recoded_table_gives_the_same_vectors(old, new):
    before, after = (TaskVectors(4, 3, code=form.code, scale=form.scale) for form in (old, new))
    torch.nn.init.normal_(before.table)
    kept = before.table.detach().clone()
    with torch.no_grad():
        after.table.copy_(recoded(before.table, old, new))
    active = torch.tensor([[1.0, *bits] for bits in itertools.product((0, 1), repeat=3)])
    assert torch.allclose(before(active), after(active), atol=1e-5)
    assert torch.equal(before.table, kept)


@given(active_tasks(4))
def test_combination_has_one_row_for_each_set(active):
    vectors = random_vectors("combination")
    found = vectors(torch.tensor(active, dtype=torch.float32))
    for mask, row in zip(active, found):
        assert torch.equal(row, vectors.table[sum(2**i for i in range(3) if mask[i + 1])])


def test_combination_refuses_a_set_that_was_never_trained():
    vectors = TaskVectors(3, 2, "combination")
    vectors.eval()(torch.tensor([[1.0, 1, 1]]))  # before training all are alike
    vectors.train()(torch.tensor([[1.0, 0, 1], [1, 0, 0]]))
    vectors.eval()
    vectors(torch.tensor([[1.0, 0, 1], [1, 0, 0]]))
    for unseen in ([1.0, 1, 0], [1.0, 1, 1]):
        with pytest.raises(UserError, match="never active in training"):
            vectors(torch.tensor([[1.0, 0, 1], unseen]))
    loaded = TaskVectors(3, 2, "combination").eval()
    loaded.load_state_dict(vectors.state_dict())
    with pytest.raises(UserError, match="never active in training"):
        loaded(torch.tensor([[1.0, 1, 0]]))


def test_impossible_strategies_are_refused():
    with pytest.raises(UserError, match="strategy='product'"):
        TaskVectors(3, 2, "product")
    TaskVectors(MAX_COMBINATION_TASKS + 1, 2, "combination")
    with pytest.raises(UserError, match="at most"):
        TaskVectors(MAX_COMBINATION_TASKS + 2, 2, "combination")
    for strategy, code in (("sum", "gray"), ("combination", "centred")):
        with pytest.raises(UserError, match=f"code='{code}'"):
            TaskVectors(3, 2, strategy, code)


def masked(config, lens, frames, channels=64, seed=0):
    """Where ones became zeros, (N, T, F)."""
    torch.manual_seed(seed)
    return SpecAugment(replace(config, fill="zero"))(torch.ones(len(lens), frames, channels), torch.tensor(lens)) == 0


def test_nothing_in_eval_mode_or_without_shares():
    x = torch.randn(2, 50, 8)
    assert SpecAugment(SpecAugmentConfig()).eval()(x, torch.tensor([50, 20])) is x
    assert not masked(SpecAugmentConfig(time_share=0.0, channel_share=0.0), [50, 20], 50).any()


def test_input_is_not_changed_in_place():
    x = torch.ones(2, 200, 64)
    torch.manual_seed(0)
    out = SpecAugment(SpecAugmentConfig(fill="zero"))(x, torch.tensor([200, 100]))
    assert (out == 0).any() and (x == 1).all()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.floats(0, 1), st.integers(0, 999))
def test_masked_values_are_the_mean_of_their_channel(lens, share, seed):
    config = SpecAugmentConfig(time_share=share, time_span=8, channel_share=share, channel_span=3)
    features = torch.randn(len(lens), max(lens), 12, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    out = SpecAugment(config)(features, torch.tensor(lens))
    places = masked(config, lens, max(lens), channels=12, seed=seed)
    assert torch.equal(out[~places], features[~places])
    for row, length in enumerate(lens):
        mean = features[row, :length].mean(0).expand(max(lens), -1)
        torch.testing.assert_close(out[row][places[row]], mean[places[row]])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.floats(0, 1), st.integers(0, 999))
def test_every_frame_carries_the_whole_task_vector(lens, share, seed):
    """As in decoding: what was added to all frames is there in all of them, masked or not."""
    augment = SpecAugment(SpecAugmentConfig(time_share=share, channel_share=share))
    features, vector = torch.randn(len(lens), max(lens), 12), torch.randn(len(lens), 1, 12)
    found = []
    for x in (features, features + vector):
        torch.manual_seed(seed)
        found.append(augment(x, torch.tensor(lens)))
    torch.testing.assert_close(found[1] - found[0], vector.expand_as(features), atol=1e-5, rtol=1e-5)


def test_time_spans_cover_about_their_share_and_whole_frames():
    config = SpecAugmentConfig(time_share=0.2, time_span=10, channel_share=0.0)
    found = masked(config, [1000] * 40, 1000)
    frames = found.all(dim=2)
    assert torch.equal(frames, found.any(dim=2))
    # Spans overlap: 1 - exp(-0.2) = 0.18 of the frames.
    assert frames.float().mean() == pytest.approx(0.181, abs=0.015)
    assert len({tuple(row.tolist()) for row in frames}) == 40  # each utterance has masks of its own


def test_channel_spans_cover_about_their_share_and_whole_channels():
    config = SpecAugmentConfig(time_share=0.0, channel_share=0.1, channel_span=16)
    found = masked(config, [30] * 400, 30, channels=256)
    channels = found.all(dim=1)
    assert torch.equal(channels, found.any(dim=1))
    assert channels.float().mean() == pytest.approx(0.095, abs=0.015)


def test_short_utterances_are_masked_in_proportion_to_their_own_length():
    config = SpecAugmentConfig(time_share=0.2, time_span=10, channel_share=0.0)
    frames = masked(config, [1000, 50] * 200, 1000).all(dim=2)
    assert not frames[1::2, 50:].any()
    assert frames[1::2, :50].float().mean() == pytest.approx(0.18, abs=0.03)


def test_spans_longer_than_the_utterance_are_no_error():
    config = SpecAugmentConfig(time_share=0.9, time_span=100, channel_share=0.9, channel_span=500)
    assert masked(config, [3, 1, 0], 3, channels=4).shape == (3, 3, 4)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 60), st.floats(0, 1), st.integers(0, 999))
def test_no_utterance_is_masked_whole(lens, span, share, seed):
    """A valid frame and a channel are left: part of the task vector is in each utterance."""
    config = SpecAugmentConfig(time_share=share, time_span=span, channel_share=share, channel_span=span)
    found = masked(config, lens, max(lens), channels=12, seed=seed)
    for row, length in zip(found, lens):
        assert not row[:length].all()
    spans = SpecAugmentConfig(time_share=share, time_span=span, channel_share=0.0)
    assert not any(row[:length].all() for row, length in zip(masked(spans, lens, max(lens), seed=seed), lens))


def test_same_seed_same_masks():
    config = SpecAugmentConfig()
    assert torch.equal(masked(config, [300, 200], 300, seed=3), masked(config, [300, 200], 300, seed=3))
    assert not torch.equal(masked(config, [300, 200], 300, seed=3), masked(config, [300, 200], 300, seed=4))


def build(context_size=2, dim=8, seed=0):
    torch.manual_seed(seed)
    return StatelessPredictor(11, dim, context_size).eval()


@given(st.lists(st.integers(1, 10), max_size=6), st.integers(1, 3))
def test_steps_give_what_the_whole_gives(tokens, context_size):
    predictor = build(context_size)
    whole = predictor(torch.tensor([tokens], dtype=torch.int64).reshape(1, -1))
    assert whole.shape == (1, len(tokens) + 1, 8)
    history = [0] * context_size + tokens
    steps = [predictor.step(torch.tensor([history[i : i + context_size]])) for i in range(len(tokens) + 1)]
    assert torch.allclose(torch.stack(steps, dim=1), whole, atol=1e-6)


def test_convolution_is_as_written():
    """A grouped convolution, written out: groups of four channels."""
    predictor = build()
    tokens = torch.tensor([[3, 7, 1]])
    history = predictor.embedding.weight[torch.tensor([0, 0, 3, 7, 1])]
    weight = predictor.conv.weight  # (8, 4, 2)
    expected = torch.zeros(4, 8)
    for t in range(4):
        for out in range(8):
            group = slice(out // 4 * 4, out // 4 * 4 + 4)
            expected[t, out] = sum((weight[out, :, k] * history[t + k, group]).sum() for k in range(2))
    assert torch.allclose(predictor(tokens)[0], expected.relu(), atol=1e-6)


def test_sees_only_its_context():
    predictor = build(context_size=2)
    a, b = predictor(torch.tensor([[1, 2, 3, 4]])), predictor(torch.tensor([[9, 2, 3, 4]]))
    changed = (a - b).abs().sum(dim=2)[0] > 0
    assert changed.tolist() == [False, True, True, False, False]


def test_blank_embeds_to_zero_and_stays_there():
    predictor = build()
    predictor.train()
    predictor(torch.tensor([[1, 2]])).sum().backward()
    assert not predictor.embedding.weight[0].any() and not predictor.embedding.weight.grad[0].any()


def test_impossible_context_is_refused():
    with pytest.raises(ValueError, match="context_size"):
        StatelessPredictor(5, 8, 0)
    with pytest.raises(UserError, match="context_size=10: with 500 tokens, expected at most 7"):
        StatelessPredictor(500, 8, 10)
    StatelessPredictor(500, 8, 7)


def test_joiner_is_as_written():
    torch.manual_seed(0)
    joiner = Joiner(5, 6, 7, 11)
    encoder, predictor = torch.randn(2, 3, 5), torch.randn(2, 4, 6)
    logits = joiner(joiner.encoder_proj(encoder)[:, :, None], joiner.predictor_proj(predictor)[:, None])
    assert logits.shape == (2, 3, 4, 11)
    hidden = joiner.encoder_proj.weight @ encoder[1, 2] + joiner.encoder_proj.bias
    hidden = hidden + joiner.predictor_proj.weight @ predictor[1, 3] + joiner.predictor_proj.bias
    expected = joiner.output.weight @ hidden.tanh() + joiner.output.bias
    assert torch.allclose(logits[1, 2, 3], expected, atol=1e-6)


def collapse(path):
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != 0)


def test_off_by_default_and_without_a_layer(tiny_corpus):
    parts = toy_parts(tiny_corpus)
    batch = parts.dataset[CutSet.from_cuts(read_cuts(tiny_corpus)[:2])]
    assert parts.model.ctc is None
    assert forward(parts.model, batch, stored=False).ctc.tolist() == [0.0, 0.0]


def test_equals_the_sum_over_all_alignments(tiny_corpus):
    model = toy_parts(tiny_corpus, model__loss__ctc_scale=1.0).model.eval()
    out = torch.randn(2, 4, model.encoder.output_dim)
    lens, tokens, token_lens = torch.tensor([4, 3]), torch.tensor([[1, 2], [2, 0]]), torch.tensor([2, 1])
    found = model._ctc_loss(out, lens, tokens, token_lens)
    log_probs = model.ctc(out).log_softmax(-1)[..., :3].double()
    for i in range(2):
        target = tuple(tokens[i, : token_lens[i]].tolist())
        paths = [p for p in itertools.product(range(3), repeat=int(lens[i])) if collapse(p) == target]
        total = torch.logsumexp(torch.stack([sum(log_probs[i, t, s] for t, s in enumerate(p)) for p in paths]), 0)
        assert math.isclose(found[i].item(), -total.item(), rel_tol=1e-5)


def test_a_target_without_room_counts_nothing(tiny_corpus):
    model = toy_parts(tiny_corpus, model__loss__ctc_scale=1.0).model
    out = torch.randn(1, 2, model.encoder.output_dim, requires_grad=True)
    # The same token twice needs a blank between: three frames.
    loss = model._ctc_loss(out, torch.tensor([2]), torch.tensor([[5, 5]]), torch.tensor([2]))
    loss.sum().backward()
    assert loss.item() == 0 and not out.grad.any()


@pytest.mark.parametrize("context", [1, 2, 3])
def test_grouped_convolution_by_one_product(context):
    predictor = StatelessPredictor(9, 16, context)
    embedded = torch.randn(3, 7, 16)
    expected = predictor.conv(embedded.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(grouped_by_product(embedded, predictor.conv), expected)

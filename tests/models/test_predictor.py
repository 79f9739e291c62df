"""The stateless predictor against its definition, and step by step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.models.transducer import Joiner, StatelessPredictor


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

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tokenverse_pp.losses.devices import scaled_dot_product_attention
from tokenverse_pp.models.encoders.base import attention_bias, stack_frames, zero_padding
from tokenverse_pp.models.encoders.context import ContextNetwork, rotary_table, rotate


def network(dropout=0.0):
    torch.manual_seed(0)
    return ContextNetwork(12, dim=16, num_layers=2, heads=2, ffn_dim=24, kernel=5, dropout=dropout)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.booleans())
def test_padding_never_reaches_valid_frames(lens, training):
    net = network().train(training)
    x = torch.randn(len(lens), max(lens), 12)
    output = net(zero_padding(x, torch.tensor(lens)), torch.tensor(lens))
    for row, n in enumerate(lens):
        one = net(x[row : row + 1, :n], torch.tensor([n]))
        torch.testing.assert_close(output[row, :n], one[0], atol=1e-5, rtol=1e-4)
        assert output[row, n:].abs().sum() == 0


def test_no_batch_statistics():
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in network().modules())


def test_every_frame_sees_the_whole_utterance():
    net = network().eval()
    x = torch.randn(1, 30, 12, requires_grad=True)
    net(x, torch.tensor([30]))[0, 0, 0].backward()
    assert (x.grad[0].abs().sum(-1) > 0).all()


def test_rotated_scores_depend_on_the_distance_only():
    q, k = torch.randn(2, 8)
    table = rotary_table(20, 8, torch.device("cpu"))
    scores = rotate(q.expand(1, 1, 20, 8), table) @ rotate(k.expand(1, 1, 20, 8), table).transpose(2, 3)
    for offset in (-7, 0, 3):
        diagonal = scores[0, 0].diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not hasattr(nn.functional, "scaled_dot_product_attention"), reason="torch 2")
def test_attention_is_torchs():
    q, k, v = torch.randn(3, 2, 2, 7, 4)
    bias = attention_bias(torch.tensor([7, 4]), 7, torch.device("cpu"))
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, bias), expected)


def test_masked_keys_get_no_weight_in_any_type():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        bias = attention_bias(torch.tensor([2, 3]), 3, torch.device("cpu")).to(dtype)
        weights = (bias[0, 0, 0].float() + 60.0 * torch.tensor([0.0, 0.0, 1.0])).softmax(-1)
        assert weights[2] == 0 and bias.isfinite().all()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_stacked_frames_are_neighbours(lens):
    lens = torch.tensor(lens)
    x = zero_padding(torch.randn(len(lens), int(lens.max()), 3), lens)
    y, y_lens = stack_frames(x, lens, 2)
    for row, n in enumerate(lens.tolist()):
        frames = y[row].reshape(-1, 3)
        assert torch.equal(frames[:n], x[row, :n]) and frames[n:].abs().sum() == 0
        assert 2 * y_lens[row] - n in (0, 1)


def test_gradient_checkpointing_changes_nothing():
    grads = []
    for count in (0, 1, 9):
        net = network(dropout=0.2).train()
        net.trained_layers.recomputed = count
        torch.manual_seed(5)
        net(torch.ones(2, 20, 12), torch.tensor([20, 13])).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*grads))

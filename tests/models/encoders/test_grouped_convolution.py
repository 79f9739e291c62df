"""The positional convolution on a GPU, in Triton's interpreter, against PyTorch's convolution."""

import pytest
import torch

pytest.importorskip("triton")

from tokenverse_pp.models.encoders import grouped_convolution as module
from tokenverse_pp.models.encoders.grouped_convolution import grouped_convolution

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def expected(x, conv):
    """As transformers do it."""
    out = conv(x.transpose(1, 2)).transpose(1, 2)
    return out[:, : x.shape[1]]


@pytest.mark.parametrize(
    "shape, groups, width, taps",
    [((2, 37, 32), 2, 32, 5), ((1, 9, 48), 1, 20, 4), ((3, 1, 34), 2, 34, 3), ((2, 20, 12), 3, 24, 8)],
)
def test_values_and_gradients_are_those_of_a_convolution(shape, groups, width, taps, monkeypatch):
    monkeypatch.setattr(module, "FRAMES", 16)  # several blocks
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(shape[2], width, taps, padding=taps // 2, groups=groups).to(DEVICE)
    x = torch.randn(shape, device=DEVICE, requires_grad=True)
    parameters = [x, *conv.parameters()]
    out = expected(x, conv)
    upstream = torch.randn_like(out)
    gradients = torch.autograd.grad(out, parameters, upstream)
    dtype, tolerance = (torch.float32, 1e-5) if DEVICE == "cpu" else (torch.float16, 5e-3)
    found = grouped_convolution(x, conv, dtype)
    torch.testing.assert_close(found.float(), out, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(torch.autograd.grad(found, parameters, upstream.to(found.dtype)), gradients):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()

"""A grouped convolution over time, such as wav2vec2's positional convolution (128 taps, 16 groups), on a GPU.

cuDNN computes each group separately, with slow kernels, and transposes the data before and after. Here each tap is one
matrix product of a group's channels, accumulated in registers; tensors stay time-major.
"""

from __future__ import annotations

from typing import Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenverse_pp.losses.native.lattice import once_differentiable
from tokenverse_pp.losses.triton.lattice import on_its_device

FRAMES = 128  # of one program at a time


@triton.jit(do_not_specialize=["frames"])
def _convolve_kernel(
    x, weight, out, frames, left, groups, TAPS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    IN_BLOCK: tl.constexpr, OUT_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of frames of one group of one utterance."""
    group, n = tl.program_id(1), tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i, o = tl.arange(0, IN_BLOCK), tl.arange(0, OUT_BLOCK)
    x += n * frames * groups * IN + group * IN
    weight += group * TAPS * IN * OUT
    total = tl.zeros((BLOCK, OUT_BLOCK), tl.float32)
    for tap in range(TAPS):
        at = t + (tap - left)
        inside = ((at >= 0) & (at < frames))[:, None] & (i < IN)[None, :]
        a = tl.load(x + at[:, None] * (groups * IN) + i[None, :], mask=inside, other=0.0)
        real = (i < IN)[:, None] & (o < OUT)[None, :]
        w = tl.load(weight + tap * IN * OUT + i[:, None] * OUT + o[None, :], mask=real, other=0.0)
        total = tl.dot(a, w, total)
    out += n * frames * groups * OUT + group * OUT
    kept = (t < frames)[:, None] & (o < OUT)[None, :]
    tl.store(out + t[:, None] * (groups * OUT) + o[None, :], total.to(out.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["utterances", "frames"])
def _weight_grad_kernel(
    x, out_grad, weight_grad, utterances, frames, left, groups, TAPS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    IN_BLOCK: tl.constexpr, OUT_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tap of one group, over all frames."""
    tap, group = tl.program_id(0), tl.program_id(1)
    i, o = tl.arange(0, IN_BLOCK), tl.arange(0, OUT_BLOCK)
    x += group * IN
    out_grad += group * OUT
    total = tl.zeros((IN_BLOCK, OUT_BLOCK), tl.float32)
    blocks = tl.cdiv(frames, BLOCK)
    for number in range(utterances * blocks):
        row = (number // blocks).to(tl.int64) * frames
        t = (number % blocks) * BLOCK + tl.arange(0, BLOCK)
        at = t + (tap - left)
        inside = (i < IN)[:, None] & ((at >= 0) & (at < frames))[None, :]
        a = tl.load(x + (row + at)[None, :] * (groups * IN) + i[:, None], mask=inside, other=0.0)
        inside = (t < frames)[:, None] & (o < OUT)[None, :]
        b = tl.load(out_grad + (row + t)[:, None] * (groups * OUT) + o[None, :], mask=inside, other=0.0)
        total = tl.dot(a, b, total)
    real = (i < IN)[:, None] & (o < OUT)[None, :]
    weight_grad += (group * TAPS + tap) * IN * OUT
    tl.store(weight_grad + i[:, None] * OUT + o[None, :], total.to(weight_grad.dtype.element_ty), mask=real)


def _blocks(width_in: int, width_out: int) -> Tuple[int, int]:
    return max(triton.next_power_of_2(width_in), 16), max(triton.next_power_of_2(width_out), 16)


def _convolve(x: Tensor, weight: Tensor, left: int) -> Tensor:
    n, frames, _ = x.shape
    groups, taps, width_in, width_out = weight.shape
    out = x.new_empty((n, frames, groups * width_out))
    blocks = _blocks(width_in, width_out)
    _convolve_kernel[(triton.cdiv(frames, FRAMES), groups, n)](
        x, weight, out, frames, left, groups, TAPS=taps, IN=width_in, OUT=width_out, IN_BLOCK=blocks[0],
        OUT_BLOCK=blocks[1], BLOCK=FRAMES, num_warps=4, num_stages=4,
    )  # fmt: skip
    return out


class _GroupedConvolution(torch.autograd.Function):
    """x (N, T, G * I), weight (G, taps, I, O) -> (N, T, G * O)."""

    @staticmethod
    @on_its_device
    def forward(ctx, x: Tensor, weight: Tensor, left: int):
        ctx.save_for_backward(x, weight)
        ctx.left = left
        return _convolve(x, weight, left)

    @staticmethod
    @once_differentiable
    @on_its_device
    def backward(ctx, out_grad: Tensor):
        x, weight = ctx.saved_tensors
        groups, taps, width_in, width_out = weight.shape
        out_grad, x_grad, weight_grad = out_grad.to(x.dtype).contiguous(), None, None
        if ctx.needs_input_grad[0]:
            x_grad = _convolve(out_grad, weight.flip(1).transpose(2, 3).contiguous(), taps - 1 - ctx.left)
        if ctx.needs_input_grad[1]:
            weight_grad, blocks = torch.empty_like(weight), _blocks(width_in, width_out)
            _weight_grad_kernel[(taps, groups)](
                x, out_grad, weight_grad, *x.shape[:2], ctx.left, groups, TAPS=taps, IN=width_in, OUT=width_out,
                IN_BLOCK=blocks[0], OUT_BLOCK=blocks[1], BLOCK=64, num_warps=4, num_stages=4,
            )  # fmt: skip
        return x_grad, weight_grad, None


def grouped_convolution(x: Tensor, conv: torch.nn.Conv1d, dtype: torch.dtype) -> Tensor:
    """Apply ``conv`` over frames, padded to keep their number: (N, T, C) -> (N, T, C'), in ``dtype``.

    Output t sees input t + tap - taps // 2, as in ``Wav2Vec2PositionalConvEmbedding`` of transformers, which pads
    both sides by taps // 2 and drops a frame at the end if taps is even.
    """
    groups, (taps,) = conv.groups, conv.kernel_size
    weight = conv.weight.to(dtype).view(groups, conv.out_channels // groups, -1, taps).permute(0, 3, 2, 1).contiguous()
    out = _GroupedConvolution.apply(x.to(dtype).contiguous(), weight, taps // 2)
    return out if conv.bias is None else out + conv.bias.to(dtype)

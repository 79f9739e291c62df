"""Pruning bounds on a GPU, in two kernels; the rules are those of `losses.native.pruned.get_rnnt_prune_ranges`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_FRAMES = 128  # frames whose windows a program compares


@triton.jit(do_not_specialize=["num_symbols", "frames", "columns"])
def _best_window_kernel(
    px_grad, py_grad, begins, num_symbols, frames, columns, width, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):
    """The first position of each frame's most probable window."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = t < frames
    px_grad += b * num_symbols * columns + t
    py_grad += b * (num_symbols + 1) * frames + t
    best = tl.full((BLOCK,), float("-inf"), py_grad.dtype.element_ty)
    begin = tl.zeros((BLOCK,), tl.int32)
    for s in range(0, num_symbols + 2 - width):
        worth = tl.load(py_grad + s * frames, mask=valid, other=0.0)
        for r in tl.static_range(1, WIDTH):
            worth += tl.load(py_grad + (s + r) * frames, mask=valid, other=0.0)
        from_below = tl.where(s > 0, t, frames) < frames
        worth -= tl.load(px_grad + (s - 1) * columns, mask=from_below, other=0.0)
        better = worth > best
        best = tl.where(better, worth, best)
        begin = tl.where(better, s, begin)
    tl.store(begins + b * frames + t, begin, mask=valid)


@triton.jit
def _lesser(a, b):
    return tl.minimum(a, b)


@triton.jit(do_not_specialize=["num_symbols", "frames"])
def _reachable_kernel(
    begins, boundary, ranges, num_symbols, frames, width, MAX_STEP: tl.constexpr, BLOCK: tl.constexpr
):
    """Lower the windows until they start at 0, never fall, rise by at most MAX_STEP per frame, and reach the end."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BLOCK)
    valid = t < frames
    begin = tl.load(begins + b * frames + t, mask=valid, other=2**30)
    end = tl.minimum(tl.load(boundary + 4 * b + 2).to(tl.int32), num_symbols)
    last = tl.maximum(end - width + 1, 0)
    begin = tl.where(t < tl.load(boundary + 4 * b + 3).to(tl.int32) - 1, begin, last)
    begin = tl.associative_scan(tl.where(valid, begin, 2**30), 0, _lesser, reverse=True)
    slack = tl.where(valid, MAX_STEP * t - begin, 2**30)
    slack = tl.associative_scan(slack, 0, _lesser, reverse=True)
    begin = MAX_STEP * t - tl.maximum(slack, 0)
    for r in range(0, width):
        tl.store(ranges + (b * frames + t) * width + r, (begin + r).to(tl.int64), mask=valid)


def prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, width: int) -> Tensor:
    """Symbol positions (B, T, R) for occupations px_grad (B, S, T [+ 1]), py_grad (B, S + 1, T); R is ``width``."""
    batch, num_symbols, columns = px_grad.shape
    frames = py_grad.shape[2]
    begins = torch.empty((batch, frames), dtype=torch.int32, device=px_grad.device)
    ranges = torch.empty((batch, frames, width), dtype=torch.int64, device=px_grad.device)
    with torch.cuda.device_of(px_grad):
        _best_window_kernel[(batch, triton.cdiv(frames, _FRAMES))](
            px_grad.contiguous(), py_grad.contiguous(), begins, num_symbols, frames, columns, width,
            BLOCK=_FRAMES, WIDTH=width, num_warps=4,
        )  # fmt: skip
        block = triton.next_power_of_2(frames)
        _reachable_kernel[(batch,)](
            begins, boundary.contiguous(), ranges, num_symbols, frames, width,
            MAX_STEP=width - 1 if columns == frames + 1 else 1, BLOCK=block, num_warps=min(max(block // 256, 1), 16),
        )  # fmt: skip
    return ranges

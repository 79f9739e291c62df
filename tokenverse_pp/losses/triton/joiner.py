"""Joiner + log-softmax + gather over a band on a GPU; the mathematics is that of `losses.native.joiner`.

The matrix products are the library's. Besides them, the forward pass reads each of the (rows, V) logits once and writes
none; the backward pass reads each once and overwrites it with its gradient. Rows are computed in chunks. The logits of
as many chunks as the memory budget allows are kept; those of the others are recomputed, as are the hidden rows, which
cost little.

No row count depends on the data, so nothing is read back to the host: rows outside of an utterance enter the products
as zeros. Bucketed batches have few of them.
"""

from __future__ import annotations

from typing import List, NamedTuple, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenverse_pp.losses.native.lattice import once_differentiable, without_autocast
from tokenverse_pp.losses.triton.lattice import on_its_device, zeros_of_shapes

# Elements of the larger tensor of a chunk: at most 128 MiB in float32. A smaller band is halved, which is as fast and
# needs less memory; products below the minimum leave a large GPU idle.
MOST_NUMBERS, LEAST_NUMBERS = 2**25, 2**22
_ROW = 4096  # logits of a row that a program holds in registers at a time
_FRAMES = 16  # frames that a program sums at a time in the gradient of lm


class BandPlan(NamedTuple):
    """The rows to compute: ``width`` positions from ``begins[b, t]`` on, for each frame inside of ``boundary``."""

    begins: Tensor  # (B, T) int64, never falling along T
    width: int  # R
    symbols: Tensor  # (B, S)
    boundary: Tensor  # (B, 4)
    blank: int
    compute_dtype: torch.dtype = torch.float32  # of the matrix products
    memory_budget: int = 0  # bytes that may be kept for the backward pass
    activation: str = "tanh"  # or relu


@triton.jit
def _frame_of(first, boundary, begins, frames):
    """The program's frame, counted from ``first``: utterance, index in (B * T), first position, whether it is used."""
    at = first + tl.program_id(0).to(tl.int64)
    b = at // frames
    t = at - b * frames
    used = (t >= tl.load(boundary + 4 * b + 1)) & (t < tl.load(boundary + 4 * b + 3))
    return b, at, tl.load(begins + at), used


@triton.jit
def _slope(value, RELU: tl.constexpr):
    """Derivative of the activation, from its value."""
    if RELU:
        return tl.where(value > 0, 1.0, 0.0).to(value.dtype)
    return 1.0 - value * value


@triton.jit(do_not_specialize=["first", "frames", "positions"])
def _hidden_kernel(
    am, lm, begins, boundary, hidden, first, frames, positions, width, size,
    ACC: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """tanh(am + lm), or relu, at the positions of one frame."""
    b, at, begin, used = _frame_of(first, boundary, begins, frames)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    limit = tl.where(used, size, 0)
    last = tl.load(boundary + 4 * b + 2)
    dtype = hidden.dtype.element_ty
    frame = tl.load(am + at * size + column, mask=column < limit, other=0.0).to(dtype).to(ACC)
    lm += (b * positions + begin) * size + column
    hidden += tl.program_id(0).to(tl.int64) * width * size + column
    for r in range(0, width):
        end = tl.where(begin + r <= last, limit, 0)  # past the last symbol lm is padding, which may be NaN
        x = frame + tl.load(lm + r * size, mask=column < end, other=0.0).to(dtype).to(ACC)
        if RELU:
            value = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        else:
            decay = tl.exp(-2.0 * tl.abs(x))
            value = (1.0 - decay) / (1.0 + decay)
            value = tl.where(x < 0, -value, value)
        tl.store(hidden + r * size, value.to(dtype), mask=inside)


@triton.jit
def _target(symbols, b, position, num_symbols, vocab, blank):
    """The next symbol at a position; blank past the last one, or if it is not a valid symbol."""
    symbol = tl.load(symbols + b * num_symbols + position, mask=position < num_symbols, other=blank)
    return tl.where((symbol >= 0) & (symbol < vocab), symbol, blank)


@triton.jit(do_not_specialize=["first", "frames", "num_symbols"])
def _log_probs_kernel(
    logits, begins, boundary, symbols, px, py, normalisers, first, frames, width, num_symbols, vocab, blank,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Log-probabilities of the target and of blank in one row of logits, and the row's log-sum-exp."""
    b, at, begin, used = _frame_of(first, boundary, begins, frames)
    r = tl.program_id(1)
    row = logits + (tl.program_id(0).to(tl.int64) * width + r) * vocab
    dtype = normalisers.dtype.element_ty
    out = at * width + r
    if used:
        column = tl.arange(0, BLOCK)
        top = tl.full((BLOCK,), float("-inf"), dtype)
        total = tl.zeros((BLOCK,), dtype)
        for start in range(0, vocab, BLOCK):
            inside = start + column < vocab
            value = tl.load(row + start + column, mask=inside, other=float("-inf")).to(dtype)
            higher = tl.maximum(top, value, propagate_nan=tl.PropagateNan.ALL)
            old = tl.where(top == float("-inf"), 0.0, total * tl.exp(top - higher))
            total = old + tl.where(value == float("-inf"), 0.0, tl.exp(value - higher))
            top = higher
        highest = tl.max(top, 0)
        total = tl.where(total == 0.0, 0.0, total * tl.exp(top - highest))
        normaliser = highest + tl.log(tl.sum(total, 0))
        target = _target(symbols, b, begin + r, num_symbols, vocab, blank)
        tl.store(px + out, tl.load(row + target).to(dtype) - normaliser)
        tl.store(py + out, tl.load(row + blank).to(dtype) - normaliser)
        tl.store(normalisers + out, normaliser)
    else:
        zero = tl.zeros((), dtype)
        tl.store(px + out, zero)
        tl.store(py + out, zero)
        tl.store(normalisers + out, zero)


@triton.jit(do_not_specialize=["first", "frames", "num_symbols"])
def _logit_grad_kernel(
    logits, grad, begins, boundary, symbols, px_grad, py_grad, normalisers, first, frames, width, num_symbols, vocab,
    blank, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of one row of logits, which may overwrite the logits; zero past the utterance's last symbol."""
    b, at, begin, used = _frame_of(first, boundary, begins, frames)
    r = tl.program_id(1)
    used = used & (begin + r <= tl.load(boundary + 4 * b + 2))
    row = (tl.program_id(0).to(tl.int64) * width + r) * vocab
    out = at * width + r
    normaliser, move, stay = tl.load(normalisers + out), tl.load(px_grad + out), tl.load(py_grad + out)
    target = _target(symbols, b, begin + r, num_symbols, vocab, blank)
    column = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocab
    value = tl.load(logits + row + column, mask=inside, other=0.0).to(normaliser.dtype)
    value = -(move + stay) * tl.exp(value - normaliser)
    value += tl.where(column == target, move, 0.0) + tl.where(column == blank, stay, 0.0)
    tl.store(grad + row + column, tl.where(used, value, 0.0).to(grad.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first"])
def _am_grad_kernel(hidden, hidden_grad, am_grad, first, width, size, RELU: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of am: through the activation, summed over the positions of one frame."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    at = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), am_grad.dtype.element_ty)
    for r in range(0, width):
        where = (at * width + r) * size + column
        value = tl.load(hidden + where, mask=inside, other=0.0).to(total.dtype)
        total += tl.load(hidden_grad + where, mask=inside, other=0.0).to(total.dtype) * _slope(value, RELU)
    tl.store(am_grad + (first + at) * size + column, total, mask=inside)


@triton.jit
def _first_frame(begins, low, high, position):
    """The first frame in [low, high) whose window begins after ``position``."""
    while low < high:
        middle = (low + high) // 2
        later = tl.load(begins + middle) > position
        high = tl.where(later, middle, high)
        low = tl.where(later, low, middle + 1)
    return low


@triton.jit(do_not_specialize=["first", "last", "frames", "positions"])
def _lm_grad_kernel(
    hidden, hidden_grad, lm_grad, begins, first, last, frames, positions, width, size,
    RELU: tl.constexpr, FRAMES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of lm: through the activation, summed over the frames whose windows contain one position.

    Begins never fall, so these frames are contiguous: the sum needs no atomic additions, and its order is fixed.
    """
    b, position = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    low = tl.maximum(b * frames, first)
    high = tl.minimum((b + 1) * frames, last)
    start = _first_frame(begins, low, high, position - width)
    stop = _first_frame(begins, low, high, position)
    if start < stop:
        total = tl.zeros((FRAMES, BLOCK), lm_grad.dtype.element_ty)
        for base in range(start, stop, FRAMES):
            at = base + tl.arange(0, FRAMES)
            some = at < stop
            r = position - tl.load(begins + at, mask=some, other=0)
            where = ((at - first) * width + r)[:, None] * size + column[None, :]
            mask = some[:, None] & inside[None, :]
            value = tl.load(hidden + where, mask=mask, other=0.0).to(total.dtype)
            total += tl.load(hidden_grad + where, mask=mask, other=0.0).to(total.dtype) * _slope(value, RELU)
        into = lm_grad + (b * positions + position) * size + column
        tl.store(into, tl.load(into, mask=inside, other=0.0) + tl.sum(total, 0), mask=inside)


class _Band:
    """Sizes of a band, and its kernels over a chunk of frames [first, last) of the flattened (B * T)."""

    def __init__(self, plan: BandPlan, lm: Tensor, vocab: int):
        self.plan = plan
        (self.batch, self.frames), self.width = plan.begins.shape, plan.width
        self.positions, self.size, self.vocab = lm.shape[1], lm.shape[2], vocab

    def chunks(self) -> List[Tuple[int, int]]:
        """First frame and end of each chunk; chunks are about equally long."""
        total, numbers = self.batch * self.frames, self.width * max(self.size, self.vocab)
        count = max(-(-total * numbers // MOST_NUMBERS), min(2, -(-total * numbers // LEAST_NUMBERS)), 1)
        step = max(1, -(-total // count))
        return [(first, min(first + step, total)) for first in range(0, total, step)]

    def hidden(self, am: Tensor, lm: Tensor, first: int, last: int) -> Tensor:
        """tanh(am + lm), or relu, (rows, J) in the computing type; zeros in rows that are not used."""
        plan, block = self.plan, min(triton.next_power_of_2(self.size), 512)
        rows = torch.empty(((last - first) * self.width, self.size), dtype=plan.compute_dtype, device=am.device)
        _hidden_kernel[(last - first, triton.cdiv(self.size, block))](
            am, lm, plan.begins, plan.boundary, rows, first, self.frames, self.positions, self.width, self.size,
            ACC=tl.float64 if plan.compute_dtype == torch.float64 else tl.float32, RELU=plan.activation == "relu",
            BLOCK=block, num_warps=max(block // 128, 1),
        )  # fmt: skip
        return rows

    def log_probs(self, logits: Tensor, outputs: Tuple[Tensor, Tensor, Tensor], first: int, last: int) -> None:
        """Write px, py and the normalisers, all (B, T, R), of a chunk's logits (rows, V)."""
        plan, block = self.plan, min(triton.next_power_of_2(self.vocab), _ROW)
        _log_probs_kernel[(last - first, self.width)](
            logits, plan.begins, plan.boundary, plan.symbols, *outputs, first, self.frames, self.width,
            plan.symbols.shape[1], self.vocab, plan.blank, BLOCK=block, num_warps=min(max(block // 512, 1), 8),
        )  # fmt: skip

    def logit_grad(self, logits: Tensor, grad: Tensor, px_grad: Tensor, py_grad: Tensor, norm: Tensor, first: int):
        """Write the gradient of a chunk's logits; ``grad`` may be ``logits``."""
        plan, block = self.plan, min(triton.next_power_of_2(self.vocab), 1024)
        grid = (len(logits) // self.width, self.width, triton.cdiv(self.vocab, block))
        _logit_grad_kernel[grid](
            logits, grad, plan.begins, plan.boundary, plan.symbols, px_grad, py_grad, norm, first, self.frames,
            self.width, plan.symbols.shape[1], self.vocab, plan.blank, BLOCK=block, num_warps=max(block // 256, 1),
        )  # fmt: skip

    def input_grads(
        self, hidden: Tensor, hidden_grad: Tensor, am_grad: Tensor, lm_grad: Tensor, first: int, last: int
    ) -> None:
        """Write the chunk's rows of am_grad (B, T, J), and add to lm_grad (B, S + 1, J)."""
        block = min(triton.next_power_of_2(self.size), 512)
        relu = self.plan.activation == "relu"
        _am_grad_kernel[(last - first, triton.cdiv(self.size, block))](
            hidden, hidden_grad, am_grad, first, self.width, self.size, RELU=relu, BLOCK=block,
            num_warps=max(block // 128, 1),
        )  # fmt: skip
        block = min(block, 64)
        _lm_grad_kernel[(self.batch, self.positions, triton.cdiv(self.size, block))](
            hidden, hidden_grad, lm_grad, self.plan.begins, first, last, self.frames, self.positions, self.width,
            self.size, RELU=relu, FRAMES=_FRAMES, BLOCK=block, num_warps=4,
        )  # fmt: skip


class _JoinerLogProbs(torch.autograd.Function):
    """(am, lm, weight, bias) -> log-probabilities (B, T, R) of the target symbols and of blank."""

    @staticmethod
    @on_its_device
    def forward(ctx, am: Tensor, lm: Tensor, weight: Tensor, bias: Tensor, plan: BandPlan):
        band = _Band(plan, lm, len(weight))
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        am, lm = am.contiguous(), lm.contiguous()
        kernel, offset = weight.detach().to(plan.compute_dtype), bias.detach().to(plan.compute_dtype)
        px, py, norm = am.new_empty((3, *plan.begins.shape, plan.width), dtype=dtype).unbind(0)
        bytes_per_frame = band.width * len(weight) * kernel.element_size()
        frames_to_keep = plan.memory_budget // bytes_per_frame if any(ctx.needs_input_grad) else 0
        kept = []
        for first, last in band.chunks():
            hidden = band.hidden(am, lm, first, last)
            logits = torch.addmm(offset, hidden, kernel.t())
            band.log_probs(logits, (px, py, norm), first, last)
            if last <= frames_to_keep:
                kept.append(logits)
            del hidden, logits  # before the next chunk's are allocated
        ctx.save_for_backward(am, lm, weight, bias, norm)
        ctx.plan, ctx.kept = plan, kept
        return px, py

    @staticmethod
    @once_differentiable
    @without_autocast
    @on_its_device
    def backward(ctx, px_grad: Tensor, py_grad: Tensor):
        am, lm, weight, bias, norm = ctx.saved_tensors
        plan: BandPlan = ctx.plan
        band = _Band(plan, lm, len(weight))
        kernel, offset = weight.detach().to(plan.compute_dtype), bias.detach().to(plan.compute_dtype)
        am_grad = torch.empty(am.shape, dtype=norm.dtype, device=am.device)
        lm_grad, weight_grad, bias_grad = zeros_of_shapes(norm, lm.shape, weight.shape, bias.shape)
        px_grad, py_grad = px_grad.contiguous(), py_grad.contiguous()
        # Kept logits are overwritten by their gradient and can be used once; a second backward pass recomputes them.
        kept, ctx.kept = ctx.kept, []
        kept.reverse()
        chunks = band.chunks()
        ones = norm.new_ones((chunks[0][1] - chunks[0][0]) * band.width)
        for first, last in chunks:
            hidden = band.hidden(am, lm, first, last)
            logits = kept.pop() if kept else torch.addmm(offset, hidden, kernel.t())
            band.logit_grad(logits, logits, px_grad, py_grad, norm, first)
            if any(ctx.needs_input_grad[2:4]):  # else the layer is frozen
                if logits.dtype == norm.dtype:
                    bias_grad.addmv_(logits.t(), ones[: len(logits)])
                    weight_grad.addmm_(logits.t(), hidden)
                else:
                    bias_grad += logits.sum(0, dtype=norm.dtype)
                    weight_grad += torch.mm(logits.t(), hidden)
            hidden_grad = torch.mm(logits, kernel)
            del logits  # before the next chunk's are allocated
            band.input_grads(hidden, hidden_grad, am_grad, lm_grad, first, last)
            del hidden, hidden_grad
        return (
            am_grad.to(am.dtype), lm_grad.to(lm.dtype), weight_grad.to(weight.dtype), bias_grad.to(bias.dtype), None,
        )  # fmt: skip


def joiner_log_probs(am: Tensor, lm: Tensor, weight: Tensor, bias: Tensor, plan: BandPlan) -> Tuple[Tensor, Tensor]:
    """Log-probabilities of targets and of blank under softmax(weight @ tanh(am + lm) + bias), in a band.

    Args:
      am: (B, T, J) and lm: (B, S + 1, J): the joiner's projected inputs.
      weight: (V, J), bias: (V,).

    Returns:
      px, py, each (B, T, R), float32 (float64 for float64 parameters); 0 in frames outside of the boundary.
    """
    if not torch.is_grad_enabled():  # `forward` of an autograd function cannot check this
        plan = plan._replace(memory_budget=0)
    return _JoinerLogProbs.apply(am, lm, weight, bias, plan)


class _GatherLogProbs(torch.autograd.Function):
    """logits (B, T, R, V) -> log-probabilities (B, T, R) of the target symbols and of blank."""

    @staticmethod
    @on_its_device
    def forward(ctx, logits: Tensor, plan: BandPlan):
        band = _Band(plan, logits[..., 0], logits.shape[3])
        logits = logits.contiguous()
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        px, py, norm = logits.new_empty((3, *logits.shape[:3]), dtype=dtype).unbind(0)
        band.log_probs(logits, (px, py, norm), 0, band.batch * band.frames)
        ctx.save_for_backward(logits, norm)
        ctx.plan = plan
        return px, py

    @staticmethod
    @once_differentiable
    @on_its_device
    def backward(ctx, px_grad: Tensor, py_grad: Tensor):
        logits, norm = ctx.saved_tensors
        band = _Band(ctx.plan, logits[..., 0], logits.shape[3])
        grad = torch.empty_like(logits)
        rows = logits.view(-1, logits.shape[3])
        band.logit_grad(rows, grad.view_as(rows), px_grad.contiguous(), py_grad.contiguous(), norm, 0)
        return grad, None


def gather_log_probs(logits: Tensor, plan: BandPlan) -> Tuple[Tensor, Tensor]:
    """Log-probabilities (B, T, R) of targets and of blank for given logits (B, T, R, V)."""
    return _GatherLogProbs.apply(logits, plan)

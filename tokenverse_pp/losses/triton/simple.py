"""The simple and the smoothed transducer loss on a GPU; the mathematics is that of `losses.native.simple`.

Forward: exponentials of the rows, one matrix product for all normalisers, the arcs, the lattice and its occupations.
Backward: the exponentials again (they are as large as the inputs and cheaper to compute than to keep), two matrix
products, and one kernel for the gradient of each input.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenverse_pp.losses.native.lattice import once_differentiable, without_autocast
from tokenverse_pp.losses.triton.lattice import Lattice, on_its_device, zeros_of_shapes

_ROW = 1024  # numbers of a row that a program holds in registers at a time
_FRAMES = 128  # frames of a symbol position that a program of `_arcs_kernel` computes
# Exponentials of am that are held at a time: all if they fit in 64 MiB in float32, else 16 MiB.
_WHOLE, _PROBS = 2**24, 2**22


@triton.jit
def _exp_rows_kernel(x, probs, tops, totals, width, BLOCK: tl.constexpr):
    """exp(x - max) of a row, its max, and the sum."""
    row = tl.program_id(0).to(tl.int64)
    x += row * width
    column = tl.arange(0, BLOCK)
    running = tl.full((BLOCK,), float("-inf"), x.dtype.element_ty)
    for start in range(0, width, BLOCK):
        value = tl.load(x + start + column, mask=start + column < width, other=float("-inf"))
        running = tl.maximum(running, value, propagate_nan=tl.PropagateNan.ALL)
    top = tl.max(running, 0)
    total = tl.zeros((BLOCK,), x.dtype.element_ty)
    for start in range(0, width, BLOCK):
        inside = start + column < width
        value = tl.exp(tl.load(x + start + column, mask=inside, other=float("-inf")) - top)
        total += tl.where(inside, value, 0.0)
        tl.store(probs + row * width + start + column, value, mask=inside)
    tl.store(tops + row, top)
    tl.store(totals + row, tl.sum(total, 0))


@triton.jit
def _blank_scores(
    am, am_top, am_only, lm, lm_top, lm_only, overlap, unigram, s, t, valid, vocab, frames, blank,
    TINY: tl.constexpr, BOTH: tl.constexpr, LM_ONLY: tl.constexpr, AM_ONLY: tl.constexpr,
):  # fmt: skip
    """Score of the blank at position s, frames t, and the normaliser of the simple joiner there."""
    normaliser = tl.log(tl.load(overlap + s * frames + t, mask=valid, other=1.0) + TINY)
    normaliser += tl.load(lm_top + s) + tl.load(am_top + t, mask=valid, other=0.0)
    am_blank = tl.load(am + t * vocab + blank, mask=valid, other=0.0)
    lm_blank = tl.load(lm + s * vocab + blank)
    score = (am_blank + lm_blank - normaliser) * BOTH
    if LM_ONLY != 0.0:
        score += (lm_blank - tl.log(tl.load(lm_only + s)) - tl.load(lm_top + s)) * LM_ONLY
    if AM_ONLY != 0.0:
        top = tl.load(am_top + t, mask=valid, other=0.0)
        only = tl.log(tl.load(am_only + t, mask=valid, other=1.0)) + top
        score += (am_blank - only + tl.log(tl.load(unigram + blank))) * AM_ONLY
    return score, normaliser


@triton.jit(do_not_specialize=["num_symbols", "frames", "arc_b", "arc_s", "arc_t"])
def _arcs_kernel(
    am, am_top, am_only, lm, lm_top, lm_only, overlap, unigram, symbols, boundary, px, py,
    num_symbols, frames, vocab, blank, arc_b, arc_s, arc_t,
    TINY: tl.constexpr, BOTH: tl.constexpr, LM_ONLY: tl.constexpr, AM_ONLY: tl.constexpr, DELAY: tl.constexpr,
    CONSTRAINED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    t = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    valid = t < frames
    am += b * frames * vocab
    am_top += b * frames
    am_only += b * frames
    rows = num_symbols + 1
    lm += b * rows * vocab
    lm_top += b * rows
    lm_only += b * rows
    overlap += b * rows * frames
    score, normaliser = _blank_scores(
        am, am_top, am_only, lm, lm_top, lm_only, overlap, unigram, s, t, valid, vocab, frames, blank,
        TINY, BOTH, LM_ONLY, AM_ONLY,
    )  # fmt: skip
    tl.store(py + b * arc_b + s * arc_s + t * arc_t, score, mask=valid)
    if s < num_symbols:
        symbol = tl.load(symbols + b * num_symbols + s)
        symbol = tl.where((symbol >= 0) & (symbol < vocab), symbol, blank)  # padding may be any id
        am_symbol = tl.load(am + t * vocab + symbol, mask=valid, other=0.0)
        lm_symbol = tl.load(lm + s * vocab + symbol)
        arc = (am_symbol + lm_symbol - normaliser) * BOTH
        if LM_ONLY != 0.0:
            arc += (lm_symbol - tl.log(tl.load(lm_only + s)) - tl.load(lm_top + s)) * LM_ONLY
        if AM_ONLY != 0.0:
            top = tl.load(am_top + t, mask=valid, other=0.0)
            only = tl.log(tl.load(am_only + t, mask=valid, other=1.0)) + top
            arc += (am_symbol - only + tl.log(tl.load(unigram + symbol))) * AM_ONLY
        if CONSTRAINED:
            after, _ = _blank_scores(
                am, am_top, am_only, lm, lm_top, lm_only, overlap, unigram, s + 1, t, valid, vocab, frames, blank,
                TINY, BOTH, LM_ONLY, AM_ONLY,
            )  # fmt: skip
            arc += after
        if DELAY > 0.0:
            middle = (tl.load(boundary + 4 * b + 3) - 1).to(tl.float32) / 2
            arc += ((middle - t) * DELAY).to(arc.dtype)
        tl.store(px + b * arc_b + s * arc_s + t * arc_t, arc, mask=valid)


@triton.jit(do_not_specialize=["num_symbols", "frames", "columns"])
def _visits_kernel(
    px_grad, py_grad, scale, overlap, ratio, px_sum, py_sum, num_symbols, frames, columns,
    TINY: tl.constexpr, LIMIT: tl.constexpr, BOTH: tl.constexpr, CONSTRAINED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of the overlap at position s, and the occupation of the position's arcs over all frames."""
    b, s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    weight = tl.load(scale + b)
    row = b * (num_symbols + 1) + s
    px_grad += (b * num_symbols + s) * columns
    t = tl.arange(0, BLOCK)
    px_total = tl.zeros((BLOCK,), ratio.dtype.element_ty)
    py_total = tl.zeros((BLOCK,), ratio.dtype.element_ty)
    for start in range(0, frames, BLOCK):
        frame = start + t
        valid = frame < frames
        move = tl.load(px_grad + frame, mask=valid & (frame < tl.where(s < num_symbols, frames, 0)), other=0.0)
        stay = tl.load(py_grad + row * frames + frame, mask=valid, other=0.0)
        if CONSTRAINED:  # the symbol arc one position back includes this position's blank
            before = valid & (frame < tl.where(s > 0, frames, 0))
            stay += tl.load(px_grad - columns + frame, mask=before, other=0.0)
        move *= weight
        stay *= weight
        overlapping = tl.load(overlap + row * frames + frame, mask=valid, other=1.0) + TINY
        value = (move + stay) / overlapping
        value = tl.minimum(tl.maximum(value, -LIMIT), LIMIT)
        tl.store(ratio + row * frames + frame, -BOTH * value, mask=valid)
        px_total += move
        py_total += stay
    tl.store(px_sum + row, tl.sum(px_total, 0))
    tl.store(py_sum + row, tl.sum(py_total, 0))


@triton.jit(do_not_specialize=["num_symbols"])
def _lm_grad_kernel(
    grad, probs, symbols, lm_only, px_sum, py_sum, per_row, dots, num_symbols, vocab, blank,
    BOTH: tl.constexpr, LM_ONLY: tl.constexpr, AM_ONLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Finish the gradient of row s of lm, in place: through the exponential, and the scores taken directly."""
    b, s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = b * (num_symbols + 1) + s
    moves, stays, total = tl.load(px_sum + row), tl.load(py_sum + row), tl.load(lm_only + row)
    through_sum = -LM_ONLY * (moves + stays)
    if AM_ONLY != 0.0:
        through_sum -= tl.load(dots + row) / total
    symbol = tl.load(symbols + b * num_symbols + s, mask=s < num_symbols, other=-1)
    direct: tl.constexpr = BOTH + LM_ONLY
    column = tl.arange(0, BLOCK)
    for start in range(0, vocab, BLOCK):
        v = start + column
        inside = v < vocab
        value = tl.load(grad + row * vocab + v, mask=inside, other=0.0)
        extra = through_sum
        if AM_ONLY != 0.0:
            extra += tl.load(per_row + v, mask=inside, other=0.0)
        value = (value + extra / total) * tl.load(probs + row * vocab + v, mask=inside, other=0.0)
        value += tl.where(v == symbol, moves * direct, 0.0) + tl.where(v == blank, stays * direct, 0.0)
        tl.store(grad + row * vocab + v, value, mask=inside)


@triton.jit
def _am_grad_kernel(grad, probs, part, unigram, vocab, AM_ONLY: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of one frame of am through the exponential, in place."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    for start in range(0, vocab, BLOCK):
        v = start + column
        inside = v < vocab
        value = tl.load(grad + row * vocab + v, mask=inside, other=0.0)
        if AM_ONLY != 0.0:
            value += tl.load(part + row) * tl.load(unigram + v, mask=inside, other=0.0)
        value *= tl.load(probs + row * vocab + v, mask=inside, other=0.0)
        tl.store(grad + row * vocab + v, value, mask=inside)


@triton.jit(do_not_specialize=["num_symbols", "frames", "columns"])
def _taken_kernel(
    grad, symbols, px_grad, py_grad, scale, num_symbols, frames, columns, vocab, blank,
    BOTH: tl.constexpr, AM_ONLY: tl.constexpr, CONSTRAINED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the gradient of am's scores that are taken directly: one frame per thread, hence in a fixed order."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = t < frames
    weight = tl.load(scale + b) * (BOTH + AM_ONLY)
    grad += (b * frames + t) * vocab
    px_grad += b * num_symbols * columns + t
    py_grad += b * (num_symbols + 1) * frames + t
    blanks = tl.load(py_grad + num_symbols * frames, mask=valid, other=0.0)
    for s in range(0, num_symbols):
        move = tl.load(px_grad + s * columns, mask=valid, other=0.0)
        blanks += tl.load(py_grad + s * frames, mask=valid, other=0.0)
        if CONSTRAINED:
            blanks += move
        symbol = tl.load(symbols + b * num_symbols + s)
        at = grad + tl.where((symbol >= 0) & (symbol < vocab), symbol, blank)
        tl.store(at, tl.load(at, mask=valid, other=0.0) + move * weight, mask=valid)
    at = grad + blank
    tl.store(at, tl.load(at, mask=valid, other=0.0) + blanks * weight, mask=valid)


def _exp_rows(x: Tensor, tops: Optional[Tensor] = None) -> Tuple[Tensor, Tensor, Tensor]:
    """exp(x - max) (B, N, V), max (B, N), written to ``tops`` if that is given, and the sum (B, N)."""
    probs = torch.empty_like(x)
    tops, totals = x.new_empty(x.shape[:2]) if tops is None else tops, x.new_empty(x.shape[:2])
    block = min(triton.next_power_of_2(x.shape[2]), _ROW)
    _exp_rows_kernel[(tops.numel(),)](x, probs, tops, totals, x.shape[2], BLOCK=block, num_warps=_warps(block))
    return probs, tops, totals


def _groups(am: Tensor) -> List[slice]:
    """Utterances of am (B, T, V) whose exponentials are held at the same time."""
    size = len(am) if am.numel() <= _WHOLE else max(1, _PROBS // (am.shape[1] * am.shape[2]))
    return [slice(first, first + size) for first in range(0, len(am), size)]


def _warps(block: int) -> int:
    return min(max(block // 256, 1), 8)


class _SimpleLoss(torch.autograd.Function):
    """Scores (B,) of the simple joiner and the occupations of its arcs, px (B, S, T [+ 1]) and py (B, S + 1, T)."""

    @staticmethod
    @on_its_device
    def forward(
        ctx, lm: Tensor, am: Tensor, symbols: Tensor, boundary: Tensor, blank: int, lm_scale: float, am_scale: float,
        rnnt_type: str, delay_penalty: float, with_grad: bool,
    ):  # fmt: skip
        ctx.set_materialize_grads(False)  # only scores have a gradient
        batch, frames, vocab = am.shape
        num_symbols, rows = symbols.shape[1], lm.shape[1]
        regular, constrained = rnnt_type == "regular", rnnt_type == "constrained"
        lm, am, symbols, boundary = lm.contiguous(), am.contiguous(), symbols.contiguous(), boundary.contiguous()
        lm_probs, lm_top, lm_total = _exp_rows(lm)
        am_top, overlap = am.new_empty((batch, frames)), am.new_empty((batch, rows, frames))
        unigram, am_total = lm_total, lm_total  # read only if am_scale is not 0
        if am_scale != 0.0:
            # k2's unigram is the mean over all rows of the batch, padding included.
            unigram = torch.mv(lm_probs.view(-1, vocab).t(), lm_total.reciprocal().view(-1)).div_(batch * rows)
            unigram.add_(torch.finfo(am.dtype).tiny)
            am_total = torch.empty_like(am_top)
        for some in _groups(am):
            am_probs = _exp_rows(am[some], am_top[some])[0]
            torch.matmul(lm_probs[some], am_probs.transpose(1, 2), out=overlap[some])
            if am_scale != 0.0:
                torch.matmul(am_probs, unigram, out=am_total[some])
        del am_probs, lm_probs
        # The arcs of one step are contiguous: element (s, t) is in row t, or row s + t, of the buffer.
        lattice = Lattice(boundary, num_symbols, frames, regular, False, None)
        strides = (lattice.steps * rows, rows + 1 if regular else 1, rows)
        px, py = (am.new_empty(batch * strides[0]).as_strided((batch, n, frames), strides) for n in (rows, rows))
        scales = (1.0 - lm_scale - am_scale, lm_scale, am_scale)
        _arcs_kernel[(batch, rows, triton.cdiv(frames, _FRAMES))](
            am, am_top, am_total, lm, lm_top, lm_total, overlap, unigram, symbols, boundary, px, py,
            num_symbols, frames, vocab, blank, *strides, TINY=torch.finfo(am.dtype).tiny, BOTH=scales[0],
            LM_ONLY=lm_scale, AM_ONLY=am_scale, DELAY=delay_penalty, CONSTRAINED=constrained, BLOCK=_FRAMES,
            num_warps=2,
        )  # fmt: skip
        scores, differences = lattice.scores(px, py, with_grad)
        if not with_grad:
            return scores.to(am.dtype), None, None
        px_grad, py_grad = zeros_of_shapes(am, (batch, num_symbols, frames + regular), (batch, rows, frames))
        lattice.occupation(scores, differences, px_grad, py_grad)
        ctx.save_for_backward(lm, am, symbols, overlap, lm_total, unigram, am_total, px_grad, py_grad)
        ctx.blank, ctx.scales, ctx.constrained = blank, scales, constrained
        ctx.mark_non_differentiable(px_grad, py_grad)
        return scores.to(am.dtype), px_grad, py_grad

    @staticmethod
    @once_differentiable
    @without_autocast
    @on_its_device
    def backward(ctx, scores_grad: Tensor, _px_grad, _py_grad):
        lm, am, symbols, overlap, lm_total, unigram, am_total, px_grad, py_grad = ctx.saved_tensors
        both_scale, lm_scale, am_scale = ctx.scales
        batch, frames, vocab = am.shape
        num_symbols, rows, columns = symbols.shape[1], lm.shape[1], px_grad.shape[2]
        scale = scores_grad.contiguous()
        ratio = torch.empty_like(overlap)
        px_sum, py_sum = am.new_empty((2, batch, rows)).unbind(0)
        limit = torch.finfo(am.dtype).max * 1e-6
        tiny = torch.finfo(am.dtype).tiny
        block = min(triton.next_power_of_2(frames), _ROW)
        _visits_kernel[(batch, rows)](
            px_grad, py_grad, scale, overlap, ratio, px_sum, py_sum, num_symbols, frames, columns,
            TINY=tiny, LIMIT=limit, BOTH=both_scale, CONSTRAINED=ctx.constrained, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
        part = per_row = dots = scale  # read only if am_scale is not 0
        if am_scale != 0.0:
            visits = (py_grad.sum(1) + px_grad[:, :, :frames].sum(1) * (1 + ctx.constrained)) * scale[:, None]
            part = (visits * -am_scale / am_total).clamp_(-limit, limit)
            counts = torch.zeros_like(unigram).index_add_(0, symbols.view(-1), px_sum[:, :num_symbols].reshape(-1))
            counts[ctx.blank] += py_sum.sum()
            unigram_grad = (counts * am_scale / unigram).clamp_(-limit, limit)
        am_grad, lm_grad = torch.empty_like(am), torch.empty_like(lm)
        block = min(triton.next_power_of_2(vocab), _ROW)
        for some in _groups(am):
            am_probs, lm_probs = _exp_rows(am[some])[0], _exp_rows(lm[some])[0]
            torch.matmul(ratio[some].transpose(1, 2), lm_probs, out=am_grad[some])
            torch.matmul(ratio[some], am_probs, out=lm_grad[some])
            if am_scale != 0.0:
                unigram_grad.addmv_(am_probs.view(-1, vocab).t(), part[some].view(-1))
            _am_grad_kernel[(len(am_probs) * frames,)](
                am_grad[some], am_probs, part[some], unigram, vocab, AM_ONLY=am_scale, BLOCK=block,
                num_warps=_warps(block),
            )  # fmt: skip
        del am_probs, lm_probs
        lm_probs = _exp_rows(lm)[0]
        if am_scale != 0.0:
            per_row = unigram_grad / (batch * rows)
            dots = torch.matmul(lm_probs, per_row)
        _lm_grad_kernel[(batch, rows)](
            lm_grad, lm_probs, symbols, lm_total, px_sum, py_sum, per_row, dots, num_symbols, vocab, ctx.blank,
            BOTH=both_scale, LM_ONLY=lm_scale, AM_ONLY=am_scale, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
        _taken_kernel[(batch, triton.cdiv(frames, _FRAMES))](
            am_grad, symbols, px_grad, py_grad, scale, num_symbols, frames, columns, vocab, ctx.blank,
            BOTH=both_scale, AM_ONLY=am_scale, CONSTRAINED=ctx.constrained, BLOCK=_FRAMES, num_warps=4,
        )  # fmt: skip
        return lm_grad, am_grad, *[None] * 8


def simple_scores(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    boundary: Tensor,
    blank: int,
    lm_only_scale: float,
    am_only_scale: float,
    rnnt_type: str,
    delay_penalty: float,
    return_grad: bool,
) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
    """Log-scores (B,) of the smoothed simple joiner, and the occupations of its arcs if requested.

    lm (B, S + 1, V), am (B, T, V), symbols (B, S), boundary (B, 4); scales and types as in `rnnt_loss_smoothed`.
    """
    with_grad = return_grad or (torch.is_grad_enabled() and (lm.requires_grad or am.requires_grad))
    return _SimpleLoss.apply(
        lm, am, symbols, boundary, blank, lm_only_scale, am_only_scale, rnnt_type, delay_penalty, with_grad
    )

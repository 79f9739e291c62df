"""The simple and the smoothed transducer loss: logits[t, s] = am[t] + lm[s], without the (B, T, S + 1, V) tensor.

    log sum_v exp(am[t, v] + lm[s, v])  =  log (exp(am) @ exp(lm)^T)[t, s]

so the normaliser of every cell comes from one matrix product (Kuang et al., "Pruned RNN-T for fast,
memory-efficient ASR training", 2022, section 3.1). The backward pass is explicit: it keeps two (B, *, V) tensors and
cannot overflow. Where exp(am) and exp(lm) do not overlap at all, 1 / normaliser is as large as the type allows, and
sums of such terms would be inf, then inf * 0 = NaN; they are clamped before the summation.
"""

from __future__ import annotations

from typing import Optional, Tuple, Union

import torch
from torch import Tensor

from tokenverse_pp.losses.devices import triton_kernels
from tokenverse_pp.losses.native.lattice import (
    at_least_float32,
    check_rnnt_type,
    checked_boundary,
    delay_offsets,
    mutual_information_recursion,
    once_differentiable,
    reduce_loss,
    without_autocast,
)


def _safe_divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b, clamped so that sums over a million terms stay finite."""
    limit = torch.finfo(a.dtype).max * 1e-6
    return (a / b).clamp_(-limit, limit)


class _SimpleArcs(torch.autograd.Function):
    """px (B, S, T) and py (B, S + 1, T) of the simple joiner, mixed with LM-only and AM-only scores."""

    @staticmethod
    def forward(ctx, lm: Tensor, am: Tensor, symbols: Tensor, blank: int, lm_scale: float, am_scale: float):
        num_symbols = symbols.shape[1]
        both_scale = 1.0 - lm_scale - am_scale
        tiny = torch.finfo(am.dtype).tiny
        am_max, lm_max = am.amax(2, keepdim=True), lm.amax(2, keepdim=True)
        am_probs, lm_probs = (am - am_max).exp_(), (lm - lm_max).exp_()
        overlap = torch.matmul(lm_probs, am_probs.transpose(1, 2)).add_(tiny)  # (B, S + 1, T)
        normaliser = overlap.log().add_(lm_max).add_(am_max.transpose(1, 2))

        am_symbol = am.gather(2, symbols.unsqueeze(1).expand(-1, am.shape[1], -1)).transpose(1, 2)  # (B, S, T)
        lm_symbol = lm[:, :num_symbols].gather(2, symbols.unsqueeze(2))  # (B, S, 1)
        am_blank, lm_blank = am[:, :, blank].unsqueeze(1), lm[:, :, blank].unsqueeze(2)
        px = (am_symbol + lm_symbol).sub_(normaliser[:, :num_symbols]).mul_(both_scale)
        py = (am_blank + lm_blank).sub_(normaliser).mul_(both_scale)
        saved = [am_probs, lm_probs, overlap, symbols]
        if lm_scale != 0.0 or am_scale != 0.0:
            lm_total = lm_probs.sum(2, keepdim=True)
            # k2's unigram is the mean over all rows of the batch, padding included.
            unigram = (lm_probs / lm_total).mean((0, 1)).add_(tiny)  # (V,)
            am_total = torch.matmul(am_probs, unigram)  # (B, T)
            lm_only = lm_total.log() + lm_max
            am_only = am_total.log().unsqueeze(1) + am_max.transpose(1, 2)
            unigram_log = unigram.log()
            px.add_(lm_symbol - lm_only[:, :num_symbols], alpha=lm_scale)
            px.add_(am_symbol - am_only, alpha=am_scale).add_(unigram_log[symbols].unsqueeze(2), alpha=am_scale)
            py.add_(lm_blank - lm_only, alpha=lm_scale)
            py.add_(am_blank - am_only + unigram_log[blank], alpha=am_scale)
            saved += [lm_total, unigram, am_total]
        ctx.save_for_backward(*saved)
        ctx.blank, ctx.scales = blank, (both_scale, lm_scale, am_scale)
        return px, py

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, px_grad: Tensor, py_grad: Tensor):
        am_probs, lm_probs, overlap, symbols, *smoothing = ctx.saved_tensors
        both_scale, lm_scale, am_scale = ctx.scales
        num_symbols = symbols.shape[1]
        visits = py_grad.clone()
        visits[:, :num_symbols] += px_grad  # (B, S + 1, T): both arcs of a cell share its normaliser
        ratio = _safe_divide(visits, overlap).mul_(-both_scale)
        am_grad = torch.matmul(ratio.transpose(1, 2), lm_probs)
        lm_grad = torch.matmul(ratio, am_probs)
        px_sum, py_sum = px_grad.sum(2), py_grad.sum(2)
        if smoothing:
            lm_total, unigram, am_total = smoothing
            am_part, unigram_grad = _am_only_grad(visits, am_probs, am_total, am_scale)
            am_grad.addcmul_(am_part.unsqueeze(2), unigram)
            counts = torch.zeros_like(unigram).index_add_(0, symbols.reshape(-1), px_sum.reshape(-1))
            counts[ctx.blank] += py_sum.sum()
            unigram_grad += _safe_divide(counts * am_scale, unigram)
            lm_grad += _lm_only_grad(visits, lm_probs, lm_total, unigram_grad, lm_scale)
        am_grad.mul_(am_probs)
        lm_grad.mul_(lm_probs)
        index = symbols.unsqueeze(1).expand(-1, am_grad.shape[1], -1)
        am_grad.scatter_add_(2, index, px_grad.transpose(1, 2) * (both_scale + am_scale))
        am_grad[:, :, ctx.blank] += py_grad.sum(1) * (both_scale + am_scale)
        lm_grad[:, :num_symbols].scatter_add_(2, symbols.unsqueeze(2), (px_sum * (both_scale + lm_scale)).unsqueeze(2))
        lm_grad[:, :, ctx.blank] += py_sum * (both_scale + lm_scale)
        return lm_grad, am_grad, None, None, None, None


def _am_only_grad(visits: Tensor, am_probs: Tensor, am_total: Tensor, scale: float) -> Tuple[Tensor, Tensor]:
    """Backward of -scale * log(am_probs @ unigram): am_probs' gradient is (first result) * unigram."""
    part = _safe_divide(visits.sum(1) * -scale, am_total)  # (B, T)
    return part, torch.matmul(part.reshape(-1), am_probs.reshape(-1, am_probs.shape[2]))


def _lm_only_grad(visits: Tensor, lm_probs: Tensor, lm_total: Tensor, unigram_grad: Tensor, scale: float) -> Tensor:
    """Gradient of lm_probs through its row sum and through the unigram, which averages lm_probs / row sum."""
    rows = lm_probs.shape[0] * lm_probs.shape[1]
    per_row = unigram_grad / rows
    total_grad = visits.sum(2, keepdim=True) * -scale
    total_grad -= torch.matmul(lm_probs, per_row).unsqueeze(2) / lm_total
    return (total_grad + per_row) / lm_total


LossAndGrads = Union[Tensor, Tuple[Tensor, Tuple[Tensor, Tensor]]]


def finish_arcs(
    px: Tensor, py: Tensor, boundary: Tensor, rnnt_type: str, delay_penalty: float
) -> Tuple[Tensor, Tensor]:
    """Turn px (B, S, T), py (B, S + 1, T) into the input of k2's recursion for `rnnt_type`.

    regular: px gets a column T + 1, and is -inf at each sequence's end frame. constrained: a symbol's arc
    includes the blank that follows it. The delay penalty is added last.
    """
    check_rnnt_type(rnnt_type)
    num_frames = px.shape[2]
    if rnnt_type == "regular":
        px = torch.nn.functional.pad(px, (0, 1), value=float("-inf"))
        end = boundary[:, 3].reshape(-1, 1, 1).expand(-1, px.shape[1], 1)
        px = px.scatter(2, end, float("-inf"))
    elif rnnt_type == "constrained":
        px = px + py[:, 1:]
    if delay_penalty > 0.0:
        columns = num_frames + (rnnt_type == "regular")
        px = px + delay_offsets(boundary, columns, delay_penalty, px.dtype).unsqueeze(1)
    return px, py


def check_simple_shapes(lm: Tensor, am: Tensor, symbols: Tensor) -> None:
    """Raise ValueError if lm, am and symbols do not match."""
    batch, num_symbols = symbols.shape
    if lm.shape != (batch, num_symbols + 1, am.shape[2]) or am.shape[0] != batch:
        raise ValueError(
            f"expected lm (B, S+1, V), am (B, T, V), symbols (B, S); given {tuple(lm.shape)}, "
            f"{tuple(am.shape)}, {tuple(symbols.shape)}"
        )


def rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: Optional[str] = "mean",
    return_grad: bool = False,
) -> LossAndGrads:
    """Transducer loss with joiner = am + lm, interpolated with LM-only and AM-only scores; as in k2.

    Each arc scores `(1 - lm_only_scale - am_only_scale) * both + lm_only_scale * lm + am_only_scale * am`,
    all log-probabilities. The AM-only part uses the unigram of the whole batch, padding included, as in k2,
    so losses depend slightly on the rest of the batch.

    Args:
      lm: (B, S + 1, V) unnormalised scores of the predictor's side.
      am: (B, T, V) unnormalised scores of the encoder's side.
      symbols: (B, S) int64.
      termination_symbol: id of the blank.
      lm_only_scale, am_only_scale: see above.
      boundary: (B, 4) int64, rows [begin_symbol, begin_frame, end_symbol, end_frame]; default [0, 0, S, T].
      rnnt_type: `regular`, `modified` (a symbol uses up its frame), `constrained` (a symbol is followed by a
        blank).
      delay_penalty: adds penalty * ((T - 1) / 2 - t) to the symbol arcs.
      reduction: `none`, `mean` (over the batch) or `sum`.
      return_grad: also return the occupation probabilities of (px, py), for `get_rnnt_prune_ranges`.

    Returns:
      Negative log-likelihood, (B,) or a scalar; or (loss, (px_grad, py_grad)) with px_grad (B, S, T + 1) for
      `regular`, (B, S, T) otherwise, and py_grad (B, S + 1, T).
    """
    check_simple_shapes(lm, am, symbols)
    lm, am = at_least_float32(lm), at_least_float32(am)
    boundary = checked_boundary(boundary, am.shape[0], symbols.shape[1], am.shape[1], am.device)
    with torch.autocast(am.device.type, enabled=False):
        kernels = triton_kernels(am)
        if kernels is not None:
            check_rnnt_type(rnnt_type)
            scores, *grads = kernels.simple_scores(
                lm, am, symbols, boundary, termination_symbol, lm_only_scale, am_only_scale, rnnt_type, delay_penalty,
                return_grad,
            )  # fmt: skip
            loss = reduce_loss(-scores, reduction)
            return (loss, tuple(grads)) if return_grad else loss
        px, py = _SimpleArcs.apply(lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale)
        px, py = finish_arcs(px, py, boundary, rnnt_type, delay_penalty)
        scores = mutual_information_recursion(px, py, boundary, return_grad)
    if isinstance(scores, tuple):
        return reduce_loss(-scores[0], reduction), scores[1]
    return reduce_loss(-scores, reduction)


def rnnt_loss_simple(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: Optional[str] = "mean",
    return_grad: bool = False,
) -> LossAndGrads:
    """The transducer loss with joiner = am + lm: `rnnt_loss_smoothed` with both scales 0; as in k2."""
    return rnnt_loss_smoothed(
        lm=lm,
        am=am,
        symbols=symbols,
        termination_symbol=termination_symbol,
        lm_only_scale=0.0,
        am_only_scale=0.0,
        boundary=boundary,
        rnnt_type=rnnt_type,
        delay_penalty=delay_penalty,
        reduction=reduction,
        return_grad=return_grad,
    )

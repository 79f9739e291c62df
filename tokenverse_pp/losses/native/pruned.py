"""Pruning bounds, pruned joiner inputs, and the transducer loss from logits (full lattice or pruned band)."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor

from tokenverse_pp.losses.devices import triton_kernels
from tokenverse_pp.losses.native.lattice import (
    at_least_float32,
    band_recursion,
    check_rnnt_type,
    checked_boundary,
    delay_offsets,
    mutual_information_recursion,
    once_differentiable,
    reduce_loss,
    without_autocast,
)
from tokenverse_pp.losses.native.simple import finish_arcs


def _suffix_minimum(x: Tensor) -> Tensor:
    """The largest non-decreasing lower bound of x along the last axis."""
    return x.flip(-1).cummin(-1).values.flip(-1)


def _make_reachable(begin: Tensor, max_step: int) -> Tensor:
    """Lower `begin` (B, T) until it starts at 0, never falls, and rises by at most `max_step` per frame.

    With c[t] = max_step * t - begin[t], the last condition means that c never falls.
    """
    begin = _suffix_minimum(begin)
    ramp = max_step * torch.arange(begin.shape[1], device=begin.device)
    return ramp - _suffix_minimum(ramp - begin).clamp(min=0)


def get_rnnt_prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """The `s_range` consecutive symbol positions that carry most of each frame's probability; as in k2.

    Kuang et al. 2022, section 3.2: the score of a window that starts at s is the occupation of the blanks
    inside it, minus that of the symbol arc that enters it from below at the same frame.

    Args:
      px_grad: (B, S, T + 1) or (B, S, T), occupation of the symbol arcs.
      py_grad: (B, S + 1, T), occupation of the blank arcs.
      boundary: (B, 4) int64.
      s_range: positions to keep, at least 2 for the regular topology and 1 for the others. At most
        S + 1 are kept.

    Returns:
      (B, T, min(s_range, S + 1)) int64; the first column starts at 0, never falls and rises by less than s_range
      per frame (by at most 1 for modified/constrained). On the last frame the window contains the last symbol
      if there are enough frames; otherwise the pruned loss is +inf.
    """
    _, num_symbols, columns = px_grad.shape
    num_frames = py_grad.shape[2]
    regular = columns == num_frames + 1
    if s_range < (2 if regular else 1):
        raise ValueError(f"s_range should be at least {2 if regular else 1}, given {s_range}")
    s_range = min(s_range, num_symbols + 1)
    kernels = triton_kernels(py_grad)
    if kernels is not None:
        return kernels.prune_ranges(px_grad, py_grad, boundary, s_range)
    in_window = py_grad.unfold(1, s_range, 1).sum(-1)  # (B, S + 2 - s_range, T)
    from_below = torch.nn.functional.pad(px_grad[:, : num_symbols + 1 - s_range, :num_frames], (0, 0, 1, 0))
    begin = (in_window - from_below).argmax(1)  # (B, T)

    # From the last valid frame on, the window ends at the last symbol.
    frames = torch.arange(num_frames, device=begin.device)
    last_begin = (boundary[:, 2:3] - s_range + 1).clamp(min=0)
    begin = torch.where(frames < boundary[:, 3:4] - 1, begin, last_begin)

    begin = _make_reachable(begin, max_step=s_range - 1 if regular else 1)
    return begin.unsqueeze(2) + torch.arange(s_range, device=begin.device)


def do_rnnt_pruning(am: Tensor, lm: Tensor, ranges: Tensor) -> Tuple[Tensor, Tensor]:
    """Both inputs of the joiner at the kept positions; as in k2.

    Args:
      am: (B, T, J), lm: (B, S + 1, K), ranges: (B, T, R) from `get_rnnt_prune_ranges`.

    Returns:
      am (B, T, R, J), a view, and lm (B, T, R, K).
    """
    batch = torch.arange(lm.shape[0], device=lm.device).reshape(-1, 1, 1)
    return am.unsqueeze(2).expand(-1, -1, ranges.shape[2], -1), lm[batch, ranges]


def rnnt_loss(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: Optional[str] = "mean",
) -> Tensor:
    """The unpruned transducer loss of joiner outputs, logits (B, T, S + 1, V); as in k2.

    The other arguments are those of `rnnt_loss_smoothed`. Returns (B,) or a scalar.
    """
    batch, num_frames, positions, _ = logits.shape
    num_symbols = positions - 1
    if symbols.shape != (batch, num_symbols):
        raise ValueError(f"logits {tuple(logits.shape)} need symbols (B, S), given {tuple(symbols.shape)}")
    boundary = checked_boundary(boundary, batch, num_symbols, num_frames, logits.device)
    with torch.autocast(logits.device.type, enabled=False):
        kernels = triton_kernels(logits)
        if kernels is not None:
            begins = symbols.new_zeros((batch, num_frames))
            plan = kernels.BandPlan(begins, positions, symbols.contiguous(), boundary.contiguous(), termination_symbol)
            px, py = kernels.gather_log_probs(logits, plan)
            loss = band_loss(px, py, begins.unsqueeze(2), boundary, num_symbols, rnnt_type, delay_penalty)
            return reduce_loss(loss, reduction)
        ranges = torch.arange(positions, device=logits.device).expand(batch, num_frames, -1)
        px, py = log_probs_of_logits(logits, symbols, ranges, boundary, termination_symbol)
        px = px[:, :, :num_symbols].transpose(1, 2)
        px, py = finish_arcs(px, py.transpose(1, 2), boundary, rnnt_type, delay_penalty)
        scores = mutual_information_recursion(px, py, boundary)
    assert isinstance(scores, Tensor)
    return reduce_loss(-scores, reduction)


def targets_in_band(symbols: Tensor, ranges: Tensor, termination_symbol: int) -> Tensor:
    """The next symbol at each kept position, (B, T, R); blank at position S, past the end."""
    padded = torch.nn.functional.pad(symbols, (0, 1), value=termination_symbol)
    return padded.gather(1, ranges.flatten(1)).view_as(ranges)


def band_loss(
    px: Tensor,
    py: Tensor,
    ranges: Tensor,
    boundary: Tensor,
    num_symbols: int,
    rnnt_type: str,
    delay_penalty: float,
) -> Tensor:
    """Negative log-likelihood (B,) of a band of arc scores px, py (B, T, R)."""
    check_rnnt_type(rnnt_type)
    if rnnt_type == "constrained":
        # The blank after a symbol is one position further; beyond the band it is pruned.
        px = px + torch.nn.functional.pad(py[:, :, 1:], (0, 1), value=float("-inf"))
    if delay_penalty > 0.0:
        px = px + delay_offsets(boundary, px.shape[1], delay_penalty, px.dtype).unsqueeze(2)
    return -band_recursion(px, py, ranges, boundary, num_symbols, rnnt_type)


class _LogProbs(torch.autograd.Function):
    """logits (B, T, R, V), targets and padding (B, T, R) -> log-probabilities of targets and of blank, both (B, T, R).

    The gradient of a row of padding is zero, whatever the row holds: by autograd it would be 0 * NaN.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, padding: Tensor, blank: int):
        normaliser = logits.logsumexp(3)
        # A row of -inf has no gradient, as in torch's logsumexp; -inf - -inf would be NaN.
        ctx.save_for_backward(logits, targets, padding, normaliser.masked_fill(normaliser == float("-inf"), 0.0))
        ctx.blank = blank
        return logits.gather(3, targets.unsqueeze(3)).squeeze(3) - normaliser, logits[..., blank] - normaliser

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, px_grad: Tensor, py_grad: Tensor):
        logits, targets, padding, normaliser = ctx.saved_tensors
        grad = (logits - normaliser.unsqueeze(3)).exp_().mul_((-px_grad - py_grad).unsqueeze(3))
        grad.scatter_add_(3, targets.unsqueeze(3), px_grad.unsqueeze(3))
        grad[..., ctx.blank] += py_grad
        return grad.masked_fill_(padding.unsqueeze(3), 0.0), None, None, None


def log_probs_of_logits(
    logits: Tensor, symbols: Tensor, ranges: Tensor, boundary: Tensor, blank: int
) -> Tuple[Tensor, Tensor]:
    """Log-probabilities of the next symbol and of blank, both (B, T, R), of logits (B, T, R, V) at ``ranges``."""
    frame = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1)
    _, begin_frame, end_symbol, end_frame = boundary.unsqueeze(2).unsqueeze(3).unbind(1)
    padding = (frame < begin_frame) | (frame >= end_frame) | (ranges > end_symbol)
    return _LogProbs.apply(at_least_float32(logits), targets_in_band(symbols, ranges, blank), padding, blank)


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: Optional[str] = "mean",
) -> Tensor:
    """The transducer loss of joiner outputs at the kept positions only, logits (B, T, R, V); as in k2.

    `ranges` (B, T, R) come from `get_rnnt_prune_ranges`, the other arguments are those of `rnnt_loss_smoothed`.
    This function needs all logits; `pruned_transducer_loss` never holds them.
    """
    batch, num_frames = logits.shape[:2]
    num_symbols = symbols.shape[1]
    if ranges.shape != logits.shape[:3]:
        raise ValueError(f"ranges {tuple(ranges.shape)} should be the first axes of logits {tuple(logits.shape)}")
    boundary = checked_boundary(boundary, batch, num_symbols, num_frames, logits.device)
    with torch.autocast(logits.device.type, enabled=False):
        kernels = triton_kernels(logits)
        if kernels is not None:
            begins = ranges[:, :, 0].contiguous()
            plan = kernels.BandPlan(
                begins, ranges.shape[2], symbols.contiguous(), boundary.contiguous(), termination_symbol
            )
            px, py = kernels.gather_log_probs(logits, plan)
        else:
            px, py = log_probs_of_logits(logits, symbols, ranges, boundary, termination_symbol)
        loss = band_loss(px, py, ranges, boundary, num_symbols, rnnt_type, delay_penalty)
    return reduce_loss(loss, reduction)

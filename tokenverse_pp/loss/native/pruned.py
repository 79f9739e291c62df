"""The transducer loss from given logits: over the whole lattice, or over a pruned band of it."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor

from tokenverse_pp.loss.native.common import (
    at_least_float32,
    check_rnnt_type,
    checked_boundary,
    delay_offsets,
    reduce_loss,
)
from tokenverse_pp.loss.native.lattice import band_recursion, mutual_information_recursion
from tokenverse_pp.loss.native.simple import finish_arcs


def rnnt_loss(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: Optional[str] = "mean",
) -> Tensor:
    """The unpruned transducer loss of joiner outputs, logits (B, T, S + 1, V); as k2's.

    The other arguments are those of `rnnt_loss_smoothed`. Returns (B,) or a scalar.
    """
    batch, num_frames, positions, _ = logits.shape
    num_symbols = positions - 1
    if symbols.shape != (batch, num_symbols):
        raise ValueError(f"logits {tuple(logits.shape)} need symbols (B, S), given {tuple(symbols.shape)}")
    boundary = checked_boundary(boundary, batch, num_symbols, num_frames, logits.device)
    with torch.autocast(logits.device.type, enabled=False):
        logits = at_least_float32(logits)
        index = symbols.reshape(batch, 1, num_symbols, 1).expand(-1, num_frames, -1, -1)
        normaliser = logits.logsumexp(3)
        px = logits[:, :, :num_symbols].gather(3, index).squeeze(3) - normaliser[:, :, :num_symbols]
        py = logits[:, :, :, termination_symbol] - normaliser
        px, py = finish_arcs(px.transpose(1, 2), py.transpose(1, 2), boundary, rnnt_type, delay_penalty)
        scores = mutual_information_recursion(px, py, boundary)
    assert isinstance(scores, Tensor)
    return reduce_loss(-scores, reduction)


def targets_in_band(symbols: Tensor, ranges: Tensor, termination_symbol: int) -> Tensor:
    """The symbol to be taken next at each kept position, (B, T, R); at position S, past the end, blank."""
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
        # The blank after a symbol stands one position further; past the band it is pruned away.
        px = px + torch.nn.functional.pad(py[:, :, 1:], (0, 1), value=float("-inf"))
    if delay_penalty > 0.0:
        px = px + delay_offsets(boundary, px.shape[1], delay_penalty, px.dtype).unsqueeze(2)
    return -band_recursion(px, py, ranges, boundary, num_symbols, rnnt_type)


def _band_from_logits(logits: Tensor, targets: Tensor, blank: int) -> Tuple[Tensor, Tensor]:
    normaliser = logits.logsumexp(3)
    return logits.gather(3, targets.unsqueeze(3)).squeeze(3) - normaliser, logits[..., blank] - normaliser


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
    """The transducer loss of joiner outputs at the kept positions only, logits (B, T, R, V); as k2's.

    `ranges` (B, T, R) come from `get_rnnt_prune_ranges`, the other arguments are those of `rnnt_loss_smoothed`.
    This function is given all logits; `pruned_transducer_loss` never holds them.
    """
    batch, num_frames = logits.shape[:2]
    num_symbols = symbols.shape[1]
    if ranges.shape != logits.shape[:3]:
        raise ValueError(f"ranges {tuple(ranges.shape)} should be the first axes of logits {tuple(logits.shape)}")
    boundary = checked_boundary(boundary, batch, num_symbols, num_frames, logits.device)
    with torch.autocast(logits.device.type, enabled=False):
        targets = targets_in_band(symbols, ranges, termination_symbol)
        px, py = _band_from_logits(at_least_float32(logits), targets, termination_symbol)
        loss = band_loss(px, py, ranges, boundary, num_symbols, rnnt_type, delay_penalty)
    return reduce_loss(loss, reduction)

"""The simple and the smoothed transducer loss: joiner = addition."""

from __future__ import annotations

from typing import Optional, Tuple, Union

import torch
from torch import Tensor

from tokenverse_pp.loss.native.arcs import simple_arcs
from tokenverse_pp.loss.native.common import (
    at_least_float32,
    check_rnnt_type,
    checked_boundary,
    delay_offsets,
    reduce_loss,
)
from tokenverse_pp.loss.native.lattice import mutual_information_recursion

LossAndGrads = Union[Tensor, Tuple[Tensor, Tuple[Tensor, Tensor]]]


def finish_arcs(
    px: Tensor, py: Tensor, boundary: Tensor, rnnt_type: str, delay_penalty: float
) -> Tuple[Tensor, Tensor]:
    """Turn px (B, S, T), py (B, S + 1, T) into what k2's recursion takes for `rnnt_type`.

    regular: px gets a column T + 1, and is -inf at each sequence's end frame. constrained: a symbol's arc
    also pays for the blank that follows it. Then the delay penalty.
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
    """Refuse lm, am and symbols that do not belong together."""
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
    """Transducer loss with joiner = am + lm, interpolated with LM-only and AM-only scores; as k2's.

    Each arc scores `(1 - lm_only_scale - am_only_scale) * both + lm_only_scale * lm + am_only_scale * am`,
    all log-probabilities. The AM-only part uses the unigram of the whole batch, padding included, as in k2:
    with it, losses depend a little on what else is in the batch.

    Args:
      lm: (B, S + 1, V) unnormalised scores of the predictor's side.
      am: (B, T, V) unnormalised scores of the encoder's side.
      symbols: (B, S) int64.
      termination_symbol: blank.
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
        px, py = simple_arcs(lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale)
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
    """The transducer loss with joiner = am + lm: `rnnt_loss_smoothed` with both scales 0; as k2's."""
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

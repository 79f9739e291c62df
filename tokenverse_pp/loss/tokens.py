"""How probable each target token is to a transducer: what a validation reports for each task."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from tokenverse_pp.loss import native
from tokenverse_pp.loss.entry import band_log_probs, simple_loss_and_ranges
from tokenverse_pp.loss.native.common import at_least_float32, checked_boundary
from tokenverse_pp.loss.native.pruned import band_loss


def token_log_probs(
    am_simple: Tensor,
    lm_simple: Tensor,
    am: Tensor,
    lm: Tensor,
    joiner_output: torch.nn.Linear,
    symbols: Tensor,
    boundary: Optional[Tensor] = None,
    *,
    blank: int = 0,
    prune_range: int = 5,
    rnnt_type: str = "regular",
) -> Tensor:
    """Expected log-probability of each target token, (N, U), in nats; 0 at padding.

    A transducer has no one probability of a token: it has one for each frame at which the token may be written.
    Given audio and transcript, a token is written at frame t with the posterior probability that the arc of the token
    is taken there; this is the mean of the arc's log-probability under that posterior. The posterior is the negative
    gradient of the loss with respect to the arc's score (k2 calls it the occupation probability).

    The arguments are those of `pruned_transducer_loss`; the native backend is used, without smoothing. No gradient.
    """
    n, num_symbols = symbols.shape
    boundary = checked_boundary(boundary, n, num_symbols, am.shape[1], am.device)
    with torch.no_grad(), torch.autocast(am.device.type, enabled=False):
        _, ranges = simple_loss_and_ranges(
            native, am_simple, lm_simple, symbols, boundary, blank=blank, prune_range=prune_range, lm_scale=0.0,
            am_scale=0.0, rnnt_type=rnnt_type,
        )  # fmt: skip
        am, lm = at_least_float32(am), at_least_float32(lm)
        px, py = band_log_probs(am, lm, joiner_output, symbols, ranges, boundary, blank, memory_budget=0)
        with torch.enable_grad():
            arcs = px.detach().requires_grad_()
            loss = band_loss(arcs, py, ranges, boundary, num_symbols, rnnt_type, 0.0)
            (gradient,) = torch.autograd.grad(loss[torch.isfinite(loss)].sum(), arcs)
        posterior = -gradient  # (N, T, R)
        weighted = torch.where(posterior > 0, posterior * px, posterior.new_zeros(()))  # pruned arcs score -inf
        total, mass = px.new_zeros(n, num_symbols + 1), px.new_zeros(n, num_symbols + 1)
        total.scatter_add_(1, ranges.flatten(1), weighted.flatten(1))
        mass.scatter_add_(1, ranges.flatten(1), posterior.flatten(1))
        mean = total / mass.clamp_min(torch.finfo(mass.dtype).tiny)
        padding = torch.arange(num_symbols, device=mean.device) >= boundary[:, 2:3]
        return mean[:, :num_symbols].masked_fill(padding, 0.0)

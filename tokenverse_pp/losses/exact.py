"""The exact (unpruned) transducer loss: of given logits, or of a joiner whose logits are never stored.

Both compute the loss of Graves (2012) with `losses.native`: on an NVIDIA GPU, one kernel processes the logits and one
the lattice.
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor

from tokenverse_pp.losses import native
from tokenverse_pp.losses.entry import band_log_probs
from tokenverse_pp.losses.native.lattice import at_least_float32, once_differentiable, reduce_loss
from tokenverse_pp.losses.native.pruned import band_loss


class _Upstream:
    """The gradient of the losses, (B,), which `_Unscaled` takes out of the backward pass and `_ClampGrad` puts back."""

    grad: Optional[Tensor] = None


class _Unscaled(torch.autograd.Function):
    """The identity of losses (B,); the backward pass goes on with the gradients of each loss itself."""

    @staticmethod
    def forward(ctx, losses: Tensor, upstream: _Upstream):
        ctx.upstream = upstream
        return losses.view_as(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        ctx.upstream.grad = grad
        return torch.ones_like(grad), None


class _ClampGrad(torch.autograd.Function):
    """The identity of logits (B, ..), whose gradient is clamped to [-limit, limit], then scaled by the upstream one."""

    @staticmethod
    def forward(ctx, logits: Tensor, limit: float, upstream: _Upstream):
        ctx.limit, ctx.upstream = limit, upstream
        return logits.view_as(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        scale = ctx.upstream.grad.view(-1, *[1] * (grad.ndim - 1))
        return grad.clamp(-ctx.limit, ctx.limit).mul_(scale), None, None


def _boundary(logit_lengths: Tensor, target_lengths: Tensor) -> Tensor:
    """k2's boundary (B, 4) for lengths (B,)."""
    target_lengths = target_lengths.to(logit_lengths.device)
    zeros = torch.zeros_like(target_lengths)
    return torch.stack([zeros, zeros, target_lengths, logit_lengths.to(zeros.dtype)], 1).long()


def _padded_with(blank: int, targets: Tensor, boundary: Tensor) -> Tensor:
    """Targets (B, U) as int64, with padding (any id) replaced by blank."""
    inside = torch.arange(targets.shape[1], device=targets.device) < boundary[:, 2:3]
    return torch.where(inside, targets.long(), torch.full_like(targets, blank, dtype=torch.int64))


def _check_shapes(batch: int, frames: int, positions: int, targets: Tensor, lengths: Tuple[Tensor, Tensor]) -> None:
    if targets.shape != (batch, positions - 1) or any(x.shape != (batch,) for x in lengths):
        raise ValueError(
            f"{batch} utterances of {positions} positions need targets ({batch}, {positions - 1}) and lengths "
            f"({batch},), given {tuple(targets.shape)}, {tuple(lengths[0].shape)} and {tuple(lengths[1].shape)}"
        )
    if frames == 0:
        raise ValueError("the loss needs at least one frame")


def rnnt_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = -1,
    clamp: float = -1,
    reduction: str = "mean",
    fused_log_softmax: bool = True,
) -> Tensor:
    """The transducer loss of given logits; signature and values of `torchaudio.functional.rnnt_loss`.

    Args:
      logits: (B, T, U + 1, V), float16 to float64.
      targets: (B, U), padded with any id.
      logit_lengths: (B,) frames of each utterance.
      target_lengths: (B,) targets of each utterance.
      blank: id of the blank; negative: counted from the end.
      clamp: if positive, the gradients of each utterance's loss with respect to its logits are clamped to
        [-clamp, clamp]; the gradient of that loss (1 / B for `mean`, the scale of mixed precision) is applied after.
      reduction: `none`, `mean` (over the batch) or `sum`.
      fused_log_softmax: False: the logits are log-probabilities already.

    Returns:
      (B,) or a scalar, float32 (float64 for float64 logits).
    """
    batch, frames, positions, vocab = logits.shape
    _check_shapes(batch, frames, positions, targets, (logit_lengths, target_lengths))
    blank %= vocab
    boundary = _boundary(logit_lengths.to(logits.device), target_lengths)
    targets = _padded_with(blank, targets.to(logits.device), boundary)
    upstream = _Upstream()
    if clamp > 0:
        logits = _ClampGrad.apply(logits, clamp, upstream)
    if fused_log_softmax:
        loss = native.rnnt_loss(logits, targets, blank, boundary, reduction="none")
    else:
        loss = _loss_of_log_probs(logits, targets, blank, boundary)
    return reduce_loss(_Unscaled.apply(loss, upstream) if clamp > 0 else loss, reduction)


def _loss_of_log_probs(logits: Tensor, targets: Tensor, blank: int, boundary: Tensor) -> Tensor:
    """The losses (B,) of log-probabilities (B, T, U + 1, V); the other arguments as `rnnt_loss` passes them on."""
    batch, frames, positions, _ = logits.shape
    with torch.autocast(logits.device.type, enabled=False):
        logits = at_least_float32(logits)
        begins = torch.arange(positions, device=logits.device).expand(batch, frames, -1)
        symbols = torch.nn.functional.pad(targets, (0, 1), value=blank)
        px = logits.gather(3, symbols.view(batch, 1, -1, 1).expand(-1, frames, -1, -1)).squeeze(3)
        return band_loss(px, logits[..., blank], begins, boundary, positions - 1, "regular", 0.0)


def rnnt_loss_joiner(
    am: Tensor,
    lm: Tensor,
    linear: torch.nn.Module,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = -1,
    reduction: str = "mean",
    activation: str = "tanh",
    memory_budget: Optional[int] = None,
) -> Tensor:
    """The transducer loss of the logits ``linear(activation(am[:, :, None] + lm[:, None]))``, which are never stored.

    They are computed in chunks, and recomputed in the backward pass. Under autocast the matrix products run in
    autocast's type.

    Args:
      am: (B, T, J) and lm: (B, U + 1, J): the joiner's projections of encoder and predictor.
      linear: the joiner's last layer, from J to V, with `weight` and `bias`.
      targets, logit_lengths, target_lengths, blank, reduction: see `rnnt_loss`.
      activation: `tanh` or `relu`.
      memory_budget: bytes of chunks that may be kept between forward and backward instead of recomputing them.
        Default: none.

    Returns:
      (B,) or a scalar, float32 (float64 for float64 parameters).
    """
    (batch, frames, _), positions = am.shape, lm.shape[1]
    _check_shapes(batch, frames, positions, targets, (logit_lengths, target_lengths))
    if activation not in ("tanh", "relu"):
        raise ValueError(f"activation should be tanh or relu, given {activation!r}")
    weight = linear.weight
    assert isinstance(weight, Tensor)
    blank %= len(weight)
    boundary = _boundary(logit_lengths.to(am.device), target_lengths)
    targets = _padded_with(blank, targets.to(am.device), boundary)
    ranges = torch.arange(positions, device=am.device).expand(batch, frames, -1)
    px, py = band_log_probs(am, lm, linear, targets, ranges, boundary, blank, memory_budget or 0, activation)
    with torch.autocast(am.device.type, enabled=False):
        loss = band_loss(px, py, ranges, boundary, positions - 1, "regular", 0.0)
    return reduce_loss(loss, reduction)

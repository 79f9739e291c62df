"""The transducer loss of a model: simple loss for the pruning bounds, pruned loss for the joiner.

Backends are the native loss (Triton kernels on an NVIDIA GPU, PyTorch elsewhere) and k2. The module also has the
log-probability of each target token, which validation reports per task.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.losses import native
from tokenverse_pp.losses.devices import autocast_type, triton_kernels, triton_problem, use_kernels
from tokenverse_pp.losses.k2 import load_k2, use_k2
from tokenverse_pp.losses.native.joiner import joiner_log_probs, make_plan
from tokenverse_pp.losses.native.lattice import at_least_float32, check_rnnt_type, checked_boundary, reduce_loss
from tokenverse_pp.losses.native.pruned import band_loss, targets_in_band

BACKENDS = ("auto", "native", "triton", "torch", "k2")

# Bytes that the native backend keeps between forward and backward by default; see `pruned_transducer_loss`. On a GPU,
# recomputing chunks costs less than a larger batch in the same memory gains.
DEFAULT_MEMORY_BUDGET = 512 * 2**20
DEFAULT_MEMORY_BUDGET_GPU = 32 * 2**20


class TransducerLoss(NamedTuple):
    """Negative log-likelihoods (positive numbers), shape (B,) or scalars, by `reduction`."""

    simple: Tensor
    pruned: Tensor


def resolve_backend(backend: str, device: torch.device) -> str:
    """Return the backend that computes the loss on a device: `triton`, `torch` or `k2`.

    `native` is Triton on an NVIDIA GPU where it works, PyTorch elsewhere. `auto` is native, but k2 on a GPU where
    k2 works and Triton does not. If an installed package cannot be used, a warning gives the reason, once.

    Raises:
      UserError: the name is unknown.
    """
    if backend not in BACKENDS:
        raise UserError(f"loss backend should be one of {', '.join(BACKENDS)}, given {backend!r}")
    if backend in ("triton", "torch", "k2"):
        return backend
    if device.type == "cuda" and triton_problem(device) is None:
        return "triton"
    return "k2" if backend == "auto" and use_k2(device) else "torch"


def max_target_length(num_frames: int, prune_range: int = 5, rnnt_type: str = "regular") -> int:
    """The longest target whose pruned loss is finite for an utterance of `num_frames` frames.

    `regular` allows several symbols per frame, at most prune_range - 1 in a band of `prune_range`
    positions; the other types allow one symbol per frame.
    """
    check_rnnt_type(rnnt_type)
    return num_frames * (prune_range - 1 if rnnt_type == "regular" else 1)


def joiner_dtype(x: Tensor) -> torch.dtype:
    """Type of the joiner's matrix products: autocast's if it is on for the device, else at least float32."""
    return x.dtype if x.dtype == torch.float64 else autocast_type(x.device.type) or torch.float32


def pruned_transducer_loss(
    am_simple: Tensor,
    lm_simple: Tensor,
    am: Tensor,
    lm: Tensor,
    joiner_output: torch.nn.Module,
    symbols: Tensor,
    boundary: Optional[Tensor] = None,
    *,
    blank: int = 0,
    prune_range: int = 5,
    lm_scale: float = 0.25,
    am_scale: float = 0.0,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    backend: str = "auto",
    memory_budget: Optional[int] = None,
    reduction: str = "none",
    activation: str = "tanh",
) -> TransducerLoss:
    """Simple and pruned transducer loss (Kuang et al. 2022), the recipe of icefall's transducer models.

    1. the smoothed loss of the simple joiner am_simple + lm_simple, with occupation probabilities;
    2. from these, `prune_range` symbol positions per frame;
    3. the loss of the real joiner, `joiner_output(activation(am + lm))`, at these positions only.

    Under autocast the joiner's matrix products run in autocast's type; everything else in float32 (float64
    for float64 inputs), the lattice in float64.

    Args:
      am_simple: (N, T, V) and lm_simple: (N, U + 1, V): the simple projections' outputs.
      am: (N, T, J) and lm: (N, U + 1, J): the joiner's projections of encoder and predictor.
      joiner_output: the joiner's last layer, a Linear from J to V with `weight` and `bias`.
      symbols: (N, U) int64, without blank; padding may be any valid symbol.
      boundary: (N, 4) int64, rows [0, 0, number of symbols, number of frames]; None: all are full length.
      blank: id of the blank.
      prune_range: symbol positions kept per frame.
      lm_scale, am_scale: smoothing of the simple loss.
      rnnt_type: `regular`, `modified` or `constrained`.
      delay_penalty: penalty on late symbols, for both losses.
      backend: `auto`, `native`, `triton`, `torch` or `k2`; see `resolve_backend`.
      memory_budget: bytes the native backend may keep between forward and backward for the joiner: hidden
        rows and exponentials of the logits, (J + V) numbers for each of the sum(frames) * prune_range rows.
        Chunks beyond it are recomputed in the backward pass, which costs one more matrix product and no
        memory. 0: always recompute. Default: 512 MiB on a CPU, 32 MiB on a GPU. k2 ignores the budget and
        holds all logits.
      reduction: `none`: (N,), or `mean`, `sum` over the batch.
      activation: the joiner's, `tanh` or `relu`.

    Returns:
      (simple, pruned) losses. An utterance too long for its frames (`max_target_length`) has loss +inf and
      zero gradients on the native backend.

    Raises:
      UserError: the backend is unknown, or the requested one is not installed or cannot be used.
    """
    check_rnnt_type(rnnt_type)
    chosen = resolve_backend(backend, am.device)
    library: Any = load_k2(am.device) if chosen == "k2" else native
    if memory_budget is None:
        memory_budget = DEFAULT_MEMORY_BUDGET_GPU if am.is_cuda else DEFAULT_MEMORY_BUDGET
    with use_kernels(None if chosen == "k2" else chosen):
        boundary = checked_boundary(boundary, am.shape[0], symbols.shape[1], am.shape[1], am.device)
        simple, ranges = simple_loss_and_ranges(
            library, am_simple, lm_simple, symbols, boundary, blank=blank, prune_range=prune_range, lm_scale=lm_scale,
            am_scale=am_scale, rnnt_type=rnnt_type, delay_penalty=delay_penalty, reduction=reduction,
        )  # fmt: skip
        if chosen != "k2":
            px, py = band_log_probs(am, lm, joiner_output, symbols, ranges, boundary, blank, memory_budget, activation)
            with torch.autocast(am.device.type, enabled=False):
                losses = band_loss(px, py, ranges, boundary, symbols.shape[1], rnnt_type, delay_penalty)
            return TransducerLoss(simple, reduce_loss(losses, reduction))
    am_band, lm_band = library.do_rnnt_pruning(am, lm, ranges)
    logits = joiner_output(getattr(torch, activation)(am_band + lm_band))
    with torch.autocast(am.device.type, enabled=False):
        pruned = library.rnnt_loss_pruned(
            logits=at_least_float32(logits),
            symbols=symbols,
            ranges=ranges,
            termination_symbol=blank,
            boundary=boundary,
            rnnt_type=rnnt_type,
            delay_penalty=delay_penalty,
            reduction=reduction,
        )
    return TransducerLoss(simple, pruned)


def simple_loss_and_ranges(
    library: Any,
    am_simple: Tensor,
    lm_simple: Tensor,
    symbols: Tensor,
    boundary: Tensor,
    *,
    blank: int,
    prune_range: int,
    lm_scale: float,
    am_scale: float,
    rnnt_type: str,
    delay_penalty: float = 0.0,
    reduction: str = "none",
) -> Tuple[Tensor, Tensor]:
    """The smoothed loss of the simple joiner, (N,) or a scalar, and the symbol positions (N, T, R) that it keeps.

    ``library`` is k2 or `tokenverse_pp.losses.native`; the other arguments are those of `pruned_transducer_loss`.
    """
    with torch.autocast(am_simple.device.type, enabled=False):
        loss, (px_grad, py_grad) = library.rnnt_loss_smoothed(
            lm=at_least_float32(lm_simple),
            am=at_least_float32(am_simple),
            symbols=symbols,
            termination_symbol=blank,
            lm_only_scale=lm_scale,
            am_only_scale=am_scale,
            boundary=boundary,
            rnnt_type=rnnt_type,
            delay_penalty=delay_penalty,
            reduction=reduction,
            return_grad=True,
        )
        return loss, library.get_rnnt_prune_ranges(px_grad, py_grad, boundary, prune_range)


def band_log_probs(
    am: Tensor,
    lm: Tensor,
    joiner_output: torch.nn.Module,
    symbols: Tensor,
    ranges: Tensor,
    boundary: Tensor,
    blank: int,
    memory_budget: int,
    activation: str = "tanh",
) -> Tuple[Tensor, Tensor]:
    """Log-probabilities of the next symbol and of the blank at the kept positions, both (N, T, R).

    Joiner, softmax and gathering are one chunked function. The arguments are those of `pruned_transducer_loss`;
    ``activation`` (`tanh` or `relu`) is the joiner's.
    """
    compute_dtype = joiner_dtype(am)
    weight: Tensor = joiner_output.weight  # type: ignore[assignment]
    bias = getattr(joiner_output, "bias", None)
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    with torch.autocast(am.device.type, enabled=False):
        kernels = triton_kernels(am)
        if kernels is not None:
            band = kernels.BandPlan(
                ranges[:, :, 0].contiguous(), ranges.shape[2], symbols.contiguous(), boundary.contiguous(), blank,
                compute_dtype, memory_budget, activation,
            )  # fmt: skip
            return kernels.joiner_log_probs(am, lm, weight, bias, band)
        targets = targets_in_band(symbols, ranges, blank)
        plan = make_plan(ranges, targets, boundary, lm.shape[1], blank, compute_dtype, memory_budget, activation)
        return joiner_log_probs(am, lm, weight, bias, plan)


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
    activation: str = "tanh",
) -> Tensor:
    """Expected log-probability of each target token, (N, U), in nats; 0 at padding.

    A transducer has no single probability of a token, but one for each frame at which the token may be emitted.
    Given audio and transcript, a token is emitted at frame t with the posterior probability of its arc there; the
    result is the mean of the arc's log-probability under that posterior. The posterior is the negative
    gradient of the loss with respect to the arc's score (k2 calls it the occupation probability).

    The arguments are those of `pruned_transducer_loss`; the native backend is used, without smoothing or gradient.
    """
    n, num_symbols = symbols.shape
    boundary = checked_boundary(boundary, n, num_symbols, am.shape[1], am.device)
    with torch.no_grad(), torch.autocast(am.device.type, enabled=False):
        _, ranges = simple_loss_and_ranges(
            native, am_simple, lm_simple, symbols, boundary, blank=blank, prune_range=prune_range, lm_scale=0.0,
            am_scale=0.0, rnnt_type=rnnt_type,
        )  # fmt: skip
        am, lm = at_least_float32(am), at_least_float32(lm)
        px, py = band_log_probs(am, lm, joiner_output, symbols, ranges, boundary, blank, 0, activation)
        with torch.enable_grad():
            arcs = px.detach().requires_grad_()
            loss = band_loss(arcs, py, ranges, boundary, num_symbols, rnnt_type, 0.0)
            (gradient,) = torch.autograd.grad(loss.masked_fill(~torch.isfinite(loss), 0.0).sum(), arcs)
        posterior = -gradient  # (N, T, R)
        weighted = torch.where(posterior > 0, posterior * px, posterior.new_zeros(()))  # pruned arcs score -inf
        total, mass = px.new_zeros(n, num_symbols + 1), px.new_zeros(n, num_symbols + 1)
        total.scatter_add_(1, ranges.flatten(1), weighted.flatten(1))
        mass.scatter_add_(1, ranges.flatten(1), posterior.flatten(1))
        mean = total / mass.clamp_min(torch.finfo(mass.dtype).tiny)
        padding = torch.arange(num_symbols, device=mean.device) >= boundary[:, 2:3]
        return mean[:, :num_symbols].masked_fill(padding, 0.0)

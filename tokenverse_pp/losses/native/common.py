"""Small helpers that every part of the native loss uses: types, precision, boundaries, reductions."""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional, TypeVar, cast

import torch
from torch import Tensor

Method = TypeVar("Method", bound=Callable[..., Any])

RNNT_TYPES = ("regular", "modified", "constrained")
REDUCTIONS = ("none", "mean", "sum")


def check_rnnt_type(rnnt_type: str) -> None:
    """Refuse an unknown lattice topology."""
    if rnnt_type not in RNNT_TYPES:
        raise ValueError(f"rnnt_type should be one of {RNNT_TYPES}, given {rnnt_type!r}")


def reduce_loss(loss: Tensor, reduction: Optional[str]) -> Tensor:
    """Apply k2's `reduction` to losses of shape (B,): `none`, `mean` over the batch, or `sum`."""
    if reduction == "none":
        return loss
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    raise ValueError(f"reduction should be one of {REDUCTIONS}, given {reduction!r}")


def without_autocast(function: Method) -> Method:
    """For a backward pass: autocast off on the device of the first gradient.

    Autograd does so by itself only if `backward` is called outside of the autocast context.
    """

    @functools.wraps(function)
    def wrapped(ctx: Any, grad: Tensor, *more: Tensor) -> Any:
        with torch.autocast(grad.device.type, enabled=False):
            return function(ctx, grad, *more)

    return cast(Method, wrapped)


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision tensors as float32; float32 and float64 as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _full_boundary(batch: int, num_symbols: int, num_frames: int, device: torch.device) -> Tensor:
    """The boundary meant by `None`: every sequence fills its row; shape (B, 4), int64."""
    row = torch.tensor([0, 0, num_symbols, num_frames], dtype=torch.int64, device=device)
    return row.expand(batch, 4)


def _check_boundary(boundary: Tensor, batch: int, num_symbols: int, num_frames: int) -> None:
    """Refuse a boundary of a wrong shape or type, or one that leaves the tensors."""
    if boundary.dtype != torch.int64 or boundary.shape != (batch, 4):
        raise ValueError(
            f"boundary should be an int64 tensor of shape ({batch}, 4), "
            f"given {boundary.dtype} of shape {tuple(boundary.shape)}"
        )
    begins, ends = boundary[:, :2], boundary[:, 2:]
    limit = torch.tensor([num_symbols, num_frames], device=boundary.device)
    if not bool(((begins >= 0) & (begins <= ends) & (ends <= limit)).all()):
        raise ValueError(
            f"boundary rows should be [begin_symbol, begin_frame, end_symbol, end_frame] with begin <= end, "
            f"at most {num_symbols} symbols and {num_frames} frames; given {boundary.tolist()}"
        )


def checked_boundary(
    boundary: Optional[Tensor], batch: int, num_symbols: int, num_frames: int, device: torch.device
) -> Tensor:
    """The boundary (B, 4) to work with: the given one if it fits, or that of sequences which fill their rows.

    Raises:
      ValueError: on a wrong shape or type, or numbers outside of the tensors.
    """
    if boundary is None:
        return _full_boundary(batch, num_symbols, num_frames, device)
    _check_boundary(boundary, batch, num_symbols, num_frames)
    return boundary


def delay_offsets(boundary: Tensor, num_frames: int, delay_penalty: float, dtype: torch.dtype) -> Tensor:
    """What k2's `delay_penalty` adds to every symbol arc at frame t: penalty * ((T_b - 1) / 2 - t).

    Shape (B, num_frames). Positive for early frames and negative for late ones, so late symbols cost more
    (k2 issue 955). Rounded to float32 on the way, as in k2, so that float64 losses agree to the last digits.
    """
    middle = (boundary[:, 3:4] - 1) / 2
    frames = torch.arange(num_frames, device=boundary.device)
    return ((middle - frames) * delay_penalty).to(dtype)

"""Masks from lengths, and frame stacking."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor

# Added to the attention scores of padded keys: exp() of it is exactly 0 in every float type, and unlike -inf
# it cannot make a NaN of a row that is masked altogether.
MASKED_SCORE = -30000.0


def length_mask(lens: Tensor, size: int) -> Tensor:
    """Return (N, size) bool, true on the first ``lens[n]`` frames of row n.

    lens [3, 1], size 4 ->  [[1, 1, 1, 0],
                             [1, 0, 0, 0]]
    """
    return torch.arange(size, device=lens.device) < lens.unsqueeze(1)


def zero_padding(x: Tensor, mask: Tensor) -> Tensor:
    """Return x (N, T, C) with zeros where mask (N, T) is false; x itself is not changed."""
    return x.masked_fill(~mask.unsqueeze(-1), 0.0)


def attention_bias(mask: Tensor, dtype: torch.dtype, seen: Optional[Tensor] = None) -> Optional[Tensor]:
    """Return what keeps attention off the padding, (N, 1, T, T), to be added to scores; None if all may be seen.

    Args:
        mask: (N, T), true on valid frames.
        dtype: of the scores.
        seen: (T, T), true on what each frame sees (`tokenverse_pp.model.masks.chunk_mask`).
    """
    if seen is not None:
        return score_bias(mask[:, None, None, :] & seen, dtype)
    if bool(mask.all()):
        return None
    bias = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, MASKED_SCORE)
    return bias[:, None, None, :].expand(-1, 1, mask.shape[1], -1)


def score_bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where ``seen`` is true, and what makes a score vanish elsewhere; of the same shape."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, MASKED_SCORE)


def stacked_lens(lens: Tensor, stack: int) -> Tensor:
    """Return ceil(lens / stack)."""
    return torch.div(lens + stack - 1, stack, rounding_mode="floor")


def stack_frames(x: Tensor, lens: Tensor, stack: int) -> Tuple[Tensor, Tensor]:
    """Join ``stack`` neighbouring frames: (N, T, C), lens -> (N, ceil(T / stack), stack * C), ceil(lens / stack).

    The last group is filled with zeros; padded frames of x must be zero.
    """
    if stack == 1:
        return x, lens
    n, t, c = x.shape
    x = torch.nn.functional.pad(x, (0, 0, 0, -t % stack))
    return x.reshape(n, -1, stack * c), stacked_lens(lens, stack)

"""Which symbol positions each frame keeps, and the joiner inputs at these positions."""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor


def _suffix_minimum(x: Tensor) -> Tensor:
    """The largest non-decreasing lower bound of x along the last axis."""
    return x.flip(-1).cummin(-1).values.flip(-1)


def _make_reachable(begin: Tensor, max_step: int) -> Tensor:
    """Lower `begin` (B, T) until it starts at 0, never falls, and rises by at most `max_step` a frame.

    With c[t] = max_step * t - begin[t], "rises by at most max_step" is "c never falls".
    """
    begin = _suffix_minimum(begin)
    ramp = max_step * torch.arange(begin.shape[1], device=begin.device)
    return ramp - _suffix_minimum(ramp - begin).clamp(min=0)


def get_rnnt_prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """The `s_range` consecutive symbol positions that carry most of each frame's probability; as k2's.

    Kuang et al. 2022, section 3.2: a frame's window that starts at s is worth the blanks' occupation inside
    of it, less the symbol arc that would have to enter it from below at the same frame.

    Args:
      px_grad: (B, S, T + 1) or (B, S, T), occupation of the symbol arcs.
      py_grad: (B, S + 1, T), occupation of the blank arcs.
      boundary: (B, 4) int64.
      s_range: positions to keep, at least 2 for the regular topology and 1 for the others. More than S + 1
        means S + 1.

    Returns:
      (B, T, min(s_range, S + 1)) int64; the first column starts at 0, never falls, rises by less than s_range
      a frame (by at most 1 for modified/constrained), and on the last frame the window holds the last symbol,
      if the frames are enough for that: otherwise the pruned loss is +inf.
    """
    _, num_symbols, columns = px_grad.shape
    num_frames = py_grad.shape[2]
    regular = columns == num_frames + 1
    if s_range < (2 if regular else 1):
        raise ValueError(f"s_range should be at least {2 if regular else 1}, given {s_range}")
    s_range = min(s_range, num_symbols + 1)
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
    """Both inputs of the joiner at the kept positions; as k2's.

    Args:
      am: (B, T, J), lm: (B, S + 1, K), ranges: (B, T, R) from `get_rnnt_prune_ranges`.

    Returns:
      am (B, T, R, J), a view, and lm (B, T, R, K).
    """
    batch = torch.arange(lm.shape[0], device=lm.device).reshape(-1, 1, 1)
    return am.unsqueeze(2).expand(-1, -1, ranges.shape[2], -1), lm[batch, ranges]

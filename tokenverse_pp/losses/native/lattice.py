"""The transducer lattice: total score and arc occupation probabilities, with no loop over cells.

All three topologies run through one recursion over *steps*. A state is a number of symbols `s`; a step either
keeps `s` (a `stay` arc) or raises it by one (a `move` arc)::

    p[n + 1, s] = logaddexp(p[n, s] + stay[n, s],  p[n, s - 1] + move[n, s - 1])

- `modified` and `constrained`: each arc uses a frame, so a step is a frame.
- `regular`: a symbol uses no frame. On the anti-diagonals n = s + t, every arc of k2's recursion leads from
  diagonal n to n + 1, so the same recursion holds with one step per diagonal.

Each step is two vector operations over (S, B). The backward pass first turns all arcs into conditional
probabilities P(arc | state it leads to) at once, and then only multiplies and adds: no logarithms, and arcs
of -inf (outside of a pruned band, after the last frame) are plain zeros. The recursion runs in float64 where
the device supports it; its cost is that of launching the steps, and sums over thousands of frames stay exact.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple, Optional, Tuple, TypeVar, Union, cast

import torch
from torch import Tensor

from tokenverse_pp.losses.devices import triton_kernels

Method = TypeVar("Method", bound=Callable[..., Any])

RNNT_TYPES = ("regular", "modified", "constrained")
REDUCTIONS = ("none", "mean", "sum")


def check_rnnt_type(rnnt_type: str) -> None:
    """Raise ValueError for an unknown lattice topology."""
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


def once_differentiable(function: Method) -> Method:
    """Decorate a backward pass: with ``create_graph=True`` it raises RuntimeError.

    torch's decorator of this name does not if the incoming gradients are constants: a gradient penalty would leave out
    the second derivative of this function, and be wrong.
    """

    @functools.wraps(function)
    def wrapped(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(f"{type(ctx).__name__} has no second derivative: expected create_graph=False")
        return function(ctx, *grads)

    return cast(Method, wrapped)


def without_autocast(function: Method) -> Method:
    """Decorate a backward pass: autocast is off on the device of the first gradient.

    Autograd does this by itself only if `backward` is called outside of the autocast context.
    """

    @functools.wraps(function)
    def wrapped(ctx: Any, grad: Tensor, *more: Tensor) -> Any:
        with torch.autocast(grad.device.type, enabled=False):
            return function(ctx, grad, *more)

    return cast(Method, wrapped)


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision tensors as float32; float32 and float64 unchanged."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def checked_boundary(
    boundary: Optional[Tensor], batch: int, num_symbols: int, num_frames: int, device: torch.device
) -> Tensor:
    """Return the given boundary (B, 4) if it is valid; for None, that of sequences which fill their rows.

    Raises:
      ValueError: shape or type is wrong, or numbers are outside of the tensors (not checked for Triton).
    """
    if boundary is None:
        boundary = torch.zeros(batch, 4, dtype=torch.int64, device=device)
        boundary[:, 2], boundary[:, 3] = num_symbols, num_frames  # on the device: copying would wait for a GPU
        return boundary
    if boundary.dtype != torch.int64 or boundary.shape != (batch, 4):
        raise ValueError(
            f"boundary should be an int64 tensor of shape ({batch}, 4), "
            f"given {boundary.dtype} of shape {tuple(boundary.shape)}"
        )
    if triton_kernels(boundary) is None:  # reading would wait for the GPU; the kernels stay inside of the tensors
        begins, ends = boundary[:, :2], boundary[:, 2:]
        limit = torch.tensor([num_symbols, num_frames], device=boundary.device)
        if not bool(((begins >= 0) & (begins <= ends) & (ends <= limit)).all()):
            raise ValueError(
                f"boundary rows should be [begin_symbol, begin_frame, end_symbol, end_frame] with begin <= end, "
                f"at most {num_symbols} symbols and {num_frames} frames; given {boundary.tolist()}"
            )
    return boundary


def delay_offsets(boundary: Tensor, num_frames: int, delay_penalty: float, dtype: torch.dtype) -> Tensor:
    """What k2's `delay_penalty` adds to every symbol arc at frame t: penalty * ((T_b - 1) / 2 - t).

    Shape (B, num_frames). Positive for early frames and negative for late ones, so late symbols cost more
    (k2 issue 955). Computed in float32, as in k2, so that float64 losses agree to the last digits.
    """
    middle = (boundary[:, 3:4] - 1) / 2
    frames = torch.arange(num_frames, device=boundary.device)
    return ((middle - frames) * delay_penalty).to(dtype)


NEG_INF = float("-inf")


class _Layout(NamedTuple):
    """Where arc (s, t) of sequence b lies in the step-major buffer of shape (steps, 2, S + 1, B)."""

    batch: int
    num_symbols: int
    num_frames: int
    diagonal: bool  # regular topology: step = s + t instead of t

    @property
    def steps(self) -> int:
        return self.num_frames + (self.num_symbols if self.diagonal else 0)

    @property
    def step_stride(self) -> int:
        return 2 * (self.num_symbols + 1) * self.batch

    @property
    def symbol_stride(self) -> int:
        return self.batch + (self.step_stride if self.diagonal else 0)

    def move_view(self, arcs: Tensor, columns: int) -> Tensor:
        """Symbol arcs as (B, S, columns); stored one row further, in the row of the state they lead to."""
        return arcs.as_strided(
            (self.batch, self.num_symbols, columns),
            (1, self.symbol_stride, self.step_stride),
            self.batch,
        )

    def stay_view(self, arcs: Tensor) -> Tensor:
        """Blank arcs as (B, S + 1, T)."""
        return arcs.as_strided(
            (self.batch, self.num_symbols + 1, self.num_frames),
            (1, self.symbol_stride, self.step_stride),
            (self.num_symbols + 1) * self.batch,
        )

    def band_index(self, symbol: Tensor, frame: Tensor, move: bool) -> Tensor:
        """Flat positions in the buffer of the arcs (symbol, frame), both (B, T, R)."""
        batch = torch.arange(self.batch, device=symbol.device).reshape(-1, 1, 1)
        plane = self.batch if move else (self.num_symbols + 1) * self.batch
        return symbol * self.symbol_stride + frame * self.step_stride + (batch + plane)


def _new_arcs(layout: _Layout, like: Tensor) -> Tensor:
    shape = (layout.steps, 2, layout.num_symbols + 1, layout.batch)
    dtype = like.dtype if like.device.type == "mps" else torch.float64  # a device without float64
    return torch.full(shape, NEG_INF, dtype=dtype, device=like.device)


def _end_index(layout: _Layout, lengths: Tensor) -> Tensor:
    """Flat position of each sequence's final state in a (steps + 1, S + 2, B) buffer; `lengths` (B, 2)."""
    symbols, frames = lengths[:, 0], lengths[:, 1]
    step = symbols + frames if layout.diagonal else frames
    row = step * (layout.num_symbols + 2) + symbols + 1
    return row * layout.batch + torch.arange(layout.batch, device=lengths.device)


def _forward_scores(arcs: Tensor, layout: _Layout) -> Tensor:
    """State scores p of shape (steps + 1, S + 2, B); row 0 is a pad of -inf, row s + 1 is state s."""
    rows, batch = layout.num_symbols + 1, layout.batch
    p = torch.full((layout.steps + 1, rows + 1, batch), NEG_INF, dtype=arcs.dtype, device=arcs.device)
    p[0, 1] = 0.0
    # (steps + 1, 2, S + 1, B): [0] the state one symbol back, [1] the same state. Both are views of p.
    sources = p.as_strided((layout.steps + 1, 2, rows, batch), ((rows + 1) * batch, batch, batch, 1))
    arriving = torch.empty((2, rows, batch), dtype=arcs.dtype, device=arcs.device)
    moved, stayed = arriving.unbind(0)
    for source, arc, target in zip(sources.unbind(0), arcs.unbind(0), p[1:, 1:].unbind(0)):
        torch.add(source, arc, out=arriving)
        torch.logaddexp(moved, stayed, out=target)
    return p


def _occupation(arcs: Tensor, p: Tensor, ends: Tensor, scores: Tensor, layout: _Layout) -> Tensor:
    """Turn arc scores into arc occupation probabilities, in place."""
    rows, batch = layout.num_symbols + 1, layout.batch
    sources = p.as_strided((layout.steps, 2, rows, batch), ((rows + 1) * batch, batch, batch, 1))
    arcs.add_(sources).sub_(p[1:, 1:].unsqueeze(1)).exp_()
    # -inf - -inf is NaN: no path leads to the state.
    arcs.nan_to_num_(nan=0.0, posinf=0.0)
    state = torch.zeros_like(p)
    state.view(-1)[ends] = torch.isfinite(scores).to(p.dtype)
    states, back = state[:, 1:].unbind(0), state[:-1, :-1].unbind(0)
    moves, stays = arcs[:, 0].unbind(0), arcs[:, 1].unbind(0)
    for step in range(layout.steps - 1, -1, -1):
        states[step].addcmul_(stays[step], states[step + 1])
        back[step].addcmul_(moves[step], states[step + 1])
    arcs.mul_(state[1:, 1:].unsqueeze(1))
    return arcs


def _solve(arcs: Tensor, layout: _Layout, lengths: Tensor, with_grad: bool) -> Tuple[Tensor, Optional[Tensor]]:
    """Total scores (B,) and, if requested, the buffer of occupation probabilities (which reuses `arcs`)."""
    p = _forward_scores(arcs, layout)
    ends = _end_index(layout, lengths)
    scores = p.view(-1)[ends]
    if not with_grad:
        return scores, None
    return scores, _occupation(arcs, p, ends, scores, layout)


def _shift(x: Tensor, begins: Tensor, sign: int) -> Tensor:
    """Roll x (B, S, T) so that each sequence begins at (0, 0) (`sign` 1), or back again (`sign` -1)."""
    batch, rows, columns = x.shape
    row = (torch.arange(rows, device=x.device) + sign * begins[:, :1]) % max(rows, 1)
    column = (torch.arange(columns, device=x.device) + sign * begins[:, 1:2]) % columns
    return x[torch.arange(batch, device=x.device).reshape(-1, 1, 1), row.unsqueeze(2), column.unsqueeze(1)]


class _DenseLattice(torch.autograd.Function):
    """k2's mutual_information_recursion on dense px (B, S, T or T + 1) and py (B, S + 1, T)."""

    @staticmethod
    def forward(ctx, px: Tensor, py: Tensor, boundary: Tensor, return_grad: bool):
        batch, num_symbols, columns = px.shape
        layout = _Layout(batch, num_symbols, py.shape[2], diagonal=columns == py.shape[2] + 1)
        begins, lengths = boundary[:, :2], boundary[:, 2:] - boundary[:, :2]
        shifted = bool((begins != 0).any())
        arcs = _new_arcs(layout, px)
        layout.move_view(arcs, columns).copy_(_shift(px, begins, 1) if shifted else px)
        layout.stay_view(arcs).copy_(_shift(py, begins, 1) if shifted else py)
        with_grad = return_grad or any(ctx.needs_input_grad[:2])
        scores, occupation = _solve(arcs, layout, lengths, with_grad)
        if occupation is None:
            return scores.to(px.dtype), None, None
        # Return contiguous copies: the views are strided over a buffer twice their size.
        px_grad = layout.move_view(occupation, columns).to(px.dtype, memory_format=torch.contiguous_format)
        py_grad = layout.stay_view(occupation).to(py.dtype, memory_format=torch.contiguous_format)
        if shifted:
            px_grad, py_grad = _shift(px_grad, begins, -1), _shift(py_grad, begins, -1)
        ctx.save_for_backward(px_grad, py_grad)
        ctx.mark_non_differentiable(px_grad, py_grad)
        return scores.to(px.dtype), px_grad, py_grad

    @staticmethod
    @once_differentiable
    def backward(ctx, scores_grad: Tensor, _px_grad, _py_grad):
        px_grad, py_grad = ctx.saved_tensors
        scale = scores_grad.reshape(-1, 1, 1)
        return px_grad * scale, py_grad * scale, None, None


class _BandLattice(torch.autograd.Function):
    """Like `_DenseLattice`, over a band: px, py (B, T, R) are the arcs leaving the positions `ranges` (B, T, R)."""

    @staticmethod
    def forward(ctx, px: Tensor, py: Tensor, ranges: Tensor, boundary: Tensor, num_symbols: int, diagonal: bool):
        layout = _Layout(px.shape[0], num_symbols, px.shape[1], diagonal)
        arcs = _new_arcs(layout, px)
        begin_symbol, begin_frame, _, end_frame = boundary.unsqueeze(2).unsqueeze(3).unbind(1)
        frame = torch.arange(px.shape[1], device=px.device).reshape(1, -1, 1)
        used = (frame >= begin_frame) & (frame < end_frame) & (ranges >= begin_symbol)
        places = []
        for values, move in ((px, True), (py, False)):
            keep = used & (ranges < num_symbols) if move else used
            index = layout.band_index(ranges - begin_symbol, frame - begin_frame, move)
            # Element 0 is an arc out of state -1: always -inf, a safe place for arcs that are left out.
            index = torch.where(keep, index, torch.zeros_like(index))
            arcs.view(-1).scatter_(0, index.view(-1), values.to(arcs.dtype).masked_fill(~keep, NEG_INF).view(-1))
            places.append(index)
        lengths = boundary[:, 2:] - boundary[:, :2]
        scores, occupation = _solve(arcs, layout, lengths, with_grad=any(ctx.needs_input_grad[:2]))
        if occupation is not None:
            ctx.save_for_backward(*(occupation.view(-1)[index].to(px.dtype) for index in places))
        return scores.to(px.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, scores_grad: Tensor):
        px_grad, py_grad = ctx.saved_tensors
        scale = scores_grad.reshape(-1, 1, 1)
        return px_grad * scale, py_grad * scale, None, None, None, None


def mutual_information_recursion(
    px: Tensor,
    py: Tensor,
    boundary: Optional[Tensor] = None,
    return_grad: bool = False,
) -> Union[Tensor, Tuple[Tensor, Tuple[Tensor, Tensor]]]:
    """Total log-score of all paths through a lattice; k2's function of the same name.

    Args:
      px: (B, S, T + 1) for the regular topology, (B, S, T) for modified/constrained: score of the arc that
        takes symbol s at frame t.
      py: (B, S + 1, T): score of the arc that leaves frame t after s symbols.
      boundary: (B, 4) int64, rows [begin_symbol, begin_frame, end_symbol, end_frame]; default [0, 0, S, T].
      return_grad: also return the arcs' occupation probabilities, the gradients of the scores' sum.

    Returns:
      scores (B,), or (scores, (px_grad, py_grad)) with the shapes of px and py. A sequence with no path at
      all scores -inf, and its gradients are zero. The returned gradients are never modified later.

    Raises:
      ValueError: the shapes do not match, or the boundary is invalid (`checked_boundary`).
    """
    batch, num_symbols, columns = px.shape
    num_frames = py.shape[2]
    if columns not in (num_frames, num_frames + 1) or py.shape[:2] != (batch, num_symbols + 1):
        raise ValueError(f"px {tuple(px.shape)} and py {tuple(py.shape)} should be (B, S, T[+1]) and (B, S+1, T)")
    if px.dtype != py.dtype:
        raise ValueError(f"px and py should have one type, given {px.dtype} and {py.dtype}")
    boundary = checked_boundary(boundary, batch, num_symbols, num_frames, px.device)
    kernels = triton_kernels(px)
    lattice = _DenseLattice.apply if kernels is None else kernels.dense_scores
    scores, px_grad, py_grad = lattice(px, py, boundary, return_grad)
    return (scores, (px_grad, py_grad)) if return_grad else scores


def band_recursion(
    px: Tensor, py: Tensor, ranges: Tensor, boundary: Tensor, num_symbols: int, rnnt_type: str
) -> Tensor:
    """Scores (B,) of a pruned lattice given as the band that `ranges` selects.

    Same value as `mutual_information_recursion` on the dense px and py that are -inf outside of the band.

    Args:
      px, py: (B, T, R) arcs out of positions `ranges`; px at position `num_symbols` and all frames outside of
        `boundary` are not read.
      ranges: (B, T, R) int64 symbol positions in 0..num_symbols, R consecutive ones per frame.
      boundary: (B, 4) as above.
      num_symbols: S, the length of the longest reference.
      rnnt_type: `regular`, or `modified` / `constrained` (one frame per arc).
    """
    kernels = triton_kernels(px)
    if kernels is not None:
        return kernels.band_scores(px, py, ranges[:, :, 0].contiguous(), boundary, num_symbols, rnnt_type)
    return _BandLattice.apply(px, py, ranges, boundary, num_symbols, rnnt_type == "regular")

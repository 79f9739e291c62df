"""The transducer lattice on a GPU: one kernel forward and one backward, one program per utterance.

The recursion is that of `losses.native.lattice`: at each step a state (a number of symbols) is reached by a `stay` arc
from itself or a `move` arc from the state one symbol back. A program holds all states of its utterance in registers and
runs through the steps; only arcs and one number per cell pass through memory.

Precision. State scores are float64: they grow to thousands, and float32 would lose the differences that gradients
depend on. The cost per cell is two additions, a subtraction and a maximum, affordable even with few float64 units.
The correction log(1 + exp(-|difference|)), the costly part, is at most log 2 and is computed in the type of the arcs:
in float32 its error is below 1e-7 per step, whatever the size of the scores.

The forward pass keeps the difference of the two arriving scores for each cell. The backward pass needs nothing else:
the share of the move arc is the sigmoid of the difference, and occupation only multiplies and adds. It runs in float64,
with shares that add up to exactly one, so that no occupation is lost over thousands of steps.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple, TypeVar, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenverse_pp.losses.native.lattice import once_differentiable

# Sizes that change from batch to batch: Triton would recompile a kernel if one becomes 1 or a multiple of 16.
SIZES = (
    "max_symbols", "max_frames", "px_b", "px_s", "px_t", "py_b", "py_s", "py_t", "begins_b", "width", "difference_b",
)  # fmt: skip
Method = TypeVar("Method", bound=Callable[..., Any])


@triton.jit
def _arcs_of_step(
    begins, n, state, begin_symbol, begin_frame, symbols, frames, px_frames,
    px_s, px_t, py_s, py_t, width, DIAGONAL: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """Offsets of the arcs of step n into each state, and which of them exist: for move and for stay."""
    move_symbol = state - 1
    if DIAGONAL:
        move_frame = n + 1 - state
        stay_frame = n - state
    else:
        move_frame = n + 0 * state
        stay_frame = n + 0 * state
    move_valid = (state >= 1) & (state <= symbols) & (move_frame >= 0) & (move_frame < px_frames)
    stay_valid = (state <= symbols) & (stay_frame >= 0) & (stay_frame < frames)
    move_symbol += begin_symbol
    move_frame += begin_frame
    stay_symbol = state + begin_symbol
    stay_frame += begin_frame
    if BAND:
        move_symbol -= tl.load(begins + move_frame, mask=move_valid, other=0).to(tl.int32)
        stay_symbol -= tl.load(begins + stay_frame, mask=stay_valid, other=0).to(tl.int32)
        move_valid = move_valid & (move_symbol >= 0) & (move_symbol < width)
        stay_valid = stay_valid & (stay_symbol >= 0) & (stay_symbol < width)
    return (
        move_symbol * px_s + move_frame * px_t,
        move_valid,
        stay_symbol * py_s + stay_frame * py_t,
        stay_valid,
    )


@triton.jit
def _lengths(boundary, b, max_symbols, max_frames):
    """Begin and length of utterance b, clamped to the tensors whatever the boundary says."""
    begin_symbol = tl.minimum(tl.maximum(tl.load(boundary + 4 * b).to(tl.int32), 0), max_symbols)
    begin_frame = tl.minimum(tl.maximum(tl.load(boundary + 4 * b + 1).to(tl.int32), 0), max_frames)
    symbols = tl.minimum(tl.load(boundary + 4 * b + 2).to(tl.int32), max_symbols) - begin_symbol
    frames = tl.minimum(tl.load(boundary + 4 * b + 3).to(tl.int32), max_frames) - begin_frame
    return begin_symbol, begin_frame, tl.maximum(symbols, 0), tl.maximum(frames, 0)


@triton.jit(do_not_specialize=SIZES)
def _score_kernel(
    px, py, begins, boundary, scores, differences, max_symbols, max_frames,
    px_b, px_s, px_t, py_b, py_s, py_t, begins_b, width, difference_b,
    EXTRA_COLUMN: tl.constexpr, DIAGONAL: tl.constexpr, BAND: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    px += b * px_b
    py += b * py_b
    begins += b * begins_b
    differences += b * difference_b
    begin_symbol, begin_frame, symbols, frames = _lengths(boundary, b, max_symbols, max_frames)
    px_frames = frames + EXTRA_COLUMN
    state = tl.arange(0, BLOCK)
    back = tl.maximum(state - 1, 0)
    p = tl.where(state == 0, 0.0, float("-inf")).to(tl.float64)
    steps = frames
    if DIAGONAL:
        steps = frames + symbols
    at_move, has_move, at_stay, has_stay = _arcs_of_step(
        begins, 0, state, begin_symbol, begin_frame, symbols, frames, px_frames,
        px_s, px_t, py_s, py_t, width, DIAGONAL, BAND,
    )  # fmt: skip
    move = tl.load(px + at_move, mask=has_move, other=float("-inf"))
    stay = tl.load(py + at_stay, mask=has_stay, other=float("-inf"))
    for n in range(0, steps):
        # Load the arcs of the next step while this one is computed.
        at_move, has_move, at_stay, has_stay = _arcs_of_step(
            begins, n + 1, state, begin_symbol, begin_frame, symbols, frames, px_frames,
            px_s, px_t, py_s, py_t, width, DIAGONAL, BAND,
        )  # fmt: skip
        next_move = tl.load(px + at_move, mask=has_move, other=float("-inf"))
        next_stay = tl.load(py + at_stay, mask=has_stay, other=float("-inf"))
        moved = tl.where(state > 0, tl.gather(p, back, 0), float("-inf")) + move.to(tl.float64)
        stayed = p + stay.to(tl.float64)
        dead = (moved == float("-inf")) & (stayed == float("-inf"))
        difference = (moved - stayed).to(move.dtype)
        correction = tl.log(1.0 + tl.exp(-tl.abs(difference)))
        p = tl.where(dead, float("-inf"), tl.maximum(moved, stayed) + correction.to(tl.float64))
        if KEEP:
            tl.store(differences + n * (max_symbols + 1) + state, difference, mask=state <= symbols)
        move = next_move
        stay = next_stay
    last = tl.sum(tl.where(state == symbols, p, 0.0), 0)
    tl.store(scores + b, last)


@triton.jit(do_not_specialize=SIZES)
def _occupation_kernel(
    scale, begins, boundary, scores, differences, px_grad, py_grad, max_symbols, max_frames,
    px_b, px_s, px_t, py_b, py_s, py_t, begins_b, width, difference_b,
    EXTRA_COLUMN: tl.constexpr, DIAGONAL: tl.constexpr, BAND: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    px_grad += b * px_b
    py_grad += b * py_b
    begins += b * begins_b
    differences += b * difference_b
    begin_symbol, begin_frame, symbols, frames = _lengths(boundary, b, max_symbols, max_frames)
    px_frames = frames + EXTRA_COLUMN
    state = tl.arange(0, BLOCK)
    ahead = tl.minimum(state + 1, BLOCK - 1)
    score = tl.load(scores + b)
    start = tl.where(tl.abs(score) < float("inf"), 1.0, 0.0).to(tl.float64)
    if SCALED:
        start *= tl.load(scale + b).to(tl.float64)
    occupation = tl.where(state == symbols, start, 0.0)
    steps = frames
    if DIAGONAL:
        steps = frames + symbols
    row = max_symbols + 1
    more = state <= tl.where(steps > 0, symbols, -1)
    difference = tl.load(differences + (steps - 1) * row + state, mask=more, other=0.0)
    for i in range(0, steps):
        n = steps - 1 - i
        more = state <= tl.where(n > 0, symbols, -1)
        next_difference = tl.load(differences + (n - 1) * row + state, mask=more, other=0.0)
        decay = tl.exp(-tl.abs(difference))
        lesser = (decay / (1.0 + decay)).to(tl.float64)
        # NaN: no path leads here. Occupation is zero then, but 0 * NaN would not be.
        reached = difference == difference
        lesser = tl.where(reached, lesser, 0.0)
        greater = tl.where(reached, 1.0 - lesser, 0.0)
        move = occupation * tl.where(difference > 0, greater, lesser)
        stay = occupation * tl.where(difference > 0, lesser, greater)
        at_move, has_move, at_stay, has_stay = _arcs_of_step(
            begins, n, state, begin_symbol, begin_frame, symbols, frames, px_frames,
            px_s, px_t, py_s, py_t, width, DIAGONAL, BAND,
        )  # fmt: skip
        tl.store(px_grad + at_move, move, mask=has_move)
        tl.store(py_grad + at_stay, stay, mask=has_stay)
        occupation = stay + tl.where(state < symbols, tl.gather(move, ahead, 0), 0.0)
        difference = next_difference


def on_its_device(function: Method) -> Method:
    """Decorate `forward` or `backward`: launch on the GPU of the first tensor, which need not be the current one."""

    @functools.wraps(function)
    def wrapped(ctx: Any, first: Tensor, *others: Any) -> Any:
        with torch.cuda.device_of(first):
            return function(ctx, first, *others)

    return cast(Method, wrapped)


def zeros_of_shapes(like: Tensor, *shapes: Sequence[int]) -> List[Tensor]:
    """Zeros of several shapes in one launch, on the device and in the type of ``like``."""
    sizes = [math.prod(shape) for shape in shapes]
    return [x.view(*shape) for x, shape in zip(like.new_zeros(sum(sizes)).split(sizes), shapes)]


class Lattice(NamedTuple):
    """A batch of lattices: the layout of the arcs, and the topology.

    Arcs are dense, px (B, S, T or T + 1) and py (B, S + 1, T) with any strides, or a band: both (B, T, R), at R symbol
    positions from ``begins`` (B, T) on.
    """

    boundary: Tensor  # (B, 4)
    max_symbols: int
    max_frames: int
    diagonal: bool  # regular topology: a symbol uses no frame
    extra_column: bool  # dense px has a column for the frame after the last
    begins: Optional[Tensor]

    @property
    def steps(self) -> int:
        """Steps of the longest possible utterance."""
        return self.max_frames + (self.max_symbols if self.diagonal else 0)

    def _sizes(self, px: Tensor, py: Tensor) -> Tuple[int, ...]:
        if self.begins is None:
            strides = (*px.stride(), *py.stride(), 0, 0)
        else:
            b, t, r = px.stride()
            strides = (b, r, t, py.stride(0), py.stride(2), py.stride(1), self.max_frames, px.shape[2])
        return (self.max_symbols, self.max_frames, *strides, self.steps * (self.max_symbols + 1))

    def _options(self) -> dict:
        block = triton.next_power_of_2(self.max_symbols + 1)
        return {
            "EXTRA_COLUMN": int(self.extra_column), "DIAGONAL": self.diagonal, "BAND": self.begins is not None,
            "BLOCK": block, "num_warps": min(max(block // 128, 1), 16),
        }  # fmt: skip

    def scores(self, px: Tensor, py: Tensor, keep: bool) -> Tuple[Tensor, Tensor]:
        """Total scores (B,) in float64, and for `occupation` the differences at each cell, (B, steps, S + 1)."""
        scores = torch.empty(len(self.boundary), dtype=torch.float64, device=px.device)
        shape = (len(self.boundary), self.steps, self.max_symbols + 1) if keep else (1,)
        differences = torch.empty(shape, dtype=px.dtype, device=px.device)
        begins = self.boundary if self.begins is None else self.begins
        _score_kernel[(len(self.boundary),)](
            px, py, begins, self.boundary, scores, differences, *self._sizes(px, py), KEEP=keep, **self._options()
        )
        return scores, differences

    def occupation(
        self, scores: Tensor, differences: Tensor, px_grad: Tensor, py_grad: Tensor, scale: Optional[Tensor] = None
    ) -> None:
        """Write the occupation probability of each arc, times the utterance's ``scale`` (B,), into zeros."""
        begins = self.boundary if self.begins is None else self.begins
        _occupation_kernel[(len(self.boundary),)](
            scores if scale is None else scale, begins, self.boundary, scores, differences, px_grad, py_grad,
            *self._sizes(px_grad, py_grad), SCALED=scale is not None, **self._options(),
        )  # fmt: skip


class _DenseLattice(torch.autograd.Function):
    """(px, py, boundary, return_grad) -> scores (B,), occupations of px and py; like `native.lattice`'s function."""

    @staticmethod
    @on_its_device
    def forward(ctx, px: Tensor, py: Tensor, boundary: Tensor, return_grad: bool):
        ctx.set_materialize_grads(False)  # only scores have a gradient
        diagonal = px.shape[2] == py.shape[2] + 1
        lattice = Lattice(boundary.contiguous(), px.shape[1], py.shape[2], diagonal, diagonal, None)
        with_grad = return_grad or any(ctx.needs_input_grad[:2])
        scores, differences = lattice.scores(px, py, with_grad)
        if not with_grad:
            return scores.to(px.dtype), None, None
        px_grad, py_grad = zeros_of_shapes(px, px.shape, py.shape)
        lattice.occupation(scores, differences, px_grad, py_grad)
        ctx.save_for_backward(px_grad, py_grad)
        ctx.mark_non_differentiable(px_grad, py_grad)
        return scores.to(px.dtype), px_grad, py_grad

    @staticmethod
    @once_differentiable
    @on_its_device
    def backward(ctx, scores_grad: Tensor, _px_grad, _py_grad):
        px_grad, py_grad = ctx.saved_tensors
        scale = scores_grad.reshape(-1, 1, 1)
        return px_grad * scale, py_grad * scale, None, None


class _BandLattice(torch.autograd.Function):
    """(px, py, begins, boundary, S, diagonal) -> scores (B,) of a pruned lattice; like `native.lattice`'s function."""

    @staticmethod
    @on_its_device
    def forward(ctx, px: Tensor, py: Tensor, begins: Tensor, boundary: Tensor, num_symbols: int, diagonal: bool):
        lattice = Lattice(boundary.contiguous(), num_symbols, px.shape[1], diagonal, False, begins)
        with_grad = any(ctx.needs_input_grad[:2])
        scores, differences = lattice.scores(px, py, with_grad)
        if with_grad:
            ctx.save_for_backward(scores, differences)
            ctx.lattice, ctx.shape = lattice, px.shape
        return scores.to(px.dtype)

    @staticmethod
    @once_differentiable
    @on_its_device
    def backward(ctx, scores_grad: Tensor):
        scores, differences = ctx.saved_tensors
        px_grad, py_grad = torch.zeros((2, *ctx.shape), dtype=scores_grad.dtype, device=scores.device).unbind(0)
        ctx.lattice.occupation(scores, differences, px_grad, py_grad, scores_grad.contiguous())
        return px_grad, py_grad, None, None, None, None


def dense_scores(
    px: Tensor, py: Tensor, boundary: Tensor, return_grad: bool
) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
    """Log-scores (B,) of dense arcs, and their occupations if requested; see `native.mutual_information_recursion`."""
    return _DenseLattice.apply(px, py, boundary, return_grad)


def band_scores(px: Tensor, py: Tensor, begins: Tensor, boundary: Tensor, num_symbols: int, rnnt_type: str) -> Tensor:
    """Log-scores (B,) of a band of arcs (B, T, R) at positions from ``begins`` (B, T) on, int64 and contiguous."""
    return _BandLattice.apply(px, py, begins, boundary, num_symbols, rnnt_type == "regular")

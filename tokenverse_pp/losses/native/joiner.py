"""Joiner + log-softmax + gather over a pruned band, without ever holding the (B, T, R, V) logits.

The loss needs two log-probabilities of each logit row: of the next symbol and of blank. They are computed in
chunks of frames small enough for the caches. If the memory budget allows, a chunk keeps its hidden rows
tanh(am + lm) and the exponentials of its logits; otherwise the backward pass recomputes both (one more
matrix product).

With e = exp(logits - max), the gradient of the logits is -(g_px + g_py) * e / sum(e), plus g_px at the symbol
and g_py at blank; so the kept exponentials become the gradient in place, and these two entries are written
from the exact log-probabilities.

Frames outside of an utterance are not computed at all, and the backward pass skips rows whose occupation is lost
in rounding (`_needed_rows`), which are most rows of a trained model.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from tokenverse_pp.losses.native.lattice import once_differentiable, without_autocast

# Minimum and maximum number of elements of a chunk's larger tensor. On a CPU, 4 MB in float32 stay in the caches, where
# all but the matrix products cost little; but a product of fewer than CHUNK_ROWS rows repacks the weights too often, so
# wide layers get up to 16 MB. A GPU needs large launches.
CHUNK_NUMBERS_CPU = (2**20, 2**22)
CHUNK_NUMBERS_GPU = (2**25, 2**25)
CHUNK_ROWS = 1024


class JoinerPlan(NamedTuple):
    """The rows to compute, and how."""

    frames: Optional[Tensor]  # (M,) positions of the valid frames in the flattened (B * T); None if all are
    lm_rows: Tensor  # (M, R) positions in the flattened (B * (S + 1))
    targets: Tensor  # (M, R) symbol of each row
    blank: int
    compute_dtype: torch.dtype  # of the matrix products
    memory_budget: int  # bytes that may be kept for the backward pass
    activation: str = "tanh"  # or relu


class _Chunk(NamedTuple):
    hidden: Tensor  # (rows, J), tanh(am + lm)
    weights: Tensor  # (rows, V), exp(logits - max)


def make_plan(
    ranges: Tensor,
    targets: Tensor,
    boundary: Tensor,
    lm_length: int,
    blank: int,
    compute_dtype: torch.dtype,
    memory_budget: int,
    activation: str = "tanh",
) -> JoinerPlan:
    """Lay out the rows of `ranges` (B, T, R) that lie inside of `boundary`; `lm_length` is S + 1."""
    batch, num_frames, band = ranges.shape
    frame = torch.arange(num_frames, device=ranges.device)
    valid = (frame >= boundary[:, 1:2]) & (frame < boundary[:, 3:4])
    # Positions past the last symbol have no part in the loss; their rows of lm are padding, which may be NaN.
    lm_rows = torch.minimum(ranges, boundary[:, 2].view(-1, 1, 1))
    lm_rows = lm_rows + lm_length * torch.arange(batch, device=ranges.device).reshape(-1, 1, 1)
    lm_rows, targets = lm_rows.reshape(-1, band), targets.reshape(-1, band)
    frames = None
    if not bool(valid.all()):
        frames = valid.flatten().nonzero().squeeze(1)
        lm_rows, targets = lm_rows[frames], targets[frames]
    return JoinerPlan(frames, lm_rows, targets, blank, compute_dtype, memory_budget, activation)


def _chunk_frames(plan: JoinerPlan, width: int) -> int:
    least, most = CHUNK_NUMBERS_CPU if plan.lm_rows.device.type == "cpu" else CHUNK_NUMBERS_GPU
    numbers = min(max(least, CHUNK_ROWS * width), most)
    return max(1, numbers // (width * plan.lm_rows.shape[1]))


def _pick(x: Tensor, frames: slice, picked: Optional[Tensor]) -> Tensor:
    """Rows of x (M, R) in a chunk, flattened; all of them, or those at positions `picked` in the chunk."""
    rows = x[frames].reshape(-1)
    return rows if picked is None else rows.index_select(0, picked)


def _through_sigmoid(x: Tensor) -> bool:
    """Whether to compute tanh(x) as 2 * sigmoid(2 x) - 1, in float32.

    On CPUs torch's tanh takes four times as long. The difference is at most 2e-7, three roundings near 1.
    """
    return x.device.type == "cpu" and x.dtype != torch.float64


class _Rows:
    """The joiner's inputs in the computing type, flattened; computes chunks of rows."""

    def __init__(self, plan: JoinerPlan, am: Tensor, lm: Tensor, weight: Tensor, bias: Tensor):
        am = am.detach().reshape(-1, am.shape[-1])
        self.am = (am if plan.frames is None else am[plan.frames]).to(plan.compute_dtype)
        self.lm = lm.detach().reshape(-1, lm.shape[-1]).to(plan.compute_dtype)
        sigmoid = plan.activation == "tanh" and _through_sigmoid(self.lm)
        self.twice_lm = 2.0 * self.lm.float() if sigmoid else None
        self.weight = weight.detach().to(plan.compute_dtype)
        self.bias = bias.detach().to(plan.compute_dtype)
        self.plan = plan
        self.workspace: Dict[str, Tensor] = {}

    def hidden(self, frames: slice, picked: Optional[Tensor] = None) -> Tensor:
        """tanh(am + lm), or relu, of the frames' rows, (rows, J)."""
        lm, scale = (self.lm, 1) if self.twice_lm is None else (self.twice_lm, 2)
        index = _pick(self.plan.lm_rows, frames, picked)
        if lm.dtype == self.plan.compute_dtype:
            rows = lm.index_select(0, index)
        else:
            rows = self._work("sums", (len(index), lm.shape[1]), lm.dtype)
            torch.index_select(lm, 0, index, out=rows)
        if picked is None:
            rows.view(-1, self.plan.lm_rows.shape[1], rows.shape[1]).add_(self.am[frames].unsqueeze(1), alpha=scale)
        else:
            rows.add_(self.am.index_select(0, self.frame_rows(frames, picked)), alpha=scale)
        if self.plan.activation == "relu":
            return rows.relu_()
        if self.twice_lm is None:
            return rows.tanh_()
        return rows.sigmoid_().mul_(2).sub_(1).to(self.plan.compute_dtype)

    def _work(self, name: str, shape: Tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Return a buffer that the next chunk reuses: allocating pages costs more than the computation on them."""
        buffer = self.workspace.get(name)
        if buffer is None or buffer.shape[0] < shape[0]:
            buffer = self.workspace[name] = torch.empty(shape, dtype=dtype, device=self.am.device)
        return buffer[: shape[0]]

    def frame_rows(self, frames: slice, picked: Tensor) -> Tensor:
        """The frame of each picked row."""
        return frames.start + torch.div(picked, self.plan.lm_rows.shape[1], rounding_mode="floor")

    def shifted_logits(self, hidden: Tensor, sum_dtype: torch.dtype) -> Tensor:
        """logits - max over the row, (rows, V), in `sum_dtype`."""
        if sum_dtype == self.plan.compute_dtype:
            logits = torch.addmm(self.bias, hidden, self.weight.t())
        else:
            shape = (len(hidden), len(self.bias))
            half = self._work("half", shape, self.plan.compute_dtype)
            torch.addmm(self.bias, hidden, self.weight.t(), out=half)
            logits = self._work("logits", shape, sum_dtype).copy_(half)
        logits.sub_(logits.amax(1, keepdim=True))
        return logits


class _Gradients:
    """Sums of the gradients over chunks, in the type of the losses."""

    def __init__(self, rows: _Rows, dtype: torch.dtype):
        def zeros(like: Tensor) -> Tensor:
            return torch.zeros(like.shape, dtype=dtype, device=like.device)

        self.rows, self.dtype = rows, dtype
        self.am, self.lm, self.weight, self.bias = map(zeros, (rows.am, rows.lm, rows.weight, rows.bias))

    def add(self, logit_grad: Tensor, hidden: Tensor, frames: slice, picked: Optional[Tensor]) -> None:
        """Propagate the gradient of a chunk's logits to parameters and inputs."""
        self.bias += logit_grad.sum(0, dtype=self.dtype)
        if logit_grad.dtype == self.dtype:
            self.weight.addmm_(logit_grad.t(), hidden)
        else:
            self.weight += torch.mm(logit_grad.t(), hidden)
        hidden_grad = torch.mm(logit_grad, self.rows.weight)
        if self.rows.plan.activation == "relu":
            sum_grad = torch.ops.aten.threshold_backward(hidden_grad, hidden, 0).to(self.dtype)
        else:
            sum_grad = torch.ops.aten.tanh_backward(hidden_grad, hidden).to(self.dtype)
        self.lm.index_add_(0, _pick(self.rows.plan.lm_rows, frames, picked), sum_grad)
        if picked is None:
            band = self.rows.plan.lm_rows.shape[1]
            torch.sum(sum_grad.view(-1, band, sum_grad.shape[1]), 1, out=self.am[frames])
        else:
            self.am.index_add_(0, self.rows.frame_rows(frames, picked), sum_grad)


class _JoinerLogProbs(torch.autograd.Function):
    """(am, lm, weight, bias) -> log-probabilities (M, R) of the target symbols and of blank."""

    @staticmethod
    def forward(ctx, am: Tensor, lm: Tensor, weight: Tensor, bias: Tensor, plan: JoinerPlan):
        rows = _Rows(plan, am, lm, weight, bias)
        out_dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        num_frames, band = plan.lm_rows.shape
        px = torch.empty((num_frames, band), dtype=out_dtype, device=am.device)
        py, total = torch.empty_like(px), torch.empty_like(px)
        step = _chunk_frames(plan, max(weight.shape))
        bytes_per_frame = band * sum(weight.shape) * rows.weight.element_size()
        frames_to_keep = plan.memory_budget // bytes_per_frame if any(ctx.needs_input_grad) else 0
        kept: List[_Chunk] = []
        for start in range(0, num_frames, step):
            frames = slice(start, min(start + step, num_frames))
            hidden = rows.hidden(frames)
            logits = rows.shifted_logits(hidden, out_dtype)
            symbol = logits.gather(1, plan.targets[frames].reshape(-1, 1)).squeeze(1)
            blank = logits[:, plan.blank].clone()
            weights = logits.exp_()
            chunk_total = weights.sum(1)
            log_total = chunk_total.log()
            px[frames] = (symbol - log_total).view(-1, band)
            py[frames] = (blank - log_total).view(-1, band)
            total[frames] = chunk_total.view(-1, band)
            if frames.stop <= frames_to_keep:
                kept.append(_Chunk(hidden, weights.to(plan.compute_dtype)))
        ctx.save_for_backward(am, lm, weight, bias, px, py, total)
        ctx.plan, ctx.kept, ctx.step = plan, kept, step
        return px, py

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, px_grad: Tensor, py_grad: Tensor):
        am, lm, weight, bias, px, py, total = ctx.saved_tensors
        plan: JoinerPlan = ctx.plan
        rows = _Rows(plan, am, lm, weight, bias)
        grads = _Gradients(rows, px.dtype)
        needed = _needed_rows(px_grad, py_grad, plan.compute_dtype)
        # Kept chunks are overwritten, so they can be used once; a second backward pass recomputes them.
        kept, ctx.kept = ctx.kept, []
        kept.reverse()
        for start in range(0, plan.lm_rows.shape[0], ctx.step):
            frames = slice(start, min(start + ctx.step, plan.lm_rows.shape[0]))
            picked = _worth_picking(needed[frames])
            if kept:
                hidden, weights = kept.pop()
                if picked is not None:
                    hidden, weights = hidden.index_select(0, picked), weights.index_select(0, picked)
            else:
                hidden = rows.hidden(frames, picked)
                weights = rows.shifted_logits(hidden, px.dtype).exp_()
            parts = [_pick(x, frames, picked) for x in (plan.targets, px, py, total, px_grad, py_grad)]
            grads.add(_logit_grad(weights, plan, *parts), hidden, frames, picked)
        am_grad = grads.am
        if plan.frames is not None:
            am_grad = am_grad.new_zeros((am.shape[0] * am.shape[1], am.shape[2])).index_copy_(0, plan.frames, am_grad)
        return (
            am_grad.view(am.shape).to(am.dtype),
            grads.lm.view(lm.shape).to(lm.dtype),
            grads.weight.to(weight.dtype),
            grads.bias.to(bias.dtype),
            None,
        )


def _needed_rows(px_grad: Tensor, py_grad: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Mask (M, R) of the rows that the backward pass must visit.

    The gradient of a row is at most its occupation, which in a trained model lies on one or two positions of a frame.
    A row is skipped if its occupation is at most eps / 1024 (of the computing type) times the largest of its frame: no
    sum over the frame's rows would change.
    """
    share = (px_grad + py_grad).abs()
    negligible = share <= share.amax(1, keepdim=True) * (torch.finfo(compute_dtype).eps / 1024)
    return ~negligible  # so that NaN is kept and shows


def _worth_picking(needed: Tensor) -> Optional[Tensor]:
    """Positions of the needed rows of a chunk; None if so many are needed that all are used without copying."""
    picked = needed.flatten().nonzero().squeeze(1)
    return picked if len(picked) < 0.8 * needed.numel() else None


def _logit_grad(
    weights: Tensor,
    plan: JoinerPlan,
    target: Tensor,
    px: Tensor,
    py: Tensor,
    total: Tensor,
    px_grad: Tensor,
    py_grad: Tensor,
) -> Tensor:
    """Turn exp(logits - max), (rows, V), into the gradient of the logits, in the computing type; others (rows,)."""
    both_grad = px_grad + py_grad
    grad = weights.mul_((-both_grad / total).unsqueeze(1)).to(plan.compute_dtype)
    at_symbol = px_grad - both_grad * px.exp()
    at_blank = py_grad - both_grad * py.exp()
    # If the target is itself blank, both gradients apply to the same logit.
    at_blank += torch.where(target == plan.blank, px_grad, torch.zeros_like(px_grad))
    grad.scatter_(1, target.unsqueeze(1), at_symbol.to(grad.dtype).unsqueeze(1))
    grad[:, plan.blank] = at_blank.to(grad.dtype)
    return grad


def joiner_log_probs(am: Tensor, lm: Tensor, weight: Tensor, bias: Tensor, plan: JoinerPlan) -> Tuple[Tensor, Tensor]:
    """Log-probabilities of targets and of blank under softmax(weight @ tanh(am + lm) + bias), in a band.

    Args:
      am: (B, T, J) and lm: (B, S + 1, J): the joiner's projected inputs.
      weight: (V, J), bias: (V,).
      plan: from `make_plan`.

    Returns:
      px, py, each (B, T, R), float32 (float64 for float64 parameters); 0 in frames outside of the boundary.
    """
    if not torch.is_grad_enabled():  # `forward` of an autograd function cannot check this
        plan = plan._replace(memory_budget=0)
    px, py = _JoinerLogProbs.apply(am, lm, weight, bias, plan)
    shape = (am.shape[0], am.shape[1], px.shape[1])
    if plan.frames is None:
        return px.view(shape), py.view(shape)
    padded = px.new_zeros((am.shape[0] * am.shape[1], px.shape[1]))
    return padded.index_copy(0, plan.frames, px).view(shape), padded.index_copy(0, plan.frames, py).view(shape)

"""What an encoder does beside attention, in forms that see nothing after a chunk's end: convolutions and statistics.

Sums of statistics are float64, so that adding them up chunk by chunk or all at once gives the same float32 numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenverse_pp.models.compat import in_exact_type
from tokenverse_pp.models.encoders.base import length_mask
from tokenverse_pp.models.masks import ChunkGrid


def sides(conv: nn.Conv1d) -> Tuple[int, int]:
    """Frames that a "same" convolution sees on the left and on the right; an even kernel sees one more on the left."""
    kernel = int(conv.kernel_size[0])
    return kernel // 2, kernel - 1 - kernel // 2


def convolve(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Run a convolution of stride 1 on x (N, C, T) without its padding -> (N, C', T - kernel + 1)."""
    gains: Any = getattr(conv, "weight_g", None)
    if gains is not None:
        # torch.nn.utils.weight_norm (before torch 2) sets conv.weight in a hook of forward, which is not run here.
        directions: Any = conv.weight_v
        weight = torch._weight_norm(directions, gains, max(range(3), key=lambda dim: gains.shape[dim]))
    else:
        weight = conv.weight
    return in_exact_type(conv, lambda x: F.conv1d(x, weight, conv.bias, groups=conv.groups), x)


def chunked_convolution(conv: nn.Conv1d, x: Tensor, grid: ChunkGrid) -> Tensor:
    """Run a "same" convolution whose right side is cut at the end of each frame's chunk.

    Args:
        conv: stride 1, any odd or even kernel, any groups.
        x: (N, T, C), zero on padding.
        grid: the chunks.

    Returns:
        (N, T, C').
    """
    left, right = sides(conv)
    n, t, c = x.shape
    chunks = -(-(t + grid.delay) // grid.size)
    x = F.pad(x.transpose(1, 2), (left + grid.delay, chunks * grid.size - grid.delay - t))
    windows = x.unfold(2, left + grid.size, grid.size).permute(0, 2, 1, 3)
    y = convolve(conv, F.pad(windows.reshape(n * chunks, c, -1), (0, right)))
    y = y.view(n, chunks, -1, grid.size).transpose(2, 3).reshape(n, chunks * grid.size, -1)
    return y[:, grid.delay : grid.delay + t]


class Moments(NamedTuple):
    """Numbers, sums and sums of squares so far, float64, of shapes that broadcast."""

    number: Tensor
    total: Tensor
    squares: Tensor

    def mean_and_scale(self, eps: float) -> Tuple[Tensor, Tensor]:
        """Mean, and one over the standard deviation, float32."""
        count = self.number.clamp(min=1)
        mean = self.total / count
        variance = (self.squares / count - mean.square()).clamp(min=0)
        return mean.float(), (variance + eps).rsqrt().float()


def in_chunks(x: Tensor, grid: ChunkGrid) -> Tensor:
    """Return x (.., T) as (.., chunks, size), with zeros in front (``delay`` of them) and behind."""
    chunks = -(-(x.shape[-1] + grid.delay) // grid.size)
    x = F.pad(x, (grid.delay, chunks * grid.size - grid.delay - x.shape[-1]))
    return x.unflatten(-1, (chunks, grid.size))


def from_chunks(x: Tensor, size: int, grid: ChunkGrid) -> Tensor:
    """Undo `in_chunks`: (.., chunks, size of a chunk) -> (.., ``size``)."""
    return x.flatten(-2)[..., grid.delay : grid.delay + size]


def running_moments(chunks: Tensor, lens: Tensor, grid: ChunkGrid) -> Moments:
    """Moments of all valid frames up to each chunk's end.

    Args:
        chunks: (N, .., chunks, size) of `in_chunks`, zero on padding.
        lens: valid frames, (N,).
        grid: the chunks.

    Returns:
        Moments, each (N, .., chunks).
    """
    total = chunks.sum(-1, dtype=torch.float64).cumsum(-1)
    squares = chunks.square().sum(-1, dtype=torch.float64).cumsum(-1)
    ends = torch.arange(1, chunks.shape[-2] + 1, device=lens.device) * grid.size - grid.delay
    count = torch.minimum(ends.clamp(min=0), lens.unsqueeze(1)).to(torch.float64)
    return Moments(count.view(len(lens), *[1] * (total.dim() - 2), -1), total, squares)


def normalise_running(audio: Tensor, lens: Tensor, chunk_samples: int) -> Tensor:
    """Zero mean and unit variance by the samples heard up to the end of each sample's chunk, (N, S) -> (N, S).

    The causal form of `normalise_audio`; padding is zero.
    """
    grid = ChunkGrid(chunk_samples, 0)
    mask = length_mask(lens, audio.shape[1])
    chunks = in_chunks(audio.masked_fill(~mask, 0.0), grid)
    mean, scale = running_moments(chunks, lens, grid).mean_and_scale(1e-7)
    normalised = (chunks - mean.unsqueeze(-1)) * scale.unsqueeze(-1)
    return from_chunks(normalised, audio.shape[1], grid).masked_fill(~mask, 0.0)


def running_group_norm(x: Tensor, lens: Tensor, norm: nn.GroupNorm, grid: ChunkGrid) -> Tensor:
    """Apply a GroupNorm of one channel a group to x (N, C, T), with statistics up to the end of each frame's chunk."""
    mask = length_mask(lens, x.shape[2]).unsqueeze(1)
    chunks = in_chunks(x.float().masked_fill(~mask, 0.0), grid)
    mean, scale = running_moments(chunks, lens, grid).mean_and_scale(norm.eps)
    normalised = from_chunks((chunks - mean.unsqueeze(-1)) * scale.unsqueeze(-1), x.shape[2], grid)
    return (normalised * norm.weight.view(1, -1, 1) + norm.bias.view(1, -1, 1)).to(x.dtype)

"""What a frame sees when an encoder runs in chunks: attention masks, convolutions and statistics.

A frame belongs to the chunk in which the last sample that it depends on arrives, so the frames of a chunk depend on
nothing after the chunk's end: the look-ahead is zero. The first chunk is therefore ``delay`` frames shorter than the
others (wav2vec2: one frame of 20 ms, which depends on 5 ms of the next chunk; Whisper: one, which depends on 12.5 ms).
Sums of statistics are float64: adding them chunk by chunk or all at once gives the same float32 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.losses.devices import in_exact_type


@dataclass(frozen=True)
class ChunkGrid:
    """The chunks at one frame rate: frame t of the audio is in chunk (t + delay) // size.

    Args:
        size: frames per chunk; the first one has ``size - delay``.
        delay: frames that belong to the next chunk, because they see samples past the end of this one.
        left_chunks: see ChunkOptions.
        sinks: attention sinks in frames of this rate, register frames included.
        strict: see ChunkOptions.
        registers: register frames (``vectors.registers``) before the audio frames. Attention treats them as sinks in
            the first chunk; convolutions keep them apart from the audio.
    """

    size: int
    delay: int
    left_chunks: int = -1
    sinks: int = 0
    strict: bool = True
    registers: int = 0

    def behind(self, registers: int) -> ChunkGrid:
        """Return this grid preceded by register frames, which are sinks."""
        return replace(self, registers=registers, sinks=self.sinks + registers)

    def chunk_of(self, frames: Tensor) -> Tensor:
        """Frame numbers of any shape, register frames included -> numbers of their chunks."""
        numbers = torch.div(frames - self.registers + self.delay, self.size, rounding_mode="floor")
        return numbers.masked_fill(frames < self.registers, 0) if self.registers else numbers

    def window_start(self, frames: Tensor) -> Tensor:
        """Frame numbers -> the first frame that each sees, apart from sinks."""
        if self.left_chunks < 0:
            return torch.zeros_like(frames)
        edges = (self.chunk_of(frames) - self.left_chunks) * self.size - self.delay + self.registers
        return edges.clamp(min=0)

    def segments(self, start: int, count: int) -> List[int]:
        """Split ``count`` audio frames from ``start`` on at chunk boundaries; return the lengths of the pieces.

        size 4, delay 1, frames 2 to 8:  2 | 3 4 5 6 | 7 8  ->  [1, 4, 2]
        """
        lengths = []
        while count > 0:
            length = min(count, self.size - (start + self.delay) % self.size)
            lengths.append(length)
            start, count = start + length, count - length
        return lengths

    def rounded_up(self, frames: int) -> int:
        """The number of frames, rounded up to complete chunks."""
        return -(-frames // self.size) * self.size

    def stacked(self, stack: int) -> ChunkGrid:
        """The grid of stacked frames, ``stack`` in one; each is in the chunk of its last frame."""
        sinks = -(-self.sinks // stack)
        delay, registers = (stack - 1 + self.delay) // stack, self.registers // stack
        return ChunkGrid(self.size // stack, delay, self.left_chunks, sinks, self.strict, registers)


def chunk_grid(options: ChunkOptions, hop: int, receptive: int, stack: int = 1) -> ChunkGrid:
    """Return the chunk grid of an encoder's frames.

    Args:
        options: of chunks, not of full context.
        hop: samples from one frame to the next.
        receptive: frame t sees the samples before ``hop * t + receptive``.
        stack: a chunk must hold a whole number of ``stack`` joined frames.

    Raises:
        UserError: the chunk is not a whole number of (joined) frames.
    """
    samples = options.chunk_samples
    if options.chunk_ms * SAMPLE_RATE % 1000 or samples % (hop * stack):
        raise UserError(
            f"--chunk-ms={options.chunk_ms}: expected a multiple of {1000 * hop * stack / SAMPLE_RATE:g} ms, "
            "the encoder's frame"
        )
    return ChunkGrid(samples // hop, (receptive - 1) // hop, options.left_chunks, options.sinks, options.strict)


def chunk_mask(size: int, grid: ChunkGrid, device: Optional[torch.device] = None) -> Tensor:
    """Return (size, size) bool: row t is true on the frames that frame t sees.

    size 8, chunks of 2 (the first has 1: delay 1), left_chunks 1, without sinks and with 1:

        1 . . . . . . .        1 . . . . . . .
        1 1 1 . . . . .        1 1 1 . . . . .
        1 1 1 . . . . .        1 1 1 . . . . .
        . 1 1 1 1 . . .        1 1 1 1 1 . . .
        . 1 1 1 1 . . .        1 1 1 1 1 . . .
        . . . 1 1 1 1 .        1 . . 1 1 1 1 .
        . . . 1 1 1 1 .        1 . . 1 1 1 1 .
        . . . . . 1 1 1        1 . . . . 1 1 1

    With left_chunks -1 everything below the diagonal blocks is true. A sink is seen from its own chunk on. Register
    frames are sinks of the first chunk.
    """
    frames = torch.arange(size, device=device)
    chunks = grid.chunk_of(frames)
    seen = (frames >= grid.window_start(frames).unsqueeze(1)) | (frames < grid.sinks)
    return seen & (chunks <= chunks.unsqueeze(1))


def sink_mask(size: int, grid: ChunkGrid, device: Optional[torch.device] = None) -> Tensor:
    """Return (size, sinks) bool: row t is true on the sinks that frame t sees outside its window.

    size 6, chunks of 2 (delay 0), left_chunks 0, sinks 3 (but never more than size):

        . . .
        . . .
        1 1 .
        1 1 .
        1 1 1
        1 1 1
    """
    frames = torch.arange(size, device=device)
    return frames[: grid.sinks] < grid.window_start(frames).unsqueeze(1)


def sides(conv: nn.Conv1d) -> Tuple[int, int]:
    """Frames that a "same" convolution sees on the left and on the right; for an even kernel one more on the left."""
    kernel = int(conv.kernel_size[0])
    return kernel // 2, kernel - 1 - kernel // 2


def convolve(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Run a convolution of stride 1 on x (N, C, T) without its padding -> (N, C', T - kernel + 1)."""
    gains: Any = getattr(conv, "weight_g", None)
    if gains is not None:
        # torch.nn.utils.weight_norm (before torch 2) sets conv.weight in a hook of forward, which does not run here.
        directions: Any = conv.weight_v
        weight = torch._weight_norm(directions, gains, max(range(3), key=lambda dim: gains.shape[dim]))
    else:
        weight = conv.weight
    return in_exact_type(conv, lambda x: F.conv1d(x, weight, conv.bias, groups=conv.groups), x)


def chunked_convolution(conv: nn.Conv1d, x: Tensor, grid: ChunkGrid) -> Tensor:
    """Run a "same" convolution whose right context is cut at the end of each frame's chunk, (N, T, C) -> (N, T, C').

    ``conv``: stride 1, any odd or even kernel, any groups. ``x``: zero on padding.
    """
    if grid.registers:
        registers, x = x.split([grid.registers, x.shape[1] - grid.registers], dim=1)
        audio = chunked_convolution(conv, x, replace(grid, registers=0))
        return torch.cat([convolve_alone(conv, registers), audio], dim=1)
    left, right = sides(conv)
    n, t, c = x.shape
    chunks = -(-(t + grid.delay) // grid.size)
    x = F.pad(x.transpose(1, 2), (left + grid.delay, chunks * grid.size - grid.delay - t))
    windows = x.unfold(2, left + grid.size, grid.size).permute(0, 2, 1, 3)
    y = convolve(conv, F.pad(windows.reshape(n * chunks, c, -1), (0, right)))
    y = y.view(n, chunks, -1, grid.size).transpose(2, 3).reshape(n, chunks * grid.size, -1)
    return y[:, grid.delay : grid.delay + t]


def convolve_alone(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Run a "same" convolution of stride 1 on zero-padded x (N, T, C) -> (N, T, C')."""
    return convolve(conv, F.pad(x.transpose(1, 2), sides(conv))).transpose(1, 2)


def in_chunks(x: Tensor, grid: ChunkGrid) -> Tensor:
    """Reshape x (.., T) to (.., chunks, size), padded with ``delay`` zeros in front and zeros at the end."""
    chunks = -(-(x.shape[-1] + grid.delay) // grid.size)
    x = F.pad(x, (grid.delay, chunks * grid.size - grid.delay - x.shape[-1]))
    return x.unflatten(-1, (chunks, grid.size))


def from_chunks(x: Tensor, size: int, grid: ChunkGrid) -> Tensor:
    """Undo `in_chunks`: (.., chunks, size of a chunk) -> (.., ``size``)."""
    return x.flatten(-2)[..., grid.delay : grid.delay + size]


class Moments(NamedTuple):
    """Running counts, sums and sums of squares, float64, of broadcastable shapes."""

    number: Tensor
    total: Tensor
    squares: Tensor

    def mean_and_scale(self, eps: float) -> Tuple[Tensor, Tensor]:
        """Mean, and one over the standard deviation, float32."""
        count = self.number.clamp(min=1)
        mean = self.total / count
        variance = (self.squares / count - mean.square()).clamp(min=0)
        return mean.float(), (variance + eps).rsqrt().float()


def running_moments(chunks: Tensor, lens: Tensor, grid: ChunkGrid) -> Moments:
    """Moments (N, .., chunks) of all valid frames (lens (N,)) up to each chunk's end.

    ``chunks``: (N, .., chunks, size) from `in_chunks`, zero on padding.
    """
    total = chunks.sum(-1, dtype=torch.float64).cumsum(-1)
    squares = chunks.square().sum(-1, dtype=torch.float64).cumsum(-1)
    lens = lens.to(chunks.device, non_blocking=True)
    ends = torch.arange(1, chunks.shape[-2] + 1, device=lens.device) * grid.size - grid.delay
    count = torch.minimum(ends.clamp(min=0), lens.unsqueeze(1)).to(torch.float64)
    return Moments(count.view(len(lens), *[1] * (total.dim() - 2), -1), total, squares)

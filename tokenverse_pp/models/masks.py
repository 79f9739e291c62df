"""Chunked attention masks (chunks, left context, attention sinks) and SpecAugment (Park et al., 2019).

A frame belongs to the chunk in which the last sample that it depends on arrives, so frames of a chunk depend on nothing
after the chunk's end: the look-ahead is zero. The first chunk is therefore ``delay`` frames shorter than the others
(wav2vec2: one frame of 20 ms, which depends on 5 ms of the next chunk; Whisper: one, which depends on 12.5 ms).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional

import torch
from torch import Tensor, nn

from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions, SpecAugmentConfig
from tokenverse_pp.base.errors import UserError


@dataclass(frozen=True)
class ChunkGrid:
    """The chunks at one frame rate: frame t is in chunk (t + delay) // size.

    Args:
        size: frames a chunk; the first one has ``size - delay``.
        delay: frames that must wait for the next chunk, because they see samples past the end of theirs.
        left_chunks: see ChunkOptions.
        sinks: in frames of this rate.
        strict: see ChunkOptions.
    """

    size: int
    delay: int
    left_chunks: int = -1
    sinks: int = 0
    strict: bool = True

    def chunk_of(self, frames: Tensor) -> Tensor:
        """Frame numbers -> numbers of their chunks, both of any shape."""
        return torch.div(frames + self.delay, self.size, rounding_mode="floor")

    def window_start(self, frames: Tensor) -> Tensor:
        """Frame numbers -> the first frame that each sees (but for sinks), given the left context."""
        if self.left_chunks < 0:
            return torch.zeros_like(frames)
        return ((self.chunk_of(frames) - self.left_chunks) * self.size - self.delay).clamp(min=0)

    def segments(self, start: int, count: int) -> List[int]:
        """Cut ``count`` frames from ``start`` on at the chunks' edges -> lengths of the pieces.

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
        """The grid of frames that join ``stack`` of these: each is in the chunk of the last one that it joins."""
        sinks = -(-self.sinks // stack)
        return ChunkGrid(
            self.size // stack, (stack - 1 + self.delay) // stack, self.left_chunks, sinks, strict=self.strict
        )


def chunk_grid(options: ChunkOptions, hop: int, receptive: int, stack: int = 1) -> ChunkGrid:
    """The chunks of frames that are ``hop`` samples apart and see ``receptive`` samples from their start on.

    Args:
        options: not of full context.
        hop: samples from one frame to the next.
        receptive: frame t sees no sample from ``hop * t + receptive`` on.
        stack: frames that will be joined later: a chunk must hold a whole number of joined frames.

    Raises:
        UserError: the chunk is no whole number of (joined) frames.
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

    With left_chunks -1 everything below the diagonal blocks is true. A sink is seen from its own chunk on.
    """
    frames = torch.arange(size, device=device)
    chunks = grid.chunk_of(frames)
    seen = (frames >= grid.window_start(frames).unsqueeze(1)) | (frames < grid.sinks)
    return seen & (chunks <= chunks.unsqueeze(1))


def sink_mask(size: int, grid: ChunkGrid, device: Optional[torch.device] = None) -> Tensor:
    """Return (size, sinks) bool: row t is true on the sinks that frame t sees beside its window.

    What `chunk_mask` adds for sinks. size 6, chunks of 2 (delay 0), left_chunks 0, sinks 3 (but never more than size):

        . . .
        . . .
        1 1 .
        1 1 .
        1 1 1
        1 1 1
    """
    frames = torch.arange(size, device=device)
    return frames[: grid.sinks] < grid.window_start(frames).unsqueeze(1)


# channels, longest span


class SpecAugment(nn.Module):
    """Masks features in training mode, each utterance with its own masks; the identity in eval mode."""

    def __init__(self, config: SpecAugmentConfig):
        super().__init__()
        self.config = config

    def forward(self, features: Tensor, lens: Tensor) -> Tensor:
        """features (N, T, F), lens (N,) valid frames -> (N, T, F), a new tensor where anything was masked."""
        if not self.training:
            return features
        c = self.config
        if c.time_share > 0:
            features = features.masked_fill(_spans(lens, features.shape[1], c.time_share, c.time_span)[:, :, None], 0)
        if c.channel_share > 0:
            size = features.shape[2]
            widths = torch.full_like(lens, size)
            features = features.masked_fill(_spans(widths, size, c.channel_share, c.channel_span)[:, None, :], 0)
        return features


def _spans(lens: Tensor, size: int, share: float, span: int) -> Tensor:
    """Random spans of 0 to ``span`` places within each length, covering about ``share`` -> mask (N, size)."""
    device = lens.device
    # A span is span / 2 long on average; the number of spans is rounded up or down at random, to keep the mean.
    count = lens.to(torch.float32) * share / (span / 2)
    count = (count + torch.rand(lens.shape, device=device)).floor().long()
    most = int(count.max()) if len(lens) else 0
    if most == 0:
        return torch.zeros(len(lens), size, dtype=torch.bool, device=device)
    width = torch.randint(0, span + 1, (len(lens), most), device=device)
    room = (lens[:, None] - width).clamp(min=0)
    start = (torch.rand(len(lens), most, device=device) * (room + 1)).long()
    width = torch.where(torch.arange(most, device=device) < count[:, None], width, torch.zeros_like(width))
    places = torch.arange(size, device=device)
    inside = (places >= start[:, :, None]) & (places < (start + width)[:, :, None])
    return inside.any(dim=1)

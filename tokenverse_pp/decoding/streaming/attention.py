"""The attention cache of a streaming encoder: keys and values of the frames before a chunk that the chunk can see.

These are its left context, a moving window, and the attention sinks (with the register frames), which always stay.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from tokenverse_pp.models.encoders.base import score_bias
from tokenverse_pp.models.encoders.chunks import ChunkGrid

State = Dict[str, Tensor]


class Sight(NamedTuple):
    """What the new frames of N streams see; the same in every layer.

    The window's slots are filled from the right. Streams that are younger than the window have empty slots on its left.
    """

    frames: Tensor  # (N,) number of audio frames before the new ones
    registers: int  # the number of register frames before the new ones
    window_start: Tensor  # (N,) the window's first frame
    # (N, 1, 1 or registers + new, slots + new); None if every slot is filled and nothing is kept beside the window
    bias: Optional[Tensor]
    sink_bias: Optional[Tensor]  # the same over register frames and sinks; None without either
    fills_sinks: bool  # whether some of the new frames may become sinks


def window_slots(grid: ChunkGrid) -> int:
    """Number of frames in the window; 0 if it grows."""
    return max(0, grid.left_chunks) * grid.size


def sink_slots(grid: ChunkGrid) -> int:
    """Number of frames kept beside the window: register frames, and sinks unless it holds every frame."""
    return grid.sinks if grid.left_chunks >= 0 else grid.registers


def look(frames: Tensor, new: int, grid: ChunkGrid, registers: int = 0) -> Sight:
    """Return what ``new`` frames of one chunk see, in streams with ``frames`` (N,) audio frames before them.

    The first ``registers`` new frames are register frames, which see nothing before the chunk.
    """
    new -= registers
    slots = int(frames.max()) if grid.left_chunks < 0 else window_slots(grid)
    filled = frames if grid.left_chunks < 0 else frames.clamp(max=slots)
    start = frames - filled
    seen = torch.arange(slots + new, device=frames.device) >= (slots - filled).unsqueeze(1)
    if not sink_slots(grid):
        bias = None if bool(seen.all()) else score_bias(seen, torch.float32)[:, None, None, :]
        return Sight(frames, registers, start, bias, None, False)
    sinks_seen = torch.arange(sink_slots(grid), device=frames.device) < grid.registers + start.unsqueeze(1)
    seen, sinks_seen = seen.unsqueeze(1), sinks_seen.unsqueeze(1)
    if registers:
        # They see only each other and the chunk: the frames before it may have had other tasks.
        audio = torch.arange(registers + new, device=frames.device).unsqueeze(1) >= registers
        seen = seen & (audio | (torch.arange(slots + new, device=frames.device) >= slots))
        sinks_seen = sinks_seen & (audio | (torch.arange(sink_slots(grid), device=frames.device) < registers))
    bias, sink_bias = (score_bias(mask, torch.float32).unsqueeze(1) for mask in (seen, sinks_seen))
    audio_sinks = sink_slots(grid) - grid.registers
    fills_sinks = new > 0 and audio_sinks > 0 and int(frames.min()) < audio_sinks
    return Sight(frames, registers, start, bias, sink_bias, fills_sinks)


class AttentionWindow:
    """The window and the sinks of one attention layer, (2, H, frames, D) each: keys and values."""

    def __init__(self, name: str, heads: int, head_dim: int, grid: ChunkGrid) -> None:
        self.window, self.sinks = f"{name}.window", f"{name}.sinks"
        self.heads, self.head_dim, self.grid = heads, head_dim, grid

    def start(self, like: Tensor) -> State:
        """Return empty slots with the device and dtype of ``like``."""
        state = {self.window: like.new_zeros(2, self.heads, window_slots(self.grid), self.head_dim)}
        if sink_slots(self.grid):
            state[self.sinks] = like.new_zeros(2, self.heads, sink_slots(self.grid), self.head_dim)
        return state

    def push(
        self, k: Tensor, v: Tensor, state: State, sight: Sight, sink_keys: Optional[Tensor] = None
    ) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
        """Add a chunk's keys and values (N, H, T, D), and update ``state`` to what the next chunk will see.

        ``sink_keys`` are the keys in the form that sinks store, if not ``k``.

        Returns:
            Keys and values of window and chunk (N, H, slots + new, D), and those of register frames and sinks
            (N, 2, H, sinks, D) as this chunk sees them.
        """
        new, registers = torch.stack([k, v], dim=1), sight.registers
        seen = torch.cat([state[self.window], new[..., registers:, :]], dim=-2)
        slots = window_slots(self.grid)
        state[self.window] = seen if self.grid.left_chunks < 0 else seen[..., seen.shape[-2] - slots :, :]
        sinks = state.get(self.sinks)
        if sinks is None:
            return seen[:, 0], seen[:, 1], None
        kept = new if sink_keys is None else torch.stack([sink_keys, v], dim=1)
        if registers:
            sinks = state[self.sinks] = torch.cat([kept[..., :registers, :], sinks[..., registers:, :]], dim=-2)
            kept = kept[..., registers:, :]
        if sight.fills_sinks:
            # New frames that are among the utterance's first go into the sinks.
            source = torch.arange(sinks.shape[-2], device=k.device) - self.grid.registers - sight.frames.unsqueeze(1)
            mine = (source >= 0) & (source < kept.shape[-2])
            index = source.clamp(0, kept.shape[-2] - 1)[:, None, None, :, None].expand_as(sinks)
            state[self.sinks] = torch.where(mine[:, None, None, :, None], kept.gather(-2, index), sinks)
        return seen[:, 0], seen[:, 1], sinks

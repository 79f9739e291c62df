"""What the stages of a streaming encoder have in common: state by name, of one stream or of a batch of streams.

Keys and values of what a chunk sees before itself: its left context, and the attention sinks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenverse_pp.models.encoders.base import score_bias
from tokenverse_pp.models.encoders.chunks import ChunkGrid

State = Dict[str, Tensor]


class ChunkPlace(NamedTuple):
    """Where the streams of a batch are; the same for all of them, but for the tasks."""

    first: bool  # this is each stream's first chunk
    last: bool  # and this its last
    active: Tensor  # (N, K + 1)


class Stage(ABC):
    """One stage of the encoder, for batches of streams whose chunks have the same number of frames."""

    @abstractmethod
    def start(self) -> State:
        """The state of one new stream."""

    @abstractmethod
    def step(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """Take the next input of N streams (N, ..), and give what can be said now.

        ``state`` is that of the batch: the entries of `start` with N in front. The stage replaces its own entries.
        """


def batch_states(states: Sequence[State]) -> State:
    """States of streams -> state of the batch; windows that grow are filled up on the left (last but one axis)."""
    batched = {}
    for key, tensor in states[0].items():
        tensors = [state[key] for state in states]
        if len(states) == 1:
            batched[key] = tensor.unsqueeze(0)
            continue
        longest = max(t.shape[-2] if t.dim() > 1 else 0 for t in tensors)
        if any(t.shape != tensor.shape for t in tensors):
            tensors = [F.pad(t, (0, 0, longest - t.shape[-2], 0)) for t in tensors]
        batched[key] = torch.stack(tensors)
    return batched


def split_state(state: State, count: int) -> List[State]:
    """State of a batch -> states of its streams, none of which holds on to the memory of the others."""
    if count == 1:
        return [{key: tensor[0] for key, tensor in state.items()}]
    return [{key: tensor[row].clone() for key, tensor in state.items()} for row in range(count)]


class Sight(NamedTuple):
    """What the new frames of N streams see; the same in every layer.

    The window's slots are filled from the right. Streams that are younger than the window have empty slots on its left.
    """

    frames: Tensor  # (N,) before the new ones
    window_start: Tensor  # (N,) the window's first frame
    bias: Optional[Tensor]  # (N, 1, 1, slots + new); None where every slot is filled
    sink_bias: Optional[Tensor]  # (N, 1, 1, sinks); None without sinks


def window_slots(grid: ChunkGrid) -> int:
    """Frames that the window holds; 0 where it grows."""
    return max(0, grid.left_chunks) * grid.size


def sink_slots(grid: ChunkGrid) -> int:
    """Frames kept beside the window: none where it holds every frame anyway."""
    return grid.sinks if grid.left_chunks >= 0 else 0


def look(frames: Tensor, new: int, grid: ChunkGrid) -> Sight:
    """What ``new`` frames of one chunk see, in streams that had ``frames`` (N,) before."""
    if grid.left_chunks < 0:
        slots = int(frames.max())
        filled = frames
    else:
        slots = window_slots(grid)
        filled = frames.clamp(max=slots)
    places = torch.arange(slots + new, device=frames.device)
    seen = places >= (slots - filled).unsqueeze(1)
    bias = None if bool(seen.all()) else score_bias(seen, torch.float32)[:, None, None, :]
    start = frames - filled
    sink_bias = None
    if sink_slots(grid):
        sinks_seen = torch.arange(grid.sinks, device=frames.device) < start.unsqueeze(1)
        sink_bias = score_bias(sinks_seen, torch.float32)[:, None, None, :]
    return Sight(frames, start, bias, sink_bias)


class AttentionWindow:
    """The window and the sinks of one attention layer.

    Args:
        name: of its entries in the state.
        heads: H.
        head_dim: D.
        grid: the chunks.
    """

    def __init__(self, name: str, heads: int, head_dim: int, grid: ChunkGrid) -> None:
        self.window, self.sinks = f"{name}.window", f"{name}.sinks"
        self.heads, self.head_dim, self.grid = heads, head_dim, grid

    def start(self, like: Tensor) -> State:
        """Empty slots, on the device and of the type of ``like``."""
        state = {self.window: like.new_zeros(2, self.heads, window_slots(self.grid), self.head_dim)}
        if sink_slots(self.grid):
            state[self.sinks] = like.new_zeros(2, self.heads, self.grid.sinks, self.head_dim)
        return state

    def push(
        self, k: Tensor, v: Tensor, state: State, sight: Sight, sink_keys: Optional[Tensor] = None
    ) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
        """Add a chunk's keys and values (N, H, new, D).

        Args:
            k, v: of the chunk.
            state: of the batch; its entries are replaced by what the next chunk will see.
            sight: from `look`, for this chunk.
            sink_keys: keys in the form in which sinks keep them, if not ``k``.

        Returns:
            Keys and values of window and chunk (N, H, slots + new, D), and those of the sinks (N, 2, H, sinks, D) as
            this chunk sees them.
        """
        new = torch.stack([k, v], dim=1)
        seen = torch.cat([state[self.window], new], dim=-2)
        slots = window_slots(self.grid)
        state[self.window] = seen if self.grid.left_chunks < 0 else seen[..., seen.shape[-2] - slots :, :]
        sinks = state.get(self.sinks)
        if sinks is not None and int(sight.frames.min()) < self.grid.sinks:
            kept = new if sink_keys is None else torch.stack([sink_keys, v], dim=1)
            state[self.sinks] = self._fill(sinks, kept, sight.frames)
        return seen[:, 0], seen[:, 1], sinks

    def _fill(self, sinks: Tensor, new: Tensor, frames: Tensor) -> Tensor:
        """Put those of the new frames (N, 2, H, new, D) that are among the utterance's first into the sinks."""
        source = torch.arange(self.grid.sinks, device=frames.device) - frames.unsqueeze(1)
        mine = (source >= 0) & (source < new.shape[-2])
        index = source.clamp(0, new.shape[-2] - 1)[:, None, None, :, None].expand_as(sinks)
        return torch.where(mine[:, None, None, :, None], new.gather(-2, index), sinks)

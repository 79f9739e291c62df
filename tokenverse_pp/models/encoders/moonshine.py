"""Moonshine's streaming encoder: raw audio, causal convolutions, sliding-window attention, no position embeddings."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions
from tokenverse_pp.models.encoders.base import (
    Backbone,
    attention_bias,
    check_length,
    length_mask,
    seen_frames,
    stacked_lens,
    zero_padding,
)
from tokenverse_pp.models.encoders.chunks import ChunkGrid


class MoonshineBackbone(Backbone):
    """``MoonshineStreamingEncoder``: frames of 5 ms, two convolutions | layers, final norm.

    Each layer sees a window of frames, ``sliding_windows`` in its configuration: (past frames plus its own, future
    frames plus one). transformers' convolutions count more valid frames in a padded batch than without padding; here
    the number does not depend on padding. With chunks, a window is cut at the end of a frame's chunk. Register frames
    are seen beside the window.
    """

    own_chunks = ChunkGrid(2**40, 0)  # without chunk options, windows are not cut
    norm_name = "final_norm"

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.frame_len = int(encoder.embedder.frame_len)
        self.hop, self.receptive = 4 * self.frame_len, self.frame_len
        self.frame_shift = self.hop / SAMPLE_RATE
        self.hidden_size = encoder.config.hidden_size
        self.windows: List[Tuple[int, int]] = [tuple(window) for window in encoder.config.sliding_windows]  # type: ignore[misc]

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames of 20 ms."""
        return stacked_lens(torch.div(lens, self.frame_len, rounding_mode="floor"), 4)

    def embed(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tensor:
        """See Backbone: the output of the second convolution. Statistics cover single frames of 5 ms."""
        frame_lens = self.frame_lens(lens)
        check_length(lens, frame_lens)
        embedder = self.encoder.embedder
        frames = audio.float()[:, : audio.shape[1] // self.frame_len * self.frame_len]
        frames = frames.reshape(audio.shape[0], -1, self.frame_len)
        x = F.silu(embedder.linear(embedder.comp(embedder.cmvn(frames))))
        valid = length_mask(torch.div(lens, self.frame_len, rounding_mode="floor"), x.shape[1], x.device)
        x = x.masked_fill(~valid.unsqueeze(-1), 0.0).transpose(1, 2)
        x = embedder.conv2(F.silu(embedder.conv1(x)[0]))[0].transpose(1, 2)
        return zero_padding(x, frame_lens)

    def add_positions(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Tensor:
        """See Backbone: the model has no positions."""
        return x

    def layer_arguments(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Dict[str, Any]:
        """See Backbone: an attention mask for each window size."""
        size = x.shape[1]
        frames = torch.arange(size, device=x.device)
        ahead = frames - frames.unsqueeze(1)
        allowed = seen_frames(size, grid, x.device)
        masks = {}
        for back, forward in set(self.windows):
            seen = (ahead > -back) & (ahead < max(forward, 1))
            if grid is not None and grid.registers:
                seen = seen | (frames < grid.registers)
            if allowed is not None:
                seen = seen & (allowed if grid is None or grid.strict else allowed | (ahead > 0))
            masks[back, forward] = attention_bias(lens, size, x.device, seen)
        return {"masks": masks}

    def arguments_of(self, number: int, arguments: Dict[str, Any]) -> Dict[str, Any]:
        """See Backbone: the mask of the layer's window."""
        return {"attention_mask": arguments["masks"][self.windows[number]]}

    def lookahead(self, grid: ChunkGrid, layers: int) -> int:
        """See Backbone: the windows' future frames, summed over layers."""
        ahead = sum(max(forward - 1, 0) for _, forward in self.windows[:layers])
        return 0 if grid.strict else grid.rounded_up(ahead)

    def freeze_embedding(self) -> None:
        """Stop training the modules before the layers."""
        self.encoder.embedder.requires_grad_(False)

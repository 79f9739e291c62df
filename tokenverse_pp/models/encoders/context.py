"""A small conformer that adds context to the features of a frozen encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from tokenverse_pp.losses.devices import scaled_dot_product_attention
from tokenverse_pp.models.encoders.base import TrainedLayers, attention_bias, length_mask, score_bias, zero_padding
from tokenverse_pp.models.encoders.chunks import ChunkGrid, chunk_mask, chunked_convolution, sides, sink_mask


def rotary_table(frames: int, dim: int, device: torch.device) -> Tuple[Tensor, Tensor]:
    """Cosines and sines, (frames, dim / 2) each, of rotary positions (RoFormer, Su et al. 2021), base 10000."""
    rates = 10000.0 ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angles = torch.arange(frames, device=device, dtype=torch.float32).unsqueeze(1) * rates
    return angles.cos(), angles.sin()


def rotary_angles(places: Tensor, dim: int) -> Tuple[Tensor, Tensor]:
    """`rotary_table` for given frame numbers (..,): (.., dim / 2) each; exact for streams of hours."""
    rates = 10000.0 ** (-torch.arange(0, dim, 2, device=places.device, dtype=torch.float64) / dim)
    angles = places.to(torch.float64).unsqueeze(-1) * rates
    return angles.cos().float(), angles.sin().float()


class Sinks(NamedTuple):
    """Inputs of attention for sinks outside its window.

    A sink that has left the window moves to a position right before the window; otherwise its distance would grow
    without limit (positions within the cache, StreamingLLM, Xiao et al. 2023).
    """

    keys: Tuple[Tensor, Tensor]  # rotary table of the sinks, (sinks, D / 2) each
    queries: Tuple[Tensor, Tensor]  # rotary table of the queries on sinks, (.., T, D / 2) each
    bias: Tensor  # (N, 1, T, sinks)


def rotate(x: Tensor, table: Tuple[Tensor, Tensor]) -> Tensor:
    """Rotate channel pairs (i, i + D / 2) of x (N, H, T, D) by the frame's angle."""
    cos, sin = (part.to(x.dtype) for part in table)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def feed_forward(dim: int, inner: int, dropout: float) -> nn.Sequential:
    """Pre-norm feed-forward part: (N, T, C) -> (N, T, C)."""
    layers = (nn.LayerNorm(dim), nn.Linear(dim, inner), nn.SiLU(), nn.Linear(inner, dim), nn.Dropout(dropout))
    return nn.Sequential(*layers)


class SelfAttention(nn.Module):
    """Pre-norm multi-head self-attention with rotary positions, without dropout on the weights (for speed)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, bias: Optional[Tensor], table: Tuple[Tensor, Tensor], sinks: Optional[Sinks] = None
    ) -> Tensor:
        """X (N, T, C), bias (N, 1, T, T) or None, table from rotary_table -> (N, T, C)."""
        q, k, v = self.project(x)
        if sinks is None:
            return self.finish(scaled_dot_product_attention(rotate(q, table), rotate(k, table), v, bias))
        assert bias is not None
        count = sinks.bias.shape[-1]
        first = (k[:, :, :count], v[:, :, :count])
        return self.finish(attend_with_sinks(q, table, rotate(k, table), v, bias, first, sinks))

    def project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """X (N, T, C) -> queries, keys and values (N, H, T, D), not rotated."""
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v

    def finish(self, y: Tensor) -> Tensor:
        """Attention output (N, H, T, D) -> (N, T, C)."""
        return self.dropout(self.output(y.transpose(1, 2).flatten(2)))


def attend_with_sinks(
    q: Tensor,
    table: Tuple[Tensor, Tensor],
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    first: Tuple[Tensor, Tensor],
    sinks: Sinks,
) -> Tensor:
    """Attention over sinks and a window, with different query positions for each.

    Queries have twice the width, [rotated for the window | rotated for the sinks]; keys are zero in the other half.

    Args:
        q: queries (N, H, T, D), not rotated.
        table: rotary table of the queries in the window.
        k: keys of the window (N, H, K, D), rotated.
        v: values of the window.
        bias: (N, 1, T, K).
        first: keys (not rotated) and values of the sinks, (N, H, sinks, D).
        sinks: their positions and bias.
    """
    # The factor compensates for dividing the scores by the root of the doubled width.
    q = torch.cat([rotate(q, table), rotate(q, sinks.queries)], dim=-1) * 2.0**0.5
    sink_keys = rotate(first[0], sinks.keys)
    keys = torch.cat(
        [torch.cat([torch.zeros_like(sink_keys), sink_keys], dim=-1), torch.cat([k, torch.zeros_like(k)], dim=-1)],
        dim=-2,
    )
    return scaled_dot_product_attention(
        q, keys, torch.cat([first[1], v], dim=-2), torch.cat([sinks.bias, bias], dim=-1)
    )


class Convolution(nn.Module):
    """The conformer's convolution module; LayerNorm replaces BatchNorm, whose statistics would include padding."""

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.middle_norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, grid: Optional[ChunkGrid] = None) -> Tensor:
        """X (N, T, C), mask (N, T) true on valid frames -> (N, T, C); strict chunks cut its right context."""
        x = self.before(x).masked_fill(~mask.unsqueeze(-1), 0.0)
        if grid is not None and grid.strict:
            return self.after(chunked_convolution(self.depthwise, x, grid))
        return self.after(self.depthwise(x.transpose(1, 2)).transpose(1, 2))

    def before(self, x: Tensor) -> Tensor:
        """The part before the depthwise convolution, (N, T, C) -> (N, T, C)."""
        return nn.functional.glu(self.gate(self.norm(x)), dim=-1)

    def after(self, x: Tensor) -> Tensor:
        """The part after the depthwise convolution, (N, T, C) -> (N, T, C)."""
        return self.dropout(self.output(nn.functional.silu(self.middle_norm(x))))


class ContextLayer(nn.Module):
    """A conformer layer (Gulati et al. 2020): half feed-forward, attention, convolution, half feed-forward, norm."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.first_ffn = feed_forward(dim, ffn_dim, dropout)
        self.attention = SelfAttention(dim, heads, dropout)
        self.convolution = Convolution(dim, kernel, dropout)
        self.second_ffn = feed_forward(dim, ffn_dim, dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        bias: Optional[Tensor],
        table: Tuple[Tensor, Tensor],
        sinks: Optional[Sinks] = None,
        grid: Optional[ChunkGrid] = None,
    ) -> Tensor:
        """X (N, T, C), mask (N, T), bias, table and sinks as in SelfAttention -> (N, T, C); grid: the chunks."""
        x = x + 0.5 * self.first_ffn(x)
        x = x + self.attention(x, bias, table, sinks)
        x = x + self.convolution(x, mask, grid)
        x = x + 0.5 * self.second_ffn(x)
        return self.norm(x)


class ContextNetwork(nn.Module):
    """LayerNorm and projection of the input, then conformer layers."""

    def __init__(
        self, input_dim: int, dim: int, num_layers: int, heads: int, ffn_dim: int, kernel: int, dropout: float
    ) -> None:
        super().__init__()
        self.trained_layers = TrainedLayers()
        self.head_dim = dim // heads
        self.input = nn.Sequential(nn.LayerNorm(input_dim), nn.Linear(input_dim, dim), nn.Dropout(dropout))
        self.layers = nn.ModuleList(ContextLayer(dim, heads, ffn_dim, kernel, dropout) for _ in range(num_layers))

    def forward(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Tensor:
        """X (N, T, input_dim), lens (N,) -> (N, T, dim), zero on padding; grid: chunks of these (stacked) frames."""
        mask = length_mask(lens, x.shape[1], x.device)
        if grid is None:
            bias, sinks = attention_bias(lens, x.shape[1], x.device), None
            table = rotary_table(x.shape[1], self.head_dim, x.device)
        else:
            bias, table, sinks = self._in_chunks(lens, mask, grid)
        arguments = (mask, bias, table, sinks, grid)

        def call(layer: nn.Module, x: Tensor, compiled: Optional[Callable[..., Tensor]]) -> Tensor:
            # Each chunk size would need another compilation.
            return layer(x, *arguments) if compiled is None or grid is not None else compiled(layer, x, arguments, {})

        x, run = self.input(x), self.trained_layers.runner(self.training)
        for layer in self.layers:
            x = run(layer, call, x)
        return zero_padding(x, lens)

    def _in_chunks(
        self, lens: Tensor, mask: Tensor, grid: ChunkGrid
    ) -> Tuple[Optional[Tensor], Tuple[Tensor, Tensor], Optional[Sinks]]:
        """Bias, rotary table and sinks of frames in chunks; lens (N,), mask (N, T) true on valid frames."""
        size = mask.shape[1]
        seen = chunk_mask(size, replace(grid, sinks=0), mask.device)
        bias = attention_bias(lens, size, mask.device, seen)
        frames = torch.arange(size, device=mask.device)
        table = rotary_angles(frames, self.head_dim)
        if grid.sinks == 0 or grid.left_chunks < 0:
            return bias, table, None
        sinks_seen = sink_mask(size, grid, mask.device)
        count = sinks_seen.shape[1]
        sink_bias = score_bias(mask[:, None, None, :count] & sinks_seen, torch.float32)
        places = frames - sink_shift(grid.window_start(frames), grid)
        keys = (table[0][:count], table[1][:count])
        return bias, table, Sinks(keys, rotary_angles(places, self.head_dim), sink_bias)

    def lookahead(self, grid: ChunkGrid) -> int:
        """Frames after the end of its chunk on which a frame can depend, in whole chunks.

        A convolution that sees one frame of the next chunk sees all of it, through the attention below.
        """
        if grid.strict:
            return 0
        frames = 0
        for layer in self.layers:
            depthwise: Any = layer.convolution.depthwise  # type: ignore[union-attr]
            frames += grid.rounded_up(sides(depthwise)[1])
        return frames


def sink_shift(window_start: Tensor, grid: ChunkGrid) -> Tensor:
    """The number of frames by which sinks are moved to lie directly before a window."""
    return (window_start - grid.sinks).clamp(min=0)


def joined_states(states: Sequence[Tensor]) -> Tensor:
    """Normalise hidden states (N, T, C) over channels and concatenate them: (N, T, len(states) * C), float32."""
    return torch.cat([nn.functional.layer_norm(x.float(), x.shape[-1:]) for x in states], dim=-1)

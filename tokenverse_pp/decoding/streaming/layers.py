"""Transformer layers of a pretrained encoder, chunk by chunk."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenverse_pp.decoding.streaming.state import AttentionWindow, ChunkPlace, Sight, Stage, State, look
from tokenverse_pp.models.compat import scaled_dot_product_attention
from tokenverse_pp.models.encoders.base import Backbone
from tokenverse_pp.models.encoders.chunks import ChunkGrid, convolve, sides
from tokenverse_pp.models.encoders.context import joined_states
from tokenverse_pp.models.encoders.wav2vec2 import Wav2Vec2Backbone
from tokenverse_pp.models.encoders.whisper import WhisperBackbone


class Positions(Stage):
    """Position embedding of N streams, (N, T, C) -> (N, T, C); the positional convolution keeps what it saw."""

    def __init__(self, backbone: Backbone, grid: ChunkGrid) -> None:
        self.backbone, self.grid = backbone, grid

    def start(self) -> State:
        """See Stage."""
        parameter = next(self.backbone.parameters())
        state = {"positions.frames": torch.zeros((), dtype=torch.int64, device=parameter.device)}
        if isinstance(self.backbone, Wav2Vec2Backbone):
            left = sides(self.backbone.encoder.pos_conv_embed.conv)[0]
            state["positions.history"] = parameter.new_zeros(left, self.backbone.hidden_size)
        return state

    def step(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """See Stage."""
        pieces = []
        for piece in split_at_edges(x, state["positions.frames"], self.grid):
            pieces.append(self._add(piece, state))
            state["positions.frames"] = state["positions.frames"] + piece.shape[1]
        return torch.cat(pieces, dim=1) if pieces else x

    def _add(self, x: Tensor, state: State) -> Tensor:
        """Positions of frames (N, T, C) of one chunk."""
        if isinstance(self.backbone, WhisperBackbone):
            frames = state["positions.frames"].unsqueeze(1) + torch.arange(x.shape[1], device=x.device)
            return x + self.backbone.positions(frames, self.grid)
        assert isinstance(self.backbone, Wav2Vec2Backbone)
        embed: Any = self.backbone.encoder.pos_conv_embed
        history = torch.cat([state["positions.history"], x], dim=1)
        left, right = sides(embed.conv)
        y = convolve(embed.conv, F.pad(history.transpose(1, 2), (0, right))).transpose(1, 2)
        state["positions.history"] = history[:, history.shape[1] - left :]
        return self.backbone.after_positions(x, embed.activation(y))


class Layers(Stage):
    """Some of the layers, (N, T, C) -> the wanted hidden states.

    Args:
        backbone: whose layers.
        wanted: numbers of hidden states (`EncoderConfig.layers`).
        grid: the chunks.
        first: number of the hidden state that comes in.
        normalise: pass each hidden state through a LayerNorm without parameters, and join them.
    """

    def __init__(
        self, backbone: Backbone, wanted: Sequence[int], grid: ChunkGrid, first: int = 0, normalise: bool = True
    ) -> None:
        self.backbone, self.wanted, self.grid, self.first = backbone, tuple(wanted), grid, first
        self.normalise = normalise
        self.frames = f"layers{first}.frames"
        self.highest = len(backbone.layers) if -1 in wanted else max(wanted)
        self.windows = [self._window(number) for number in range(first, self.highest)]

    def _window(self, number: int) -> AttentionWindow:
        attention = attention_of(self.backbone.layers[number])
        return AttentionWindow(f"layer{number}", attention.num_heads, attention.head_dim, self.grid)

    def start(self) -> State:
        """See Stage."""
        parameter = next(self.backbone.parameters())
        state = {self.frames: torch.zeros((), dtype=torch.int64, device=parameter.device)}
        for window in self.windows:
            state.update(window.start(parameter))
        return state

    def step(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """See Stage."""
        pieces = []
        for piece in split_at_edges(x, state[self.frames], self.grid):
            pieces.append(self._run(piece, state))
            state[self.frames] = state[self.frames] + piece.shape[1]
        if not pieces:
            return x.new_zeros(x.shape[0], 0, x.shape[2] * len(self.wanted))
        return torch.cat(pieces, dim=1)

    def _run(self, x: Tensor, state: State) -> Tensor:
        """Frames (N, T, C) of one chunk -> the wanted hidden states, joined (N, T, C * wanted)."""
        sight = look(state[self.frames], x.shape[1], self.grid)
        stable = getattr(self.backbone, "stable_layer_norm", True)
        kept: Dict[int, Tensor] = {self.first: x}
        for number, window in enumerate(self.windows, start=self.first):
            x = run_layer(self.backbone.layers[number], x, attention_through(window, state, sight), stable)
            kept[number + 1] = x
        if -1 in self.wanted:
            kept[-1] = x if self.backbone.final_norm is None else self.backbone.final_norm(x)
        states = [kept[number] for number in self.wanted]
        return joined_states(states) if self.normalise else torch.cat(states, dim=-1)


Attend = Callable[[Any, Tensor], Tensor]


def run_layer(layer: Any, x: Tensor, attend: Attend, stable: bool) -> Tensor:
    """One layer of transformers' wav2vec2, HuBERT or Whisper in eval mode, (N, T, C) -> (N, T, C).

    Args:
        layer: ``Wav2Vec2EncoderLayer(StableLayerNorm)``, ``HubertEncoderLayer(StableLayerNorm)``,
            ``WhisperEncoderLayer``.
        x: its input.
        attend: runs the layer's attention module.
        stable: whether the norms come first.
    """
    if hasattr(layer, "self_attn"):
        x = x + attend(layer.self_attn, layer.self_attn_layer_norm(x))
        return x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
    if not stable:
        x = layer.layer_norm(x + attend(layer.attention, x))
        return layer.final_layer_norm(x + layer.feed_forward(x))
    x = x + attend(layer.attention, layer.layer_norm(x))
    x = x + layer.feed_forward(layer.final_layer_norm(x))
    adapter = getattr(layer, "adapter_layer", None)
    return x if adapter is None else x + adapter(x)


def attention_through(window: AttentionWindow, state: State, sight: Sight) -> Attend:
    """Attention of one chunk's frames over sinks, window and themselves."""

    def attend(module: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (
            projection(x).view(n, t, window.heads, window.head_dim).transpose(1, 2)
            for projection in (module.q_proj, module.k_proj, module.v_proj)
        )
        keys, values, sinks = window.push(k, v, state, sight)
        bias = sight.bias
        if sinks is not None:
            keys, values = torch.cat([sinks[:, 0], keys], dim=-2), torch.cat([sinks[:, 1], values], dim=-2)
            bias = with_sinks(sight, keys.shape[-2])
        y = scaled_dot_product_attention(q, keys, values, bias)
        return module.out_proj(y.transpose(1, 2).flatten(2))

    return attend


def with_sinks(sight: Sight, size: int) -> Tensor:
    """Bias over ``size`` keys of which the sinks are the first, (N, 1, 1, size)."""
    assert sight.sink_bias is not None
    bias = sight.bias
    if bias is None:
        sinks = sight.sink_bias
        bias = sinks.new_zeros(len(sinks), 1, 1, size - sinks.shape[-1])
    return torch.cat([sight.sink_bias, bias], dim=-1)


def attention_of(layer: Any) -> Any:
    """The attention module of a layer."""
    return layer.self_attn if hasattr(layer, "self_attn") else layer.attention


def split_at_edges(x: Tensor, frames: Tensor, grid: ChunkGrid) -> List[Tensor]:
    """Cut (N, T, C) at the chunks' edges. All streams of a batch have them at the same places; frames (N,) before x."""
    return list(x.split(grid.segments(int(frames[0]), x.shape[1]), dim=1)) if x.shape[1] else []

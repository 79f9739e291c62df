"""Frame stacking and the context network, chunk by chunk."""

from __future__ import annotations

from typing import Any, List

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenverse_pp.decoding.streaming.layers import split_at_edges
from tokenverse_pp.decoding.streaming.state import AttentionWindow, ChunkPlace, Sight, Stage, State, look
from tokenverse_pp.models.compat import scaled_dot_product_attention
from tokenverse_pp.models.encoders.base import stack_frames
from tokenverse_pp.models.encoders.chunks import ChunkGrid, convolve, sides
from tokenverse_pp.models.encoders.context import (
    ContextNetwork,
    Sinks,
    attend_with_sinks,
    rotary_angles,
    rotate,
    sink_shift,
)


class Stack(Stage):
    """Frame stacking: (N, T, C) -> (N, T', stack * C); frames that wait for a neighbour are kept."""

    def __init__(self, stack: int, dim: int, like: Tensor) -> None:
        self.stack, self.dim, self.like = stack, dim, like

    def start(self) -> State:
        """See Stage."""
        return {"stack.waiting": self.like.new_zeros(0, self.dim)}

    def step(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """See Stage; in the last chunk zeros take the place of missing frames."""
        x = torch.cat([state["stack.waiting"], x], dim=1)
        whole = x.shape[1] if place.last else x.shape[1] // self.stack * self.stack
        state["stack.waiting"] = x[:, whole:]
        stacked, _ = stack_frames(x[:, :whole], torch.tensor(whole), self.stack)
        return stacked


class Context(Stage):
    """The context network: (N, T, F) -> (N, T, C).

    Args:
        network: whose layers.
        grid: chunks of the (stacked) frames.
    """

    def __init__(self, network: ContextNetwork, grid: ChunkGrid) -> None:
        self.network, self.grid = network, grid
        self.layers: List[Any] = list(network.layers)
        self.windows = [
            AttentionWindow(f"context{number}", layer.attention.heads, network.head_dim, grid)
            for number, layer in enumerate(self.layers)
        ]
        self.output_dim = self.layers[0].norm.normalized_shape[0]

    def start(self) -> State:
        """See Stage."""
        parameter = next(self.network.parameters())
        state = {"context.frames": torch.zeros((), dtype=torch.int64, device=parameter.device)}
        for number, (layer, window) in enumerate(zip(self.layers, self.windows)):
            state.update(window.start(parameter))
            left = sides(layer.convolution.depthwise)[0]
            state[f"context{number}.history"] = parameter.new_zeros(left, self.output_dim)
        return state

    def step(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """See Stage."""
        pieces = []
        for piece in split_at_edges(x, state["context.frames"], self.grid):
            pieces.append(self._run(self.network.input(piece), state))
            state["context.frames"] = state["context.frames"] + piece.shape[1]
        return torch.cat(pieces, dim=1) if pieces else x.new_zeros(x.shape[0], 0, self.output_dim)

    def _run(self, x: Tensor, state: State) -> Tensor:
        """Frames (N, T, C) of one chunk through the layers."""
        frames = state["context.frames"]
        sight = look(frames, x.shape[1], self.grid)
        places = frames.unsqueeze(1) + torch.arange(x.shape[1], device=x.device)
        # Tables have an axis of heads, (N, 1, T, D / 2).
        cos, sin = rotary_angles(places.unsqueeze(1), self.network.head_dim)
        sinks = self._sinks(places, sight)
        for number, (layer, window) in enumerate(zip(self.layers, self.windows)):
            x = x + 0.5 * layer.first_ffn(x)
            x = x + self._attend(layer.attention, x, window, state, sight, (cos, sin), sinks)
            x = x + self._convolve(layer.convolution, x, state, f"context{number}.history")
            x = layer.norm(x + 0.5 * layer.second_ffn(x))
        return x

    def _sinks(self, places: Tensor, sight: Sight) -> Any:
        """Places (N, T) of the frames -> how they see the sinks, or None without sinks."""
        if sight.sink_bias is None:
            return None
        shifted = places - sink_shift(sight.window_start, self.grid).unsqueeze(1)
        dim = self.network.head_dim
        keys = rotary_angles(torch.arange(self.grid.sinks, device=places.device), dim)
        return Sinks(keys, rotary_angles(shifted.unsqueeze(1), dim), sight.sink_bias)

    def _attend(
        self, attention: Any, x: Tensor, window: AttentionWindow, state: State, sight: Sight, table: Any, sinks: Any
    ) -> Tensor:
        """Attention of one chunk (N, T, C) over sinks, window and itself."""
        q, k, v = attention.project(x)
        keys, values, first = window.push(rotate(k, table), v, state, sight, sink_keys=k)
        if sinks is None or first is None:
            return attention.finish(scaled_dot_product_attention(rotate(q, table), keys, values, sight.bias))
        bias = sight.bias
        if bias is None:
            bias = sinks.bias.new_zeros(len(x), 1, 1, keys.shape[-2])
        y = attend_with_sinks(q, table, keys, values, bias, (first[:, 0], first[:, 1]), sinks)
        return attention.finish(y)

    @staticmethod
    def _convolve(convolution: Any, x: Tensor, state: State, key: str) -> Tensor:
        """Convolution part of a layer over one chunk (N, T, C); its history is kept."""
        history = torch.cat([state[key], convolution.before(x)], dim=1)
        left, right = sides(convolution.depthwise)
        y = convolve(convolution.depthwise, F.pad(history.transpose(1, 2), (0, right))).transpose(1, 2)
        state[key] = history[:, history.shape[1] - left :]
        return convolution.after(y)

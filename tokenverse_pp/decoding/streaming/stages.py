"""The stages of a streaming encoder after its front: positions, layers, task vectors, stacking, context network.

A stage keeps named tensors as its state: the last inputs of convolutions, the caches of `attention.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenverse_pp.decoding.streaming.attention import AttentionWindow, Sight, State, look, sink_slots
from tokenverse_pp.losses.devices import scaled_dot_product_attention
from tokenverse_pp.models.encoders.base import Backbone, stack_frames
from tokenverse_pp.models.encoders.chunks import ChunkGrid, convolve, convolve_alone, sides
from tokenverse_pp.models.encoders.context import (
    ContextNetwork,
    Sinks,
    attend_with_sinks,
    joined_states,
    rotary_angles,
    rotate,
    sink_shift,
)
from tokenverse_pp.models.encoders.wav2vec2 import Wav2Vec2Backbone
from tokenverse_pp.models.encoders.whisper import WhisperBackbone
from tokenverse_pp.models.transducer import TaskVectors


class ChunkPlace(NamedTuple):
    """Where the streams of a batch are: the same for all of them, except for the tasks."""

    first: bool  # this is each stream's first chunk
    last: bool  # this is each stream's last chunk
    active: Tensor  # (N, K + 1)
    with_registers: bool = False  # the chunk has register frames: it is the first, or the first with other tasks


class Stage(ABC):
    """One stage of the encoder, for batches of streams whose chunks have the same number of frames."""

    def start(self) -> State:
        """The state of one new stream; empty by default."""
        return {}

    @abstractmethod
    def step(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """Take the next input of N streams (N, ..), and return the output that is ready.

        ``state`` is that of the batch: the entries of `start` with N in front. The stage replaces its own entries.
        """


def batch_states(states: Sequence[State]) -> State:
    """Combine states of streams into that of a batch; growing windows are padded on the left (last but one axis)."""
    if len(states) == 1:
        return {key: tensor.unsqueeze(0) for key, tensor in states[0].items()}
    batched = {}
    for key, tensor in states[0].items():
        tensors = [state[key] for state in states]
        if any(t.shape != tensor.shape for t in tensors):
            longest = max(t.shape[-2] for t in tensors)
            tensors = [F.pad(t, (0, 0, longest - t.shape[-2], 0)) for t in tensors]
        batched[key] = torch.stack(tensors)
    return batched


def split_state(state: State, count: int) -> List[State]:
    """Split the state of a batch into those of its streams, which share no memory."""
    if count == 1:
        return [{key: tensor[0] for key, tensor in state.items()}]
    return [{key: tensor[row].clone() for key, tensor in state.items()} for row in range(count)]


def convolve_onwards(conv: nn.Conv1d, x: Tensor, state: State, key: str, registers: int = 0) -> Tensor:
    """Convolve frames (N, T, C) that follow those in ``state[key]``, with zeros after them.

    The first ``registers`` frames are convolved separately.
    """
    if registers:
        alone = convolve_alone(conv, x[:, :registers])
        if x.shape[1] == registers:
            return alone
        return torch.cat([alone, convolve_onwards(conv, x[:, registers:], state, key)], dim=1)
    history = torch.cat([state[key], x], dim=1)
    left, right = sides(conv)
    state[key] = history[:, history.shape[1] - left :]
    return convolve(conv, F.pad(history.transpose(1, 2), (0, right))).transpose(1, 2)


class Stateless(Stage):
    """A stage without state: a function of the frames (N, T, C) and the streams' place."""

    def __init__(self, function: Callable[[Tensor, ChunkPlace], Tensor]) -> None:
        self.function = function

    def step(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """See Stage."""
        return self.function(x, place)


def vectors_stages(vectors: Optional[TaskVectors]) -> List[Stage]:
    """The stage that adds task vectors, if there are any."""
    return [] if vectors is None else [Stateless(lambda x, place: x + vectors(place.active)[:, None, :])]


class Stack(Stage):
    """Frame stacking: (N, T, C) -> (N, T', stack * C); frames of an incomplete stack are kept."""

    def __init__(self, stack: int, dim: int, like: Tensor, registers: int = 0) -> None:
        self.stack, self.dim, self.like, self.registers = stack, dim, like, registers

    def start(self) -> State:
        """See Stage."""
        return {"stack.waiting": self.like.new_zeros(0, self.dim)}

    def step(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """See Stage; in the last chunk zeros replace missing frames."""
        count = self.registers if place.with_registers else 0
        x = torch.cat([x[:, :count], state["stack.waiting"], x[:, count:]], dim=1)
        whole = x.shape[1] if place.last else x.shape[1] // self.stack * self.stack
        state["stack.waiting"] = x[:, whole:]
        stacked, _ = stack_frames(x[:, :whole], torch.tensor(whole), self.stack)
        return stacked


class GridStage(Stage):
    """A stage that counts its frames, and processes one chunk of the grid at a time: (N, T, C) -> (N, T, D)."""

    def __init__(self, module: nn.Module, grid: ChunkGrid, name: str, output_dim: int) -> None:
        self.grid, self.frames, self.output_dim = grid, f"{name}.frames", output_dim
        self.like = next(module.parameters())
        self.windows: List[AttentionWindow] = []

    def start(self) -> State:
        """See Stage."""
        state = {self.frames: torch.zeros((), dtype=torch.int64, device=self.like.device)}
        for window in self.windows:
            state.update(window.start(self.like))
        return state

    def step(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """See Stage."""
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, self.output_dim)
        registers = self.grid.registers if place.with_registers else 0
        # All streams of a batch have the same chunk boundaries.
        lengths = self.grid.segments(int(state[self.frames][0]), x.shape[1] - registers)
        if registers and (not lengths or (place.first and self.grid.delay >= self.grid.size)):
            lengths = [0, *lengths]  # the chunk has register frames, but no audio frames
        pieces = []
        for piece in x.split([registers + lengths[0], *lengths[1:]], dim=1):
            pieces.append(self.run(piece, state, registers))
            state[self.frames] = state[self.frames] + (piece.shape[1] - registers)
            registers = 0
        return torch.cat(pieces, dim=1)

    @abstractmethod
    def run(self, x: Tensor, state: State, registers: int) -> Tensor:
        """Process the frames (N, T, C) of one chunk, of which the first ``registers`` are register frames.

        ``state[self.frames]`` (N,) is the number of audio frames before them.
        """


class Positions(GridStage):
    """Position embedding, (N, T, C) -> (N, T, C)."""

    def __init__(self, backbone: Backbone, grid: ChunkGrid) -> None:
        super().__init__(backbone, grid, "positions", backbone.hidden_size)
        self.backbone = backbone

    def start(self) -> State:
        """See Stage."""
        state = super().start()
        if isinstance(self.backbone, Wav2Vec2Backbone):
            left = sides(self.backbone.encoder.pos_conv_embed.conv)[0]
            state["positions.history"] = self.like.new_zeros(left, self.output_dim)
        return state

    def run(self, x: Tensor, state: State, registers: int) -> Tensor:
        """See GridStage."""
        assert not registers, "positions are added before there are register frames"
        if isinstance(self.backbone, WhisperBackbone):
            frames = state[self.frames].unsqueeze(1) + torch.arange(x.shape[1], device=x.device)
            return x + self.backbone.positions(frames, self.grid)
        assert isinstance(self.backbone, Wav2Vec2Backbone)
        embed: Any = self.backbone.encoder.pos_conv_embed
        y = convolve_onwards(embed.conv, x, state, "positions.history")
        return self.backbone.after_positions(x, embed.activation(y))


class Layers(GridStage):
    """Some transformer layers of a pretrained encoder, (N, T, C) -> the wanted hidden states, concatenated.

    Args:
        wanted: numbers of hidden states (`EncoderConfig.layers`).
        first: number of the hidden state that is the input.
        normalise: pass each hidden state through a LayerNorm without parameters.
    """

    def __init__(
        self, backbone: Backbone, wanted: Sequence[int], grid: ChunkGrid, first: int = 0, normalise: bool = True
    ) -> None:
        super().__init__(backbone, grid, f"layers{first}", backbone.hidden_size * len(wanted))
        self.backbone, self.wanted, self.first, self.normalise = backbone, tuple(wanted), first, normalise
        for number in range(first, backbone.highest(wanted)):
            attention = attention_of(backbone.layers[number])
            self.windows.append(AttentionWindow(f"layer{number}", attention.num_heads, attention.head_dim, grid))

    def run(self, x: Tensor, state: State, registers: int) -> Tensor:
        """See GridStage."""
        sight = look(state[self.frames], x.shape[1], self.grid, registers)
        norm = self.backbone.final_norm
        kept: Dict[int, Tensor] = {self.first: x}
        for number, window in enumerate(self.windows, start=self.first):
            x = kept[number + 1] = run_layer(self.backbone.layers[number], x, norm is not None, window, state, sight)
        if -1 in self.wanted:
            kept[-1] = x if norm is None else norm(x)
        states = [kept[number] for number in self.wanted]
        return joined_states(states) if self.normalise else torch.cat(states, dim=-1)


def attention_of(layer: Any) -> Any:
    """The attention module of a layer."""
    return layer.self_attn if hasattr(layer, "self_attn") else layer.attention


def run_layer(layer: Any, x: Tensor, norm_first: bool, window: AttentionWindow, state: State, sight: Sight) -> Tensor:
    """Run one layer of transformers' wav2vec2, HuBERT or Whisper in eval mode over one chunk, (N, T, C) -> (N, T, C).

    The layer is a ``Wav2Vec2EncoderLayer(StableLayerNorm)``, ``HubertEncoderLayer(StableLayerNorm)`` or
    ``WhisperEncoderLayer``; in the first two ``norm_first`` says whether the norms come first.
    """

    def attend(x: Tensor) -> Tensor:
        module, (n, t, _) = attention_of(layer), x.shape
        q, k, v = (
            projection(x).view(n, t, window.heads, window.head_dim).transpose(1, 2)
            for projection in (module.q_proj, module.k_proj, module.v_proj)
        )
        keys, values, sinks = window.push(k, v, state, sight)
        bias = sight.bias
        if sinks is not None:
            assert bias is not None and sight.sink_bias is not None
            keys, values = torch.cat([sinks[:, 0], keys], dim=-2), torch.cat([sinks[:, 1], values], dim=-2)
            bias = torch.cat([sight.sink_bias, bias], dim=-1)
        y = scaled_dot_product_attention(q, keys, values, bias)
        return module.out_proj(y.transpose(1, 2).flatten(2))

    if hasattr(layer, "self_attn"):
        x = x + attend(layer.self_attn_layer_norm(x))
        return x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
    if not norm_first:
        x = layer.layer_norm(x + attend(x))
        return layer.final_layer_norm(x + layer.feed_forward(x))
    x = x + attend(layer.layer_norm(x))
    x = x + layer.feed_forward(layer.final_layer_norm(x))
    adapter = getattr(layer, "adapter_layer", None)
    return x if adapter is None else x + adapter(x)


class Context(GridStage):
    """The context network over (stacked) frames: (N, T, F) -> (N, T, C)."""

    def __init__(self, network: ContextNetwork, grid: ChunkGrid) -> None:
        self.layers: List[Any] = list(network.layers)
        super().__init__(network, grid, "context", self.layers[0].norm.normalized_shape[0])
        self.network = network
        self.windows = [
            AttentionWindow(f"context{number}", layer.attention.heads, network.head_dim, grid)
            for number, layer in enumerate(self.layers)
        ]

    def start(self) -> State:
        """See Stage."""
        state = super().start()
        for number, layer in enumerate(self.layers):
            left = sides(layer.convolution.depthwise)[0]
            state[f"context{number}.history"] = self.like.new_zeros(left, self.output_dim)
        return state

    def run(self, x: Tensor, state: State, registers: int) -> Tensor:
        """See GridStage."""
        x, frames, dim = self.network.input(x), state[self.frames], self.network.head_dim
        sight = look(frames, x.shape[1], self.grid, registers)
        # Register frames are at the positions before the audio, and move with the sinks.
        shift = sink_shift(sight.window_start + self.grid.registers, self.grid).unsqueeze(1)
        numbers = torch.arange(x.shape[1], device=x.device)
        places = (frames + self.grid.registers).unsqueeze(1) + (numbers - registers)
        if registers:
            places = torch.where(numbers < registers, numbers + shift, places)
        table = rotary_angles(places.unsqueeze(1), dim)  # with an axis of heads, (N, 1, T, D / 2) each
        sinks = None
        if sight.sink_bias is not None:
            keys = rotary_angles(torch.arange(sink_slots(self.grid), device=places.device), dim)
            sinks = Sinks(keys, rotary_angles((places - shift).unsqueeze(1), dim), sight.sink_bias)
        for number, (layer, window) in enumerate(zip(self.layers, self.windows)):
            x = x + 0.5 * layer.first_ffn(x)
            x = x + self._attend(layer.attention, x, window, state, sight, table, sinks)
            y = convolve_onwards(
                layer.convolution.depthwise,
                self.before_convolution(layer, x, frames),
                state,
                f"context{number}.history",
                registers,
            )
            x = x + layer.convolution.after(y)
            x = layer.norm(x + 0.5 * layer.second_ffn(x))
        return x

    def before_convolution(self, layer: Any, x: Tensor, frames: Tensor) -> Tensor:
        """Return the input of a layer's convolution for a chunk (N, T, C) with ``frames`` (N,) frames before it."""
        return layer.convolution.before(x)

    def _attend(
        self, attention: Any, x: Tensor, window: AttentionWindow, state: State, sight: Sight, table: Any, sinks: Any
    ) -> Tensor:
        """Attention of one chunk (N, T, C) over sinks, window and itself."""
        q, k, v = attention.project(x)
        keys, values, first = window.push(rotate(k, table), v, state, sight, sink_keys=k)
        if sinks is None or first is None:
            return attention.finish(scaled_dot_product_attention(rotate(q, table), keys, values, sight.bias))
        assert sight.bias is not None
        return attention.finish(
            attend_with_sinks(q, table, keys, values, sight.bias, (first[:, 0], first[:, 1]), sinks)
        )

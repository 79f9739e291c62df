"""An encoder that takes audio chunk by chunk, with the same output as the masked full pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.decoding.streaming.fronts import Wav2Vec2Front, WhisperFront
from tokenverse_pp.decoding.streaming.stages import (
    ChunkPlace,
    Context,
    GridStage,
    Layers,
    Positions,
    Stack,
    Stage,
    State,
    Stateless,
    batch_states,
    split_state,
    vectors_stages,
)
from tokenverse_pp.models.encoders.kinds import FinetuneEncoder, FrozenEncoder, SplitEncoder
from tokenverse_pp.models.encoders.wav2vec2 import Wav2Vec2Backbone
from tokenverse_pp.models.encoders.whisper import WhisperBackbone
from tokenverse_pp.models.transducer import Transducer


@dataclass(frozen=True)
class StreamState:
    """The state of one stream between chunks.

    Args:
        active: (K + 1,) of 0 and 1, the active tasks.
        samples: number of samples received so far.
        tensors: histories of the convolutions and caches of the attentions, of constant size after the first chunk
            (except with ``left_chunks=-1``).
        with_registers: whether the next chunk gets register frames, from which the model reads the tasks.
    """

    active: Tensor
    samples: int
    tensors: Dict[str, Tensor]
    with_registers: bool = True

    def switched(self, active: Tensor) -> StreamState:
        """The state with the tasks ``active`` (K + 1,) from the next chunk on."""
        active = active.to(self.active)
        return self if torch.equal(self.active, active) else replace(self, active=active, with_registers=True)


class StreamingEncoder:
    """Encodes any number of streams, each as if it were alone.

    A frame is output with the chunk that brings the last sample it depends on, so no output depends on samples after
    the chunk's end. The first chunk gives one frame less than ``chunk_frames``, the last chunk the remaining frames.
    All frames together equal those of `Transducer.encode` with the same options, up to rounding. With a bounded left
    context the cost of a chunk is constant; with ``left_chunks=-1`` cache and cost grow.

    Args:
        transducer: the model, in eval mode.
        registers: the number of register frames; None: the model's.

    Attributes:
        chunk_frames: output frames of a chunk, except a stream's first and last.
        frame_shift: seconds from one output frame to the next.
        lookahead_ms: how far a chunk's output looks past its end.

    Raises:
        UserError: for options or an encoder that cannot be streamed.
    """

    def __init__(self, transducer: Transducer, options: ChunkOptions, registers: Optional[int] = None) -> None:
        encoder = transducer.encoder
        if transducer.training:
            raise ValueError("expected the transducer in eval mode: dropout would act in training mode")
        if options.full:
            raise UserError("--chunk-ms=0: streaming needs chunks; full context needs the whole utterance")
        if not options.strict:
            ahead = encoder.lookahead_ms(options)
            raise UserError(f"streaming needs strict chunks: in others this encoder looks {ahead:g} ms ahead")
        self.options = options
        self.registers = transducer.config.vectors.registers if registers is None else registers
        self.stages = stages_of(transducer, options, self.registers)
        grid = encoder.grid(options)
        self.chunk_samples = options.chunk_samples
        self.chunk_frames = int(encoder.output_lens(torch.tensor(grid.size)))
        self.frame_shift = encoder.output_frame_shift
        self.lookahead_ms = encoder.lookahead_ms(options)
        self.device = next(transducer.parameters()).device

    def start(self, active: Tensor) -> StreamState:
        """Return the state of a new stream with the tasks ``active`` (K + 1,)."""
        tensors: State = {}
        for stage in self.stages:
            tensors.update(stage.start())
        return StreamState(active.to(self.device, torch.float32), 0, tensors)

    @torch.no_grad()
    def step(
        self, chunks: Sequence[Tensor], states: Sequence[StreamState], last: Sequence[bool]
    ) -> Tuple[List[Tensor], List[StreamState]]:
        """Encode one chunk of each stream; return the output (T_i, C) of each, and the new states.

        Args:
            chunks: (S_i,) float32 at 16 kHz: exactly ``chunk_samples`` (else ValueError), fewer (or none) if ``last``.
            states: from `start` or the previous step; they are not changed.
            last: whether the stream ends with this chunk.
        """
        groups: Dict[Tuple[int, bool, bool, bool], List[int]] = {}
        for row, (chunk, state, ends) in enumerate(zip(chunks, states, last)):
            size = len(chunk)
            if size > self.chunk_samples or (size < self.chunk_samples and not ends):
                raise ValueError(f"a chunk of {size} samples: expected {self.chunk_samples}, or fewer in the last")
            with_registers = state.with_registers and self.registers > 0
            groups.setdefault((size, state.samples == 0, bool(ends), with_registers), []).append(row)
        outs: List[Tensor] = [torch.empty(0)] * len(chunks)
        following = list(states)
        for (size, first, ends, with_registers), rows in groups.items():
            x = torch.stack([chunks[row] for row in rows]).to(self.device, torch.float32)
            place = ChunkPlace(first, ends, torch.stack([states[row].active for row in rows]), with_registers)
            batch = batch_states([states[row].tensors for row in rows])
            for stage in self.stages:
                x = stage.step(x, batch, place)
            parts = split_state(batch, len(rows))
            if self.options.left_chunks < 0:
                parts = [trim_windows(part, self.stages) for part in parts]
            for row, frames, tensors in zip(rows, x, parts):
                outs[row] = frames
                following[row] = StreamState(states[row].active, states[row].samples + size, tensors, False)
        return outs, following


def trim_windows(state: State, stages: Sequence[Stage]) -> State:
    """Remove the padding that growing windows of younger streams got in a batch."""
    trimmed = dict(state)
    for stage in stages:
        if isinstance(stage, GridStage):
            frames = int(state[stage.frames])
            for window in stage.windows:
                value = state[window.window]
                trimmed[window.window] = value[..., value.shape[-2] - frames :, :]
    return trimmed


def stages_of(transducer: Transducer, options: ChunkOptions, registers: int) -> List[Stage]:
    """Return the encoder of a transducer as stages, with ``registers`` register frames (raises UserError)."""
    encoder = transducer.encoder
    if not isinstance(encoder, (FinetuneEncoder, FrozenEncoder, SplitEncoder)):
        raise UserError(f"streaming: {type(encoder).__name__} cannot be streamed")
    backbone, grid, like = encoder.backbone, encoder.grid(options), next(transducer.parameters())
    before, after = vectors_stages(transducer.feature_vectors), vectors_stages(transducer.encoder_vectors)
    if not backbone.streams:
        raise UserError(f"streaming: {type(backbone).__name__} cannot be streamed; use a Whisper or wav2vec2 model")
    front: Stage
    if isinstance(backbone, WhisperBackbone):
        front = WhisperFront(backbone, options)
    else:
        assert isinstance(backbone, Wav2Vec2Backbone)
        front = Wav2Vec2Front(backbone)
    if isinstance(encoder, FinetuneEncoder):
        layers = Layers(backbone, (-1,), grid, normalise=False)
        stack = Stack(encoder.stack, backbone.hidden_size, like)
        return [front, *before, Positions(backbone, grid), layers, stack, *after]
    behind = grid.behind(registers)
    if registers:
        # Frames of zeros. Later stages process them with a chunk's first frames, and keep their keys and values until
        # those of a later chunk replace them.
        count = registers // encoder.stack
        before.append(Stateless(lambda x, place: F.pad(x, (0, 0, registers, 0)) if place.with_registers else x))
        after.insert(0, Stateless(lambda x, place: x[:, count:] if place.with_registers else x))
    if isinstance(encoder, FrozenEncoder):
        seam = [Layers(backbone, encoder.layers, grid), *before]
    else:
        split = encoder.split_layer
        # Without layers before the seam this stage is omitted: it would count each frame a second time.
        lower = [Layers(backbone, (split,), grid, normalise=False)] if split else []
        seam = [*lower, *before, Layers(backbone, encoder.layers, behind, first=split)]
    stack = Stack(encoder.stack, backbone.hidden_size * len(encoder.layers), like, registers)
    context = Context(encoder.context, behind.stacked(encoder.stack))
    return [front, Positions(backbone, grid), *seam, stack, context, *after]

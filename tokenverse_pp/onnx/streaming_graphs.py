"""The streaming encoder as two graphs: a stream's first chunk, and every other one.

What a step of `StreamingEncoder` does depends on Python numbers in the first chunk alone, which gives a frame less and
fills what is kept; from then on all shapes are the same. The graphs share their weights, which stand in a file of their
own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor, nn

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.decoding.streaming.encoder import StreamingEncoder
from tokenverse_pp.decoding.streaming.fronts import WhisperFront
from tokenverse_pp.decoding.streaming.stages import ChunkPlace, Stage, State
from tokenverse_pp.models.encoders.whisper import WhisperBackbone
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.onnx.folder import ENCODER, FIRST, Description
from tokenverse_pp.onnx.graphs import trace

TYPES = {torch.float32: "float32", torch.float64: "float64", torch.int64: "int64"}
FEWEST = 256  # bytes of a tensor that is worth sharing


class MelFront(WhisperFront):
    """`WhisperFront` from the log-mel on, (N, bins, T): the runtime makes it in NumPy (`RunningLogMel`)."""

    def start(self) -> State:
        """Without what only the log-mel needs."""
        state = super().start()
        for key in ("front.samples", "front.audio", "front.peak"):
            del state[key]
        return state

    def step(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """See Stage."""
        state["front.samples"] = state["front.frames"]  # only looked at in a stream's last chunk, which is not traced
        x = super().step(x, state, place)
        del state["front.samples"]
        return x

    def _mel(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """It is what comes in."""
        state["front.frames"] = state["front.frames"] + x.shape[2]
        return x


class ChunkGraph(nn.Module):
    """One chunk of N streams: input, tasks and what is kept -> projected frames, and what is to be kept."""

    def __init__(self, model: Transducer, stages: List[Stage], names: List[str], first: bool):
        super().__init__()
        self.model, self.stages, self.names, self.first = model, stages, names, first

    def forward(self, inputs: Tensor, active: Tensor, *kept: Tensor) -> Tuple[Tensor, ...]:
        """Inputs (N, S) or (N, bins, T), active (N, K + 1), kept (N, ..) each -> frames (N, T', J), kept (N, ..)."""
        state, place = dict(zip(self.names, kept)), ChunkPlace(self.first, False, active)
        x = inputs
        for stage in self.stages:
            x = stage.step(x, state, place)
        return (self.model.joiner.encoder_proj(x), *(state[name] for name in self.names))


class ChunkExport:
    """The graphs of a model in eval mode, of which nothing else is needed afterwards.

    Raises:
        UserError: for chunks or an encoder that cannot be streamed, and for a cache that grows.
    """

    def __init__(self, model: Transducer, chunks: ChunkOptions):
        if chunks.left_chunks < 0:
            raise UserError(f"--left-chunks={chunks.left_chunks}: a graph's caches cannot grow: expected 0 or more")
        streaming = StreamingEncoder(model, chunks)
        self.model, self.chunks, self.stages = model, chunks, streaming.stages
        backbone: Any = model.encoder.backbone
        self.mel = isinstance(backbone, WhisperBackbone)
        if self.mel:
            self.stages[0] = MelFront(backbone, chunks)
        self.start: State = {}
        for stage in self.stages:
            self.start.update(stage.start())
        self.samples, self.frames = streaming.chunk_samples, streaming.chunk_frames

    def describe(self) -> Dict[str, Any]:
        """`Description.streaming`."""
        return {
            "chunk_ms": self.chunks.chunk_ms,
            "left_chunks": self.chunks.left_chunks,
            "sinks": self.chunks.sinks,
            "chunk_samples": self.samples,
            "chunk_frames": self.frames,
            "framing": self._framing(),
            "states": [
                {"name": name, "shape": list(tensor.shape), "type": TYPES[tensor.dtype]}
                for name, tensor in self.start.items()
            ],
        }

    def _framing(self) -> List[List[int]]:
        """Kernel and stride of each step from samples to output frames, (n - kernel) // stride + 1 each."""
        encoder: Any = self.model.encoder
        if self.mel:
            steps = [[1, encoder.backbone.log_mel.hop], [1, 2]]
        else:
            steps = [[k, s] for k, s in zip(encoder.backbone.kernels, encoder.backbone.strides)]
        return [*steps, [1, encoder.stack]]

    def write(self, folder: Path, description: Description, opset: int) -> None:
        """Trace both graphs into a folder."""
        names = list(self.start)
        following = [f"{name}.next" for name in names]
        kept = [torch.stack([tensor, tensor]) for tensor in self.start.values()]
        active = torch.ones(2, len(description.tasks))
        axes = {name: {0: "N"} for name in ("inputs", "active", "frames", *names, *following)}
        for first, file in ((True, FIRST), (False, ENCODER)):
            inputs = self._example(description, first)
            graph = ChunkGraph(self.model, self.stages, names, first).eval()
            labels = (["inputs", "active", *names], ["frames", *following])
            trace(graph, (inputs, active, *kept), folder / file, *labels, axes, opset)
            with torch.no_grad():
                kept = list(graph(inputs, active, *kept)[1:])
            if not first and any(a.shape != b.shape for a, b in zip(kept, graph(inputs, active, *kept)[1:])):
                raise UserError("export: what this encoder keeps of a stream changes its size: expected other chunks")

    def _example(self, description: Description, first: bool) -> Tensor:
        if description.mel is None:
            return torch.randn(2, self.samples)
        frames = self.samples // description.mel["hop"]
        return torch.randn(2, description.mel["bins"], frames - 1 if first else frames)


def share_weights(folder: Path, graphs: List[str], weights: str) -> None:
    """Move the tensors of some graphs into one file, each content once."""
    import onnx
    from onnx.external_data_helper import set_external_data

    place: Dict[bytes, int] = {}
    size = 0
    with open(folder / weights, "wb") as file:
        for name in graphs:
            model = onnx.load(folder / name)
            for tensor in model.graph.initializer:
                content = onnx.numpy_helper.to_array(tensor).tobytes()
                if len(content) < FEWEST:
                    continue
                key = hashlib.sha256(content).digest()
                if key not in place:
                    place[key] = size
                    padding = -len(content) % 64
                    file.write(content + bytes(padding))
                    size += len(content) + padding
                tensor.raw_data = content
                set_external_data(tensor, weights, place[key], len(content))
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
            onnx.save(model, folder / name)

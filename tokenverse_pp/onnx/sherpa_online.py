"""The form ``online`` of exports for sherpa-onnx: a streaming Whisper transducer as its model type Zipformer 2.

sherpa-onnx computes Whisper's log-mel (metadata ``feature=whisper``), passes T frames of 10 ms per call to the encoder,
and keeps states of fixed shapes, zeros at the start, that the metadata of a Zipformer describe. Therefore

- the caches of all stages are one vector, in the place of the keys of a Zipformer with one layer;
- every call has the same shapes, although the first chunk of a stream gives a frame less than the others: its first
  frame, number -1, is a dummy. No other frame sees it, and it carries a mark, for which the joiner gives a blank;
- sherpa-onnx clips log-mels at 8 below the maximum of a call. The graph clips them at 8 below the maximum so far, as in
  `LogMel.running`. Values that the first clips, the second clips too.

Two things differ from our own streams. The log-mel's frames are Kaldi's: centred on sample 160 t + 80, 5 ms after
Whisper's, with the start of the audio mirrored including its first sample. And there are no register frames
(``vectors.registers``), with which the first call would have more frames than the others.
(sherpa-onnx/csrc/online-zipformer2-transducer-model.cc, online-recognizer-transducer-impl.h.)
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import ExportOptions
from tokenverse_pp.decoding.streaming import stages
from tokenverse_pp.decoding.streaming.encoder import StreamingEncoder
from tokenverse_pp.decoding.streaming.stages import ChunkPlace, Context, GridStage, Stage, State
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.encoders.chunks import convolve
from tokenverse_pp.models.encoders.whisper import LEAST, LogMel, WhisperBackbone
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.onnx import graphs
from tokenverse_pp.onnx.folder import WEIGHTS, Description
from tokenverse_pp.onnx.runtime import open_graph
from tokenverse_pp.onnx.sherpa_export import SherpaSet

DECODER = "decoder.onnx"
ONLINE_FRAME = 0.04  # seconds, fixed in sherpa-onnx
DELAY = 1  # frames by which a token's time is late, because of the dummy
RANGE = 8.0  # of a log-mel, in powers of ten
# Sizes of a Zipformer whose states are as small as possible, except its keys and the state of its front.
SIZES = {"encoder_dims": 4, "value_head_dims": 1, "num_heads": 1, "num_encoder_layers": 1, "cnn_module_kernels": 2}
UNUSED = {"nonlin": (1, 0, 1, 3), "value1": (1, 0, 1), "value2": (1, 0, 1), "conv1": (0, 4, 1), "conv2": (0, 4, 1)}
CHUNKS = 4  # in the stream that is compared with torch


class SherpaFront(Stage):
    """Log-mels of sherpa-onnx (N, T, bins) -> output of the second convolution (N, T / 2, C), from frame -1 on."""

    def __init__(self, backbone: WhisperBackbone) -> None:
        self.backbone, self.encoder = backbone, cast(Any, backbone.encoder)

    def start(self) -> State:
        """See Stage; zeros stand for the left padding of the convolutions."""
        like = next(self.backbone.parameters())
        return {
            "front.peak": like.new_zeros(1),  # above LEAST
            "front.mel": like.new_zeros(self.backbone.log_mel.filters.shape[0], 2),
            "front.hidden": like.new_zeros(self.backbone.hidden_size, 2),
        }

    def mel(self, x: Tensor) -> Tensor:
        """Convert sherpa-onnx's features to logarithms of the mel powers, base 10, (N, bins, T)."""
        return 4.0 * x.transpose(1, 2) - 4.0

    def step(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """See Stage."""
        mel = self.mel(x)
        peak = torch.maximum(state["front.peak"] + LEAST, mel.amax(dim=(1, 2)).unsqueeze(1))
        state["front.peak"] = peak - LEAST
        mel = torch.cat([state["front.mel"], LogMel.clip(mel, peak)], dim=-1)
        state["front.mel"] = mel[..., -2:]
        hidden = F.gelu(convolve(self.encoder.conv1, mel))  # of frames of 10 ms, from number -1 on
        began = (state["chunks"] > 0).to(hidden.dtype)[:, None, None]
        hidden = torch.cat([state["front.hidden"], hidden[..., :1] * began, hidden[..., 1:]], dim=-1)
        state["front.hidden"] = hidden[..., -2:]
        conv = self.encoder.conv2
        return F.gelu(F.conv1d(hidden, conv.weight, conv.bias, stride=2)).transpose(1, 2)


def single_rotary_angles(places: Tensor, dim: int) -> Tuple[Tensor, Tensor]:
    """`rotary_angles` with cosines in float32, as sherpa-onnx's runtime has no others. Still exact after hours."""
    rates = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim) / (2 * math.pi)
    turns = places.to(torch.float64).unsqueeze(-1) * rates
    angles = ((turns - turns.long().to(torch.float64)) * (2 * math.pi)).float()
    return angles.cos(), angles.sin()


class SherpaContext(Context):
    """`Context` whose convolutions see zeros instead of the dummy frame."""

    def run(self, x: Tensor, state: State, registers: int) -> Tensor:
        """See Context."""
        with mock.patch.object(stages, "rotary_angles", single_rotary_angles):
            return super().run(x, state, registers)

    def before_convolution(self, layer: Any, x: Tensor, frames: Tensor) -> Tensor:
        """See Context."""
        numbers = frames.unsqueeze(1) + torch.arange(x.shape[1], device=x.device)
        return super().before_convolution(layer, x, frames) * (numbers >= 0).unsqueeze(2).to(x.dtype)


class OnlineGraph(nn.Module):
    """One call of N streams: log-mels and states -> frames for the joiner, and new states.

    Args:
        model: model in eval mode, with a Whisper encoder.
        chunks: as in `StreamingEncoder`.
        active: (1, K + 1), 1 for active tasks, else 0.

    Attributes:
        mel_frames: T, frames of 10 ms per call.
        size: length of the vector of caches.
    """

    def __init__(self, model: Transducer, chunks: ChunkOptions, active: Tensor):
        super().__init__()
        streaming, encoder = StreamingEncoder(model, chunks, registers=0), cast(Any, model.encoder)
        self.model, self.active, self.stages = model, active, streaming.stages
        self.stages[0] = SherpaFront(encoder.backbone)
        grids: List[GridStage] = []
        for number, stage in enumerate(self.stages):
            if isinstance(stage, Context):
                stage = self.stages[number] = SherpaContext(stage.network, stage.grid)
            if isinstance(stage, GridStage):
                grids.append(stage)
        self.counters = {stage.frames: stage.grid.size for stage in grids}
        start: State = {}
        for stage in self.stages:
            start.update(stage.start())
        start["stack.waiting"] = start["stack.waiting"].new_zeros(1, start["stack.waiting"].shape[1])
        self.shapes = {name: tensor.shape for name, tensor in start.items() if name not in self.counters}
        self.size = sum(math.prod(shape) for shape in self.shapes.values())
        self.mel_frames = streaming.chunk_samples // encoder.backbone.log_mel.hop
        self.bins = encoder.backbone.log_mel.filters.shape[0]

    def start(self, streams: int) -> Dict[str, Tensor]:
        """The states of new streams, by their names in the graph, in sherpa-onnx's order."""
        embed = (((self.bins - 1) // 2) - 1) // 2
        unused = {name: torch.zeros([size or streams for size in shape]) for name, shape in UNUSED.items()}
        return {
            "caches": torch.zeros(1, streams, self.size),
            **unused,
            "embed": torch.zeros(streams, 128, 3, embed),
            "chunks": torch.zeros(streams, dtype=torch.int64),
        }

    def forward(self, x: Tensor, caches: Tensor, *others: Tensor) -> Tuple[Tensor, ...]:
        """x (N, T, bins), caches (1, N, size), unused states, chunks (N,) -> frames (N, T', J + 1), new states."""
        frames, caches = self.encode(x, caches[0], others[-1], self.active)
        return (frames, caches[None], *others[:-1], others[-1] + 1)

    def encode(self, x: Tensor, caches: Tensor, chunks: Tensor, active: Tensor) -> Tuple[Tensor, Tensor]:
        """x as sherpa-onnx passes it, caches (N, size), chunks so far (N,), active (N, K + 1) or (1, K + 1).

        Returns:
            Frames (N, T', J + 1), whose last value is 1 for the dummy, else 0; and the new caches (N, size).
        """
        parts = caches.split([math.prod(shape) for shape in self.shapes.values()], dim=1)
        state = {name: part.reshape(-1, *shape) for (name, shape), part in zip(self.shapes.items(), parts)}
        state["chunks"] = chunks
        for name, size in self.counters.items():
            state[name] = chunks * size - 1
        place = ChunkPlace(False, False, active)
        for stage in self.stages:
            x = stage.step(x, state, place)
        frames = self.model.joiner.encoder_proj(x)
        mark = torch.cat([(chunks == 0).to(x.dtype)[:, None], torch.zeros_like(frames[:, 1:, 0])], dim=1)
        caches = torch.cat([state[name].flatten(1) for name in self.shapes], dim=1)
        return torch.cat([frames, mark[:, :, None]], dim=2), caches


class OnlinePredictor(graphs.PredictorGraph):
    """The predictor for sherpa-onnx's contexts, which start with ids of -1."""

    def forward(self, y: Tensor) -> Tensor:
        """y (N, context_size) int64 -> state (N, J)."""
        return super().forward(y.clamp(min=0))


class OnlineJoiner(nn.Module):
    """The joiner, which gives a blank for dummy frames, and never the tokens of other tasks."""

    def __init__(self, model: Transducer, suppressed: Sequence[int]):
        super().__init__()
        self.joiner = model.joiner
        self.mask = torch.zeros(model.joiner.output.out_features)
        self.mask[list(suppressed)] = -math.inf
        self.others = 1e4 * torch.ones(len(self.mask))
        self.others[0] = 0.0

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """Frames (N, J + 1) and states (N, J) -> logits (N, V)."""
        logits = self.joiner(encoder_out[:, :-1], decoder_out)
        return logits - encoder_out[:, -1:] * self.others + self.mask


def check_online(loaded: ModelBundle, description: Description, options: ExportOptions) -> None:
    """Check that the form ``online`` or ``prompt`` supports a model (raises UserError)."""
    form = f"export for sherpa-onnx, form {options.form}"
    if not isinstance(getattr(loaded.model.encoder, "backbone", None), WhisperBackbone):
        raise UserError(f"{form}: sherpa-onnx computes the log-mel of Whisper, and this encoder takes audio")
    if abs(description.frame_shift - ONLINE_FRAME) > 1e-6:
        said = f"a frame of the encoder lasts {1000 * description.frame_shift:g} ms"
        raise UserError(f"{form}: {said}, and in sherpa-onnx 40 ms (model.encoder.stack=2)")


def write_online(
    loaded: ModelBundle, folder: Path, sets: Sequence[SherpaSet], description: Description, options: ExportOptions
) -> List[Dict[str, float]]:
    """Write the graphs of the form ``online``; return the errors of the frames of each encoder."""
    assert options.chunks is not None
    model, errors = graphs.prepared(loaded.model), []
    context = torch.ones(2, description.context_size, dtype=torch.int64)
    graphs.trace(OnlinePredictor(model), folder / DECODER, {"y": context}, ["decoder_out"], options.opset)
    sizes = {"vocab_size": str(description.vocab_size), "context_size": str(description.context_size)}
    graphs.describe(folder / DECODER, sizes)
    for item in sets:
        graph = OnlineGraph(model, options.chunks, item.active).eval()
        inputs = {"x": torch.randn(2, graph.mel_frames, graph.bins), **graph.start(2)}
        second = {"caches": 1, "nonlin": 1, "value1": 1, "value2": 1}
        axes = {name + end: {second.get(name, 0): "N"} for name in inputs for end in ("", ".next")}
        axes["encoder_out"] = {0: "N"}
        outputs = ["encoder_out", *(f"{name}.next" for name in list(inputs)[1:])]
        graphs.trace(graph, folder / item.file, inputs, outputs, options.opset, axes, rows="")
        graphs.reduce_precision(folder / item.file, options.precision)
        pair = {"encoder_out": torch.zeros(2, description.joiner_dim + 1)}
        pair["decoder_out"] = torch.zeros(2, description.joiner_dim)
        graphs.trace(OnlineJoiner(model, item.suppressed), folder / item.joiner, pair, ["logit"], options.opset)
        graphs.describe(folder / item.joiner, {"joiner_dim": str(description.joiner_dim)})
    if len(sets) > 1:
        graphs.share_weights(folder, [item.file for item in sets], WEIGHTS)
    for item in sets:
        metadata = {name: str(size) for name, size in SIZES.items()}
        metadata.update(model_type="zipformer2", feature="whisper", left_context_len="1")
        frames = str(graph.mel_frames)
        metadata.update(query_head_dims=str(graph.size), T=frames, decode_chunk_len=frames)
        graphs.describe(folder / item.file, {**metadata, "tasks": ",".join(item.tasks)})
        errors.append(compare_online(loaded, folder / item.file, graph, item, options))
    return errors


def mel_windows(log_mel: LogMel, audio: np.ndarray, frames: int) -> np.ndarray:
    """Whole windows (M, frames, bins) of log-mels of audio (S,), each normalised as sherpa-onnx does."""
    x = torch.from_numpy(audio)[None]
    x = torch.cat([log_mel.mirrored_start(x), x, x.new_zeros(1, log_mel.hop)], dim=1)
    mel = log_mel.log_power(x)[0].T.numpy()
    windows = mel[: len(mel) // frames * frames].reshape(-1, frames, mel.shape[1])
    return (np.maximum(windows, windows.max((1, 2), keepdims=True) - RANGE) + 4.0) / 4.0


def compare_online(
    loaded: ModelBundle, path: Path, graph: OnlineGraph, item: SherpaSet, options: ExportOptions
) -> Dict[str, float]:
    """Compare an encoder with torch over some chunks of a stream of random audio (`agreement`)."""
    assert options.chunks is not None
    log_mel = graphs.log_mel_of(loaded.model)
    assert log_mel is not None
    session, states = open_graph(path, 1), {name: tensor.numpy() for name, tensor in graph.start(1).items()}
    samples = graph.mel_frames * SAMPLE_RATE // 100
    audio = (0.1 * np.random.default_rng(0).standard_normal((CHUNKS, samples))).astype(np.float32)
    found = []
    for window in mel_windows(log_mel, audio.ravel(), graph.mel_frames):
        frames, *following = session.run(None, {"x": window[None], **states})
        states = dict(zip(states, following))
        found.append(frames[0, :, :-1])
    return errors_of_stream(loaded, item, options, list(audio), found)


def errors_of_stream(
    loaded: ModelBundle, item: SherpaSet, options: ExportOptions, audio: List[np.ndarray], found: List[np.ndarray]
) -> Dict[str, float]:
    """Errors of the frames of each chunk of a stream, the dummy first, with the tasks of ``item`` (see above)."""
    assert options.chunks is not None
    found[0] = found[0][1:]  # the dummy
    names = [name for name, is_active in zip(loaded.tasks.names, item.active[0].tolist()) if is_active]
    expected = graphs.torch_stream(loaded, options.chunks, audio, names, registers=0)
    return graphs.agreement("encoder", [(found, expected)], options.precision)

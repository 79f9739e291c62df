"""The ONNX graphs of a model: the modules that are traced, and how graphs are written.

An offline model has three graphs: the encoder and the predictor, each with the joiner's projection of its output, and
the rest of the joiner. With this split, a search projects each frame and each context once, and a step only adds,
applies tanh and multiplies.

A streaming encoder has two graphs: one for the first chunk of a stream, which gives one frame less and fills the
caches, and one for all other chunks, whose shapes are fixed. They share a file of weights.

Graphs are traced (``dynamo=False``): the encoders branch on the values of lengths and masks, which torch.export
does not support. A trace follows the branches that its example takes, so the example is a padded batch, for which no
mask is skipped; `tokenverse_pp.onnx.export` then compares the graphs with torch on other batches.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import math
import shutil
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from tokenverse_pp.base.config import IN_CHUNKS, SAMPLE_RATE, ChunkOptions
from tokenverse_pp.base.errors import UserError, needing
from tokenverse_pp.decoding.streaming.encoder import StreamingEncoder
from tokenverse_pp.decoding.streaming.fronts import WhisperFront
from tokenverse_pp.decoding.streaming.stages import ChunkPlace, Stage, State
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.models.encoders.base import Backbone, stacked_lens
from tokenverse_pp.models.encoders.fbank import HOP, N_FFT, PREEMPHASIS, PowerSpectrum
from tokenverse_pp.models.encoders.whisper import LogMel, WhisperBackbone
from tokenverse_pp.models.predictor import LstmPredictor
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.onnx.folder import ENCODER, FIRST, JOINER, PREDICTOR, Description

TYPES = {torch.float32: "float32", torch.float64: "float64", torch.int64: "int64"}
LARGEST = 1_900_000_000  # bytes of weights: an ONNX file that holds them cannot exceed 2 GiB
SMALLEST_FLOAT16 = 1024  # fewest elements of a tensor that is stored in float16
SMALLEST_SHARED = 256  # fewest bytes of a tensor that goes into the shared file
# Largest and RMS error of a graph's output, relative to the RMS of torch's. A model with quantised weights is another
# model and has to be scored again: the tolerance of int8 only detects wrong graphs.
TOLERANCES = {"float32": 2e-3, "float16": 5e-2, "int8": 5.0}
RMS_TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "int8": 0.5}


class GivenMel(nn.Module):
    """Replaces `LogMel` if the input already is a log-mel spectrogram: (N, bins, T), zero on padding.

    ONNX has an STFT, but no runtime computes it as exactly and as fast as NumPy.
    """

    def __init__(self, log_mel: LogMel):
        super().__init__()
        self.hop = log_mel.hop

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames of 10 ms."""
        return stacked_lens(lens, self.hop)

    def forward(self, mel: Tensor, lens: Tensor, *_: Any) -> Tuple[Tensor, Tensor]:
        """Like `LogMel.forward`: (N, bins, T) and lens (N,) in samples -> (N, bins, T) unchanged, and frames (N,)."""
        return mel, self.frame_lens(lens)


def windowed_waves(window: Tensor, n_fft: int) -> Tensor:
    """The Fourier transform of length ``n_fft`` of windows as a matrix (2 * bins, len(window)): cosines, then sines.

    It is float64. The bins are n_fft // 2 + 1, and the values of ``window`` at most ``n_fft``.
    """
    bins, places = torch.arange(n_fft // 2 + 1, dtype=torch.float64), torch.arange(len(window), dtype=torch.float64)
    angles = 2 * math.pi / n_fft * torch.outer(bins, places)
    return torch.cat([angles.cos(), angles.sin()]) * window.double()


class ProductSpectrum(nn.Module):
    """`PowerSpectrum` as one convolution: ONNX has no FFT of overlapping windows."""

    waves: Tensor

    def __init__(self, spectrum: PowerSpectrum):
        super().__init__()
        waves = windowed_waves(spectrum.window, N_FFT)
        if spectrum.dc_and_preemphasis:
            same = torch.eye(waves.shape[1], dtype=torch.float64)
            emphasis = same - PREEMPHASIS * torch.cat([same[:1], same[:-1]])
            waves = waves @ emphasis @ (same - 1 / len(same))
        self.bins = N_FFT // 2 + 1
        self.register_buffer("waves", waves.float().unsqueeze(1))

    def forward(self, audio: Tensor) -> Tensor:
        """As `PowerSpectrum.forward`: audio (N, S) -> (N, T, 257)."""
        waves = nn.functional.conv1d(audio.unsqueeze(1), self.waves, stride=HOP).square()
        return (waves[:, : self.bins] + waves[:, self.bins :]).transpose(1, 2)  # unflatten would fix T in a trace


class EncoderGraph(nn.Module):
    """The encoder of whole utterances, and the joiner's projection of its output."""

    def __init__(self, model: Transducer):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, lens: Tensor, active: Tensor) -> Tuple[Tensor, Tensor]:
        """Inputs (N, S) or (N, bins, T), lens (N,) samples, active (N, K + 1) -> frames (N, T', J), their lens (N,)."""
        out, lens = self.model.encode(inputs, lens, active)
        return self.model.joiner.encoder_proj(out), lens


class PredictorGraph(nn.Module):
    """The predictor, and the joiner's projection of its output."""

    def __init__(self, model: Transducer):
        super().__init__()
        self.predictor, self.projection = model.predictor, model.joiner.predictor_proj

    def forward(self, context: Tensor) -> Tensor:
        """Context (M, context_size) int64, the newest token last -> state (M, J)."""
        return self.projection(self.predictor.step(context))


class LstmGraph(PredictorGraph):
    """One step of an LSTM predictor, and the joiner's projection of its output."""

    def forward(self, token: Tensor, hidden: Tensor, cell: Tensor) -> Tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Token (M,) int64, hidden and cell (M, layers, D) -> state (M, J), hidden and cell after the token."""
        predictor = cast(LstmPredictor, self.predictor)
        out, (hidden, cell) = predictor.step(token, torch.stack([hidden, cell]).transpose(1, 2))
        return self.projection(out), hidden.transpose(0, 1), cell.transpose(0, 1)


class MelFront(WhisperFront):
    """`WhisperFront` with log-mel input (N, bins, T), which the runtime computes in NumPy (`RunningLogMel`)."""

    def start(self) -> State:
        """The state without the entries that only the log-mel needs."""
        state = super().start()
        for key in ("front.samples", "front.audio", "front.peak"):
            del state[key]
        return state

    def step(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        """See `Stage.step`."""
        state["front.samples"] = state["front.frames"]  # read in a stream's last chunk only, which is not traced
        x = super().step(x, state, place)
        del state["front.samples"]
        return x

    def _mel(self, x: Tensor, state: State, place: ChunkPlace) -> Tensor:
        state["front.frames"] = state["front.frames"] + x.shape[2]
        return x


class ChunkGraph(nn.Module):
    """One chunk of N streams through the streaming encoder and the joiner's projection."""

    def __init__(self, model: Transducer, stages: List[Stage], names: List[str], first: bool):
        super().__init__()
        self.model, self.stages, self.names, self.first = model, stages, names, first

    def forward(self, inputs: Tensor, active: Tensor, *states: Tensor) -> Tuple[Tensor, ...]:
        """Inputs (N, S) or (N, bins, T), active (N, K + 1), states (N, ..) -> frames (N, T', J), new states (N, ..)."""
        state, place = dict(zip(self.names, states)), ChunkPlace(self.first, False, active, with_registers=self.first)
        x = inputs
        for stage in self.stages:
            x = stage.step(x, state, place)
        return (self.model.joiner.encoder_proj(x), *(state[name] for name in self.names))


def require_onnx() -> None:
    """Check that onnx, onnxruntime and a torch that can export are installed (raises UserError)."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < (2, 5):
        raise UserError(f"export needs torch 2.5 or newer, here is {torch.__version__}")
    with needing("export needs onnx and onnxruntime", "onnx"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401


def log_mel_of(model: Transducer) -> Optional[LogMel]:
    """The model's `LogMel`; None if the encoder takes audio."""
    return next((module for module in model.modules() if isinstance(module, LogMel)), None)


def prepared(model: Transducer, log_mel: Optional[Callable[[LogMel], nn.Module]] = None) -> Transducer:
    """Return a traceable copy with the same output, in eval mode on the CPU (raises UserError if there can be none).

    Args:
        log_mel: makes what replaces each `LogMel`, such as `GivenMel`; None: it stays.
    """
    model = copy.deepcopy(model).eval().cpu().float()
    model.requires_grad_(False)
    if any(isinstance(module, Backbone) and not module.exports for module in model.modules()):
        raise UserError("export: WavLM encoders cannot be exported: their attention is no plain sum of products")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if log_mel is not None and isinstance(child, LogMel):
                setattr(parent, name, log_mel(child))
            elif isinstance(child, PowerSpectrum):
                setattr(parent, name, ProductSpectrum(child))
    for vectors in model.task_vectors:
        vectors.trained.fill_(1)  # the runtime refuses combinations that were not trained; a graph cannot
    return model


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Patch torch for tracing: shapes become plain numbers where ONNX requires them, and asinh (Moonshine) is
    composed of other operators. Silences warnings."""
    layer_norm = torch.layer_norm  # torch.nn.functional.layer_norm and LayerNorm call it

    def with_numbers(x: Tensor, shape: Sequence[Any], *more: Any, **options: Any) -> Tensor:
        """`layer_norm` with a shape that the tracer has turned into tensors."""
        return layer_norm(x, [int(size) for size in shape], *more, **options)

    def asinh(x: Tensor) -> Tensor:
        size = x.abs()
        return x.sign() * torch.log(size + (size.square() + 1).sqrt())

    layer_norms, asinhs = (mock.patch.object(torch, *of) for of in (("layer_norm", with_numbers), ("asinh", asinh)))
    with warnings.catch_warnings(), layer_norms, asinhs, torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def trace(
    module: nn.Module,
    path: Path,
    inputs: Dict[str, Tensor],
    outputs: Sequence[str],
    opset: int,
    axes: Optional[Dict[str, Dict[int, str]]] = None,
    rows: str = "N",
) -> None:
    """Write a module as an ONNX graph.

    Args:
        inputs: example of each argument, by name, in order.
        axes: dynamic dimensions of inputs and outputs, besides the first of each, and their names.
        rows: name of the first dimension; empty if its size is fixed.

    Raises:
        UserError: if the module cannot be exported.
    """
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    # torch writes a file for each tensor of a large module; `save_graph` joins them.
    target = path.parent / f"{path.stem}.parts" / path.name if size > LARGEST else path
    target.parent.mkdir(exist_ok=True)
    first = {0: rows} if rows else {}
    try:
        with traceable():
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                str(target),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: {**first, **(axes or {}).get(name, {})} for name in (*inputs, *outputs)},
                opset_version=opset,
                dynamo=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"export: torch cannot write this encoder as ONNX: {reason}") from error
    if target != path:
        import onnx

        save_graph(onnx.load(target), path)
        shutil.rmtree(target.parent)


def save_graph(model: Any, path: Path) -> None:
    """Write a graph. The weights of a large graph go into a file ``NAME.data`` beside it."""
    import onnx

    (path.parent / f"{path.stem}.data").unlink(missing_ok=True)  # onnx would append to it
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST:
        options: Dict[str, Any] = {"location": f"{path.stem}.data", "size_threshold": SMALLEST_SHARED}
        onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=True, **options)
    else:
        onnx.save(model, path)


def trace_encoder(model: Transducer, d: Description, folder: Path, opset: int) -> None:
    """Trace the whole-utterance encoder of a `prepared` model into a folder."""
    audio, time = torch.randn(2, SAMPLE_RATE), {1: "samples"}
    if d.mel is not None:
        audio, time = torch.randn(2, d.mel["bins"], SAMPLE_RATE // d.mel["hop"]), {2: "mel_frames"}
    lens = torch.tensor([SAMPLE_RATE, SAMPLE_RATE * 7 // 10])
    inputs = {"inputs": audio, "lens": lens, "active": torch.ones(2, len(d.tasks))}
    axes = {"inputs": time, "frames": {1: "T"}}
    trace(EncoderGraph(model), folder / ENCODER, inputs, ["frames", "frame_lens"], opset, axes)


def trace_search(model: Transducer, d: Description, folder: Path, opset: int) -> None:
    """Trace predictor and joiner into a folder."""
    if d.lstm:
        inputs = {"token": torch.ones(2, dtype=torch.int64), "hidden": torch.randn(2, *d.lstm)}
        inputs["cell"] = torch.randn(2, *d.lstm)
        outputs = ["state", "hidden.next", "cell.next"]
        trace(LstmGraph(model), folder / PREDICTOR, inputs, outputs, opset, rows="M")
    else:
        context = torch.ones(2, d.context_size, dtype=torch.int64)
        trace(PredictorGraph(model), folder / PREDICTOR, {"context": context}, ["state"], opset, rows="M")
    pair = {"frame": torch.randn(2, d.joiner_dim), "state": torch.randn(2, d.joiner_dim)}
    trace(model.joiner, folder / JOINER, pair, ["logits"], opset, rows="M")


def trace_chunks(model: Transducer, chunks: ChunkOptions, d: Description, folder: Path, opset: int) -> Dict[str, Any]:
    """Trace the streaming encoder of a `prepared` model into a folder. The model must not be used afterwards.

    Returns:
        `Description.streaming`.

    Raises:
        UserError: for chunks or an encoder that cannot be streamed.
    """
    streaming, encoder = StreamingEncoder(model, chunks), model.encoder
    stages, backbone, samples = streaming.stages, cast(Any, encoder.backbone), streaming.chunk_samples
    if isinstance(backbone, WhisperBackbone):
        stages[0] = MelFront(backbone, chunks)
        framing = [[1, backbone.log_mel.hop], [1, 2]]
    else:
        framing = [[k, s] for k, s in zip(backbone.kernels, backbone.strides)]
    start: State = {}
    for stage in stages:
        start.update(stage.start())
    states = [torch.stack([tensor, tensor]) for tensor in start.values()]
    active = torch.ones(2, len(d.tasks))
    for first, file in ((True, FIRST), (False, ENCODER)):
        example = torch.randn(2, samples)
        if d.mel is not None:
            frames = samples // d.mel["hop"]
            example = torch.randn(2, d.mel["bins"], frames - 1 if first else frames)
        graph = ChunkGraph(model, stages, list(start), first).eval()
        inputs = {"inputs": example, "active": active, **dict(zip(start, states))}
        trace(graph, folder / file, inputs, ["frames", *(f"{name}.next" for name in start)], opset)
        with torch.no_grad():
            states = list(graph(example, active, *states)[1:])
        if not first and any(a.shape != b.shape for a, b in zip(states, graph(example, active, *states)[1:])):
            raise UserError("export: what this encoder keeps of a stream changes its size: expected other chunks")
    return {
        **{name: getattr(chunks, name) for name in IN_CHUNKS},
        "chunk_samples": samples,
        "chunk_frames": streaming.chunk_frames,
        "framing": [*framing, [1, encoder.stack]],
        "states": [
            {"name": name, "shape": list(tensor.shape), "type": TYPES[tensor.dtype]} for name, tensor in start.items()
        ],
    }


def share_weights(folder: Path, graphs: Sequence[str], weights: str) -> None:
    """Move the tensors of several graphs into one file, each distinct tensor once."""
    import onnx
    from onnx.external_data_helper import set_external_data

    offsets: Dict[bytes, int] = {}
    size = 0
    with open(folder / weights, "wb") as file:
        for name in graphs:
            model = onnx.load(folder / name)
            for tensor in model.graph.initializer:
                content = onnx.numpy_helper.to_array(tensor).tobytes()
                if len(content) < SMALLEST_SHARED:
                    continue
                key = hashlib.sha256(content).digest()
                if key not in offsets:
                    offsets[key] = size
                    padding = -len(content) % 64
                    file.write(content + bytes(padding))
                    size += len(content) + padding
                tensor.raw_data = content
                set_external_data(tensor, weights, offsets[key], len(content))
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
            onnx.save(model, folder / name)
            (folder / name).with_suffix(".data").unlink(missing_ok=True)


def torch_stream(
    loaded: ModelBundle,
    chunks: ChunkOptions,
    audio: Sequence[np.ndarray],
    names: Sequence[str],
    registers: Optional[int] = None,
) -> List[np.ndarray]:
    """`StreamingRuntime.encode_chunk` in torch, for the chunks of one stream; registers as in `StreamingEncoder`."""
    encoder = StreamingEncoder(loaded.model, chunks, registers)
    state = encoder.start(torch.tensor(loaded.tasks.mask(names), dtype=torch.float32))
    found = []
    for chunk in audio:
        (out,), (state,) = encoder.step([torch.from_numpy(chunk)], [state], [False])
        with torch.no_grad():
            found.append(loaded.model.joiner.encoder_proj(out).numpy())
    return found


def errors_of(found: np.ndarray, expected: np.ndarray) -> Dict[str, float]:
    """Largest and RMS error, relative to the RMS of ``expected``; infinite if ``found`` differs where that is -inf."""
    known = np.isfinite(expected)
    if not np.array_equal(found[~known], expected[~known]):
        return {"max": math.inf, "rms": math.inf}
    scale = float(np.sqrt(np.mean(expected[known].astype(np.float64) ** 2))) or 1.0
    difference = np.abs(found[known] - expected[known]).astype(np.float64)
    return {"max": float(difference.max()) / scale, "rms": float(np.sqrt(np.mean(difference**2))) / scale}


def agreement(
    part: str, pairs: Sequence[Tuple[Sequence[np.ndarray], Sequence[np.ndarray]]], precision: str
) -> Dict[str, float]:
    """Check that a part of the graphs agrees with torch; return the largest and RMS error (`errors_of`) of all cases.

    Args:
        pairs: for each case the frames or logits (T, ..) of its utterances or chunks, from the graphs and from torch.

    Raises:
        UserError: if the number of frames differs, or an error exceeds the tolerance of the precision.
    """
    if any(len(a) != len(b) for found, expected in pairs for a, b in zip(found, expected)):
        raise UserError("export: the graphs give another number of frames than torch: nothing was written")
    cases = [errors_of(np.concatenate(found), np.concatenate(expected)) for found, expected in pairs]
    errors = {key: max(case[key] for case in cases) for key in ("max", "rms")}
    for kind, most in (("max", TOLERANCES[precision]), ("rms", RMS_TOLERANCES[precision])):
        if not errors[kind] <= most:
            raise UserError(
                f"export: {part} of the graphs and of torch differ by {errors[kind]:.2g} ({kind}), "
                f"more than {most:g}: nothing was written"
            )
    return errors


def reduce_precision(path: Path, precision: str) -> None:
    """Store the weights of a graph in this precision, in place."""
    if precision == "int8":
        to_int8(path)
    elif precision == "float16":
        to_float16(path)


def to_int8(path: Path) -> None:
    """Quantise the matrix products of a graph to 8 bits, in place (onnxruntime's dynamic quantisation)."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def no_advice(record: logging.LogRecord) -> bool:
        """Hides the advice to infer shapes first, which changes nothing for products with weights."""
        return "pre-processing" not in record.getMessage()

    data = path.with_suffix(".data")
    options: Dict[str, Any] = {
        "per_channel": True,
        "weight_type": QuantType.QInt8,
        "use_external_data_format": data.exists(),
    }
    target = path.with_suffix(".int8.onnx")
    logging.getLogger().addFilter(no_advice)
    try:
        quantize_dynamic(path, target, op_types_to_quantize=["MatMul"], **options)
    finally:
        logging.getLogger().removeFilter(no_advice)
    save_graph(onnx.load(target), path)
    target.unlink()
    target.with_name(f"{target.name}.data").unlink(missing_ok=True)


def to_float16(path: Path) -> None:
    """Store the large weights of a graph in float16, each with a Cast, which onnxruntime folds on loading."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < SMALLEST_FLOAT16:
            continue
        name, stored = tensor.name, f"{tensor.name}.float16"
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    for node in reversed(casts):
        model.graph.node.insert(0, node)
    save_graph(model, path)


def describe(path: Path, values: Dict[str, Any]) -> None:
    """Write values to the metadata of a graph, as JSON unless they are text, and check the graph."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)

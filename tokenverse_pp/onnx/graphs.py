"""What is traced: the encoder with the joiner's projection, the predictor with its own, and the rest of the joiner.

Split like this, a search projects each frame and each context once, and per step only adds, squashes and multiplies.

From a module to an ONNX file.

By torch's tracer (``dynamo=False``): the encoders look at the values of lengths and masks, to refuse what is too long
or to leave out a mask that bars nothing, which ``dynamo=True`` (torch.export) refuses to follow. A tracer takes the way
that its example takes, so the example is a padded batch, for which nothing is left out; that this way is right for
every other batch is what `tokenverse_pp.onnx.export` is for.

Graphs with smaller weights, and with what they are for in their metadata.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, Sequence, Tuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.models.encoders.wav2vec2 import WavLMBackbone
from tokenverse_pp.models.encoders.whisper import LogMel
from tokenverse_pp.models.transducer import Transducer


class GivenMel(nn.Module):
    """Stands in for `LogMel` where the input is a log-mel spectrogram already: (N, bins, T), zero on padding.

    ONNX has an STFT, but no runtime of it is as exact and as fast as NumPy's.
    """

    def __init__(self, log_mel: LogMel):
        super().__init__()
        self.hop = log_mel.hop

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames of 10 ms."""
        return torch.div(lens + self.hop - 1, self.hop, rounding_mode="floor")

    def forward(self, mel: Tensor, lens: Tensor, *_: Any) -> Tuple[Tensor, Tensor]:
        """As `LogMel.forward`: (N, bins, T) and lens (N,) samples -> the same, and frames (N,)."""
        return mel, self.frame_lens(lens)


class EncoderGraph(nn.Module):
    """Audio or log-mel -> what the joiner adds to a predictor's state."""

    def __init__(self, model: Transducer):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, lens: Tensor, active: Tensor) -> Tuple[Tensor, Tensor]:
        """Inputs (N, S) or (N, bins, T), lens (N,) samples, active (N, K + 1) -> frames (N, T', J), their lens (N,)."""
        out, lens = self.model.encode(inputs, lens, active)
        return self.model.joiner.encoder_proj(out), lens


class PredictorGraph(nn.Module):
    """Contexts -> what the joiner adds to an encoder frame."""

    def __init__(self, model: Transducer):
        super().__init__()
        self.predictor, self.projection = model.predictor, model.joiner.predictor_proj

    def forward(self, context: Tensor) -> Tensor:
        """Context (M, context_size) int64, the newest token last -> state (M, J)."""
        return self.projection(self.predictor.step(context))


class JoinerGraph(nn.Module):
    """Frame and state -> logits."""

    def __init__(self, model: Transducer):
        super().__init__()
        self.joiner = model.joiner

    def forward(self, frame: Tensor, state: Tensor) -> Tensor:
        """Frame (M, J), state (M, J) -> logits (M, V)."""
        return self.joiner(frame, state)


def prepared(model: Transducer, given_mel: bool = True) -> Transducer:
    """A copy in eval mode that a tracer can go through, with the same output.

    Args:
        model: of any mode and device.
        given_mel: take the log-mel as it comes (`GivenMel`).

    Raises:
        UserError: for an encoder that cannot be exported.
    """
    model = copy.deepcopy(model).eval().cpu().float()
    model.requires_grad_(False)
    if any(isinstance(module, WavLMBackbone) for module in model.modules()):
        raise UserError("export: WavLM encoders cannot be exported: their attention is no plain sum of products")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if given_mel and isinstance(child, LogMel):
                setattr(parent, name, GivenMel(child))
    for vectors in (model.feature_vectors, model.encoder_vectors):
        if vectors is not None:  # the runtime refuses combinations that were not trained, a graph cannot
            vectors.trained.fill_(1)
    return model


def log_mel_of(model: Transducer) -> Any:
    """The model's `LogMel`, None where it hears the audio itself."""
    return next((module for module in model.modules() if isinstance(module, LogMel)), None)


Axes = Dict[str, Dict[int, str]]
LARGEST = 1_900_000_000  # bytes: an ONNX file with its weights inside ends at 2 GiB


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Have what is traced use plain numbers where ONNX knows nothing else, and no warnings about it."""
    layer_norm = torch.layer_norm  # what both torch.nn.functional's and LayerNorm's end in

    def with_numbers(x: Tensor, shape: Sequence[Any], *more: Any, **options: Any) -> Tensor:
        """`layer_norm` over a shape that a tracer has made tensors of."""
        return layer_norm(x, [int(size) for size in shape], *more, **options)

    with warnings.catch_warnings(), mock.patch.object(torch, "layer_norm", with_numbers), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def trace(
    module: nn.Module,
    example: Sequence[Tensor],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Axes,
    opset: int,
) -> None:
    """Write a module as an ONNX graph.

    Args:
        module: in eval mode.
        example: its arguments.
        path: of the file.
        inputs: names of the arguments.
        outputs: names of the results.
        axes: of each input and output those that may have any size, by name.
        opset: of ONNX.

    Raises:
        UserError: without the package onnx, or for a module that cannot be exported.
    """
    require_onnx()
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    if size > LARGEST:
        raise UserError(f"export: the encoder has {size / 1e9:.1f} GB of weights, an ONNX file holds 2 GB at most")
    try:
        with traceable():
            torch.onnx.export(
                module,
                tuple(example),
                str(path),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes=axes,
                opset_version=opset,
                dynamo=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"export: torch cannot write this encoder as ONNX: {reason}") from error


def require_onnx() -> None:
    """See that onnx, onnxruntime and a torch that exports are here (raises UserError)."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < (2, 5):
        raise UserError(f"export needs torch 2.5 or newer, here is {torch.__version__}")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except Exception as error:  # one that is there may fail in other ways than ImportError
        said = f"export needs onnx and onnxruntime ({one_line(error)}): pip install 'tokenverse_pp[onnx]'"
        raise UserError(said) from None


FEWEST = 1024  # numbers in a tensor that is worth storing in fewer bits


def to_int8(path: Path) -> None:
    """Quantise the matrix products with weights of a graph to 8 bits, in place (onnxruntime's dynamic quantisation)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # It advises a pre-processing that infers shapes, which changes nothing for products with weights.
    logging.getLogger().addFilter(_no_advice)
    try:
        quantize_dynamic(path, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logging.getLogger().removeFilter(_no_advice)


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing" not in record.getMessage()


def to_float16(path: Path) -> None:
    """Store the large weights of a graph in float16, each with a Cast that onnxruntime does on loading."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < FEWEST:
            continue
        name, stored = tensor.name, f"{tensor.name}.float16"
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    onnx.save(model, path)


def describe(path: Path, values: Dict[str, Any]) -> None:
    """Put values into the metadata of a graph, as JSON where they are no text, and check the graph.

    Raises:
        onnx.checker.ValidationError: for a graph that is no valid ONNX, which is a fault of ours.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)

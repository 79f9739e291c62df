"""From a module to an ONNX file.

By torch's tracer (``dynamo=False``): the encoders look at the values of lengths and masks, to refuse what is too long
or to leave out a mask that bars nothing, which ``dynamo=True`` (torch.export) refuses to follow. A tracer takes the way
that its example takes, so the example is a padded batch, for which nothing is left out; that this way is right for
every other batch is what `tokenverse_pp.export.check` is for.
"""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, Sequence
from unittest import mock

import torch
from torch import Tensor, nn

from tokenverse_pp.errors import UserError, one_line

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

"""Graphs with smaller weights, and with what they are for in their metadata."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Dict

import numpy as np

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

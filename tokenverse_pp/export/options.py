"""How to export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from tokenverse_pp.errors import UserError
from tokenverse_pp.model.masks import ChunkOptions

# Largest error of the encoder's output over the root mean square of what torch gives. Weights in 8 bits are another
# model, whose words have to be scored: their tolerance only finds graphs that are wrong.
TOLERANCES = {"float32": 2e-3, "float16": 5e-2, "int8": 5.0}
RMS_TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "int8": 0.5}


@dataclass(frozen=True)
class ExportOptions:
    """Options of `export_onnx`.

    Args:
        precision: of the weights. ``float16``: stored in half the bytes, computed in float32. ``int8``: the encoder's
            matrix products in 8 bits (dynamic quantisation: a scale for each output channel, activations as they come).
        chunks: export the streaming form, in these chunks; None for whole utterances.
        opset: of ONNX; 17 is the first with LayerNormalization.

    Raises:
        UserError: for a precision that there is not.
    """

    precision: str = "float32"
    chunks: Optional[ChunkOptions] = None
    opset: int = 17

    def __post_init__(self) -> None:
        if self.precision not in TOLERANCES:
            raise UserError(f"precision: expected one of {', '.join(TOLERANCES)}, got {self.precision!r}")

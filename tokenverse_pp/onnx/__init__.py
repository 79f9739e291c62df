"""Export of models to ONNX, and decoding with exported models."""

from tokenverse_pp.onnx.sherpa import from_sherpa

__all__ = ["from_sherpa"]

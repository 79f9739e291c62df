"""Export of models to ONNX, and decoding with exported models."""

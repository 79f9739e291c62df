"""A trained model as ONNX graphs that `tokenverse_pp.runtime` decodes with, without torch (docs/onnx.md)."""

from tokenverse_pp.export.options import ExportOptions
from tokenverse_pp.export.run import export_onnx

__all__ = ["ExportOptions", "export_onnx"]

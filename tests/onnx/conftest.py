"""Tiny models and their exports, each made once."""

import importlib.util

import pytest
import torch
from tiny_exports import build

from tokenverse_pp.onnx.export import ExportOptions, export_onnx

HERE = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
if not HERE or tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 5):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """``exported(case, precision="float32")`` -> the model in torch, and the folder of its export."""
    made = {}

    def get(case, precision="float32"):
        if case not in made:
            folder = tmp_path_factory.mktemp(case)
            made[case] = build(case, folder), folder
        loaded, folder = made[case]
        output = folder / f"onnx-{precision}"
        if not output.is_dir():
            export_onnx(loaded, output, ExportOptions(precision))
        return loaded, output

    return get

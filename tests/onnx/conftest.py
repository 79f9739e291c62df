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
def sherpa_exported(tmp_path_factory):
    """``sherpa_exported(case, options, **changes)`` -> the model in torch, built with the changes, and its export."""
    made = {}

    def get(case, options, **changes):
        key = (case, options.form)
        if key not in made:
            folder = tmp_path_factory.mktemp(case)
            loaded = build(case, folder, **changes)
            export_onnx(loaded, folder / "out", options)
            made[key] = loaded, folder / "out"
        return made[key]

    return get


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """``exported(case, precision="float32", chunks=None)`` -> the model in torch, and the folder of its export."""
    models, folders = {}, {}

    def get(case, precision="float32", chunks=None):
        if case not in models:
            models[case] = build(case, tmp_path_factory.mktemp(case))
        key = (case, precision, chunks)
        if key not in folders:
            folder = tmp_path_factory.mktemp("export") / "out"
            export_onnx(models[case], folder, ExportOptions(precision, chunks))
            folders[key] = folder
        return models[case], folders[key]

    return get

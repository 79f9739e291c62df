"""Tiny models and their exports, each made once."""

import pytest
from tiny_models import build

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tokenverse_pp.export import ExportOptions, export_onnx


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

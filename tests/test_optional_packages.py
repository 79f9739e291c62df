"""Optional packages that are missing or broken: what needs them says so in one line, what can do without goes on."""

import logging
import sys

import pytest
import torch

from tokenverse_pp.base.engine import EngineOptions, RayEngine
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.editing.entity_finders import SpacyEntities
from tokenverse_pp.data.editing.stats import plot_stats
from tokenverse_pp.evaluation.endpoints import SileroVad
from tokenverse_pp.models.encoders.kinds import add_lora
from tokenverse_pp.onnx.graphs import require_onnx
from tokenverse_pp.onnx.runtime import open_graph
from tokenverse_pp.serving.client import need_server, need_websockets
from tokenverse_pp.training.log import RunLog, plot_curves, read_log

NEEDED = {
    "matplotlib": lambda folder: plot_stats({}, folder / "a.png"),
    "peft": lambda folder: add_lora(None, None),
    "spacy": lambda folder: SpacyEntities("fr_core_news_sm", 0.5),
    "silero_vad": lambda folder: SileroVad(),
    "websockets": lambda folder: need_websockets(),
    "aiohttp": lambda folder: need_server(),
    "prometheus_client": lambda folder: need_server(),
    "ray": lambda folder: RayEngine(EngineOptions(engine="ray")),
    "onnx": lambda folder: require_onnx(),
    "onnxruntime": lambda folder: open_graph(folder / "encoder.onnx", 1),
}
BROKEN = {
    "missing": ("raise ModuleNotFoundError('No module named it')", "No module named it"),
    "library": (
        "raise OSError('libcudart.so.12: cannot open shared object file')",
        "libcudart.so.12: cannot open shared object file",
    ),
    "protobuf": (
        "raise TypeError('Descriptors cannot be created directly.\\nIf this call came from a _pb2.py file, ..')",
        "Descriptors cannot be created directly. If this call came from a _pb2.py file",
    ),
    "numpy": ("import numpy; numpy.no_such_type", "no_such_type"),
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """``install(name, source)`` puts a package of this ``__init__.py`` first on the path."""
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))

    def write(name, source):
        for known in [known for known in sys.modules if known.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, known)
        folder = tmp_path / "packages" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(source + "\n")

    return write


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("name", NEEDED)
def test_what_needs_a_package_says_why_it_cannot_be_used(install, tmp_path, name, kind):
    if name == "onnx" and tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 5):
        pytest.skip("export needs torch 2.5")
    source, reason = BROKEN[kind]
    install(name, source)
    with pytest.raises(UserError) as caught:
        NEEDED[name](tmp_path)
    said = str(caught.value)
    assert name in said.lower() and reason in said and "pip install" in said and "\n" not in said


@pytest.mark.parametrize("kind", BROKEN)
def test_training_is_logged_without_tensorboard_and_matplotlib(install, tmp_path, caplog, monkeypatch, kind):
    source, reason = BROKEN[kind]
    for known in [known for known in sys.modules if known.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, known)
    install("tensorboard", source)
    install("matplotlib", source)
    with caplog.at_level(logging.WARNING):
        log = RunLog(tmp_path, 0)
        log.write("train", 1, {"pruned": 1.0})
        log.close()
        assert plot_curves(tmp_path) is None
    assert [r["pruned"] for r in read_log(tmp_path / "log.jsonl")] == [1.0]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all(reason in line and "\n" not in line for line in said)
    assert said[0].startswith("tensorboard cannot be imported") and "matplotlib cannot be imported" in said[1]

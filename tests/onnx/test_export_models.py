"""Every kind of model gives in the runtime what it gives in torch."""

import json

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_exports import CASES, build

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.decoding.search import search
from tokenverse_pp.onnx import export as check
from tokenverse_pp.onnx.export import ExportOptions, export_onnx, torch_frames
from tokenverse_pp.onnx.graphs import require_onnx
from tokenverse_pp.runtime import Runtime

TASK_CHOICES = [["asr"], ["scd"], ["endp", "lid"], ["scd", "endp", "ner", "lid"]]
MANY = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])


def noise(seed, sizes):
    random = np.random.default_rng(seed)
    return [(0.1 * random.standard_normal(size)).astype(np.float32) for size in sizes]


def choices(loaded):
    vectors = loaded.model.feature_vectors
    if vectors is not None and vectors.strategy == "combination":
        return [["asr"], ["endp", "ner"]]  # combinations 0 and 6 of the tasks beside asr; the odd ones are not trained
    return TASK_CHOICES


@pytest.mark.parametrize("case", CASES)
def test_frames_of_any_lengths_and_tasks(exported, case):
    loaded, folder = exported(case)
    runtime = Runtime(folder)
    fewest = runtime.description.min_samples

    @MANY
    @given(
        st.lists(st.integers(fewest, 20000), min_size=1, max_size=3),
        st.integers(0, 99),
        st.sampled_from(choices(loaded)),
    )
    def agree(sizes, seed, tasks):
        audio = noise(seed, sizes)
        found, expected = runtime.encode(audio, tasks), torch_frames(loaded, audio, tasks)
        for ours, theirs in zip(found, expected):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, atol=2e-3)

    agree()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_hypotheses_are_those_of_torch(exported, case, method):
    loaded, folder = exported(case)
    runtime, options = Runtime(folder), SearchOptions(method)
    audio = noise(5, [16000, 9000, 23011])
    written = 0
    for tasks in choices(loaded):
        found, expected = runtime.search(audio, tasks, options), search(loaded, audio, tasks, options)
        assert [h[0].tokens for h in found] == [h[0].tokens for h in expected]
        written += sum(len(h[0].tokens) for h in found)
    assert written > 20


def test_tasks_change_what_the_encoder_gives(exported):
    runtime = Runtime(exported("whisper-frozen")[1])
    (audio,) = noise(0, [8000])
    plain, all_tasks = (runtime.encode([audio], tasks)[0] for tasks in (["asr"], ["scd", "endp", "ner", "lid"]))
    assert np.abs(plain - all_tasks).max() > 0.1


def test_a_combination_that_was_not_trained_is_refused(exported):
    _, folder = exported("combination")
    with pytest.raises(UserError, match="never active in training"):
        Runtime(folder).encode(noise(0, [8000]), ["scd"])


@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("case", ["whisper-frozen", "wav2vec2-layer"])
def test_smaller_weights(exported, case, precision):
    loaded, folder = exported(case, precision)
    runtime = Runtime(folder)
    assert runtime.description.precision == precision
    (audio,) = noise(0, [16000])
    (found,), (expected,) = runtime.encode([audio], ["scd"]), torch_frames(loaded, [audio], ["scd"])
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert 0 < error < {"int8": 0.5, "float16": 0.01}[precision]
    types = {tensor.data_type for tensor in onnx.load(folder / "encoder.onnx").graph.initializer}
    assert {"int8": onnx.TensorProto.INT8, "float16": onnx.TensorProto.FLOAT16}[precision] in types
    assert runtime.search([audio])[0][0].tokens


def test_description_is_in_the_folder_and_in_the_graphs(exported):
    loaded, folder = exported("whisper-frozen")
    description = Runtime(folder).description
    data = json.loads((folder / "export.json").read_text())
    assert data == description.as_dict() and data["languages"] == ["en", "fr"]
    assert data["tasks"] == list(loaded.tasks.names) and data["symbols"] == list(loaded.tasks.symbols)
    assert data["check"]["encoder"]["rms"] < 1e-4
    for part in ("encoder", "predictor", "joiner"):
        props = {p.key: p.value for p in onnx.load(folder / f"{part}.onnx").metadata_props}
        assert props["part"] == part and json.loads(props["tasks"]) == data["tasks"]
        assert json.loads(props["frame_shift"]) == data["frame_shift"]
    assert (folder / "README.md").read_text().startswith("# An exported tokenverse_pp model")


def test_graphs_that_do_not_agree_leave_nothing(exported, tmp_path, monkeypatch):
    loaded, _ = exported("wav2vec2-group")
    monkeypatch.setitem(check.RMS_TOLERANCES, "float32", 1e-12)
    with pytest.raises(UserError, match=r"differ by .* more than 1e-12: nothing was written"):
        export_onnx(loaded, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_keeps_the_one_before(exported, tmp_path, monkeypatch):
    loaded, _ = exported("wav2vec2-group")
    export_onnx(loaded, tmp_path / "out")
    before = (tmp_path / "out" / "export.json").read_text()
    monkeypatch.setitem(check.TOLERANCES, "float32", 0.0)
    with pytest.raises(UserError, match="differ"):
        export_onnx(loaded, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "export.json").read_text() == before


def test_the_model_is_as_it_was(exported):
    loaded, _ = exported("combination")
    assert loaded.model.feature_vectors.trained.tolist() == [1, 0] * 8
    assert not any(module.training for module in loaded.model.modules())


def test_wavlm_is_refused(tmp_path):
    with pytest.raises(UserError, match="WavLM encoders cannot be exported"):
        export_onnx(build("wavlm", tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(exported, tmp_path):
    loaded, _ = exported("wav2vec2-group")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"--output-dir .*there is something else"):
        export_onnx(loaded, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_options_and_old_torch(monkeypatch):
    with pytest.raises(UserError, match="precision: expected one of float32, float16, int8"):
        ExportOptions("int4")
    monkeypatch.setattr(torch, "__version__", "1.13.1+cu117")
    with pytest.raises(UserError, match=r"export needs torch 2.5 or newer, here is 1.13.1"):
        require_onnx()

"""Every kind of model has the same output in the runtime as in torch."""

import json

import numpy as np
import onnx
import pytest
import soundfile
import torch
from encoder_families import FAMILIES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_exports import CASES, build, noise

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.long_form import decode_long
from tokenverse_pp.decoding.recognizer import search
from tokenverse_pp.onnx import graphs
from tokenverse_pp.onnx.export import ExportOptions, export_onnx, torch_frames
from tokenverse_pp.onnx.folder import DESCRIPTION
from tokenverse_pp.onnx.graphs import require_onnx
from tokenverse_pp.runtime import Runtime


def choices(loaded):
    vectors = loaded.model.feature_vectors
    if vectors is not None and vectors.strategy == "combination":
        return [["asr"], ["endp", "ner"]]  # combinations 0 and 6 of the tasks besides asr; odd ones are not trained
    return [["asr"], ["scd"], ["endp", "lid"], ["scd", "endp", "ner", "lid"]]


@pytest.mark.parametrize("case", CASES)
def test_frames_of_any_lengths_and_tasks(exported, case):
    loaded, folder = exported(case)
    runtime = Runtime(folder)
    sizes = st.lists(st.integers(runtime.description.min_samples, 20000), min_size=1, max_size=3)

    @settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(sizes, st.integers(0, 99), st.sampled_from(choices(loaded)))
    def agree(sizes, seed, tasks):
        audio = noise(*sizes, seed=seed)
        for ours, theirs in zip(runtime.encode(audio, tasks), torch_frames(loaded, audio, tasks)):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, atol=2e-3)

    agree()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_hypotheses_are_those_of_torch(exported, case, method):
    loaded, folder = exported(case)
    runtime, options = Runtime(folder), SearchOptions(method)
    audio = noise(16000, 9000, 23011, seed=5)
    written = 0
    for tasks in choices(loaded):
        found, expected = runtime.search(audio, tasks, options), search(loaded, audio, tasks, options)
        assert [h[0].tokens for h in found] == [h[0].tokens for h in expected]
        written += sum(len(h[0].tokens) for h in found)
    assert written > 20 and runtime.search([], ["asr"]) == []


@pytest.mark.parametrize(
    "family", [name if name == "parakeet-ctc" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_encoders_of_today(exported, family):
    loaded, folder = exported(family)
    runtime, audio = Runtime(folder), noise(16000, 9000, 23011, seed=5)
    for tasks in choices(loaded):
        for ours, theirs in zip(runtime.encode(audio, tasks), torch_frames(loaded, audio, tasks)):
            np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())
        found, expected = runtime.search(audio, tasks), search(loaded, audio, tasks)
        assert [h[0].tokens for h in found] == [h[0].tokens for h in expected]


def test_a_bias_of_tokens_is_that_of_torch(exported):
    loaded, folder = exported("whisper-frozen")
    audio, options = noise(16000, 23011, seed=5), SearchOptions(token_bias=(("[SCD]", 2.0), ("[ENDP]", -99.0)))
    found, plain = (Runtime(folder).search(audio, None, o) for o in (options, SearchOptions()))
    expected = search(loaded, audio, None, options)
    assert [h[0].tokens for h in found] == [h[0].tokens for h in expected] != [h[0].tokens for h in plain]
    assert found[0][0].log_prob == pytest.approx(expected[0][0].log_prob, abs=0.05)


def test_an_lstm_predictor_writes_several_symbols_at_a_frame(exported):
    loaded, folder = exported("lstm")
    runtime, audio, options = Runtime(folder), noise(16000), SearchOptions("greedy", blank_penalty=6.0)
    about = runtime.description
    assert (about.lstm, about.symbols_per_frame, about.context_size) == ([2, 12], 3, 1)
    (best,), (expected,) = (
        runtime.search(audio, options=options)[0],
        search(loaded, audio, loaded.tasks.names, options)[0],
    )
    assert (best.tokens, best.frames) == (expected.tokens, expected.frames)
    assert max(map(best.frames.count, best.frames)) == 3
    assert "`token` (M,) int64, `hidden` and `cell` (M, 2, 12)" in (folder / "README.md").read_text()


@pytest.mark.parametrize("case", ["whisper-frozen", "wav2vec2-group"])
@pytest.mark.parametrize(
    ("seconds", "inactive", "options"),
    [
        (28.0, "suppress", {}),
        (28.01, "suppress", {}),
        pytest.param(67.3, "suppress", {}, marks=pytest.mark.slow),
        (3.7, "suppress", {"window": 1.5, "overlap": 0.5}),
        (3.7, "strip", {"window": 1.5, "overlap": 0.5}),
    ],
)
def test_recordings_of_any_length_are_decoded_in_windows_as_in_torch(
    exported, tmp_path, case, seconds, inactive, options
):
    loaded, folder = exported(case)
    runtime, tasks = Runtime(folder), loaded.tasks.subset(["asr", "scd", "ner", "lid"])
    soundfile.write(tmp_path / "long.wav", noise(int(seconds * 16000))[0], 16000, subtype="FLOAT")
    expected = decode_long(loaded, tmp_path / "long.wav", tasks, inactive=inactive, **options)
    runtime.inactive = inactive
    found = runtime.recognize(
        soundfile.read(tmp_path / "long.wav", dtype="float32")[0], tasks.names, SearchOptions(), **options
    )
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)
    assert (found.log_prob, found.score) == pytest.approx((expected.log_prob, expected.score), rel=1e-3)
    heard = runtime.transcribe(tmp_path / "long.wav", tasks.names, **options)
    assert heard.raw == loaded.tokenizer.decode(expected.tokens) and heard.words[-1].end > seconds - 1


def test_windows_longer_than_the_encoder_takes_are_refused(exported):
    runtime, (audio,) = Runtime(exported("whisper-frozen")[1]), noise(40 * 16000)
    with pytest.raises(UserError, match=r"has 35.00 s: this model takes 30 s at most"):
        runtime.transcribe(audio, window=35.0)
    with pytest.raises(UserError, match="overlap: expected seconds above 0, less than half the window"):
        runtime.transcribe(audio, overlap=20.0)


def test_untrained_combinations_are_refused_and_the_model_is_not_changed(exported):
    loaded, folder = exported("combination")
    with pytest.raises(UserError, match="never active in training"):
        Runtime(folder).encode(noise(8000), ["scd"])
    assert loaded.model.feature_vectors.trained.tolist() == [1, 0] * 8
    assert not any(module.training for module in loaded.model.modules())


@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("case", ["whisper-frozen", "wav2vec2-layer"])
def test_smaller_weights(exported, case, precision):
    loaded, folder = exported(case, precision)
    runtime, audio = Runtime(folder), noise(16000)
    assert runtime.description.precision == precision
    (found,), (expected,) = runtime.encode(audio, ["scd"]), torch_frames(loaded, audio, ["scd"])
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert 0 < error < {"int8": 0.5, "float16": 0.01}[precision]
    types = {tensor.data_type for tensor in onnx.load(folder / "encoder.onnx").graph.initializer}
    assert {"int8": onnx.TensorProto.INT8, "float16": onnx.TensorProto.FLOAT16}[precision] in types
    assert runtime.search(audio)[0][0].tokens


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_weights_of_large_models_are_beside_the_graph(exported, tmp_path, monkeypatch, precision):
    loaded, small = exported("whisper-frozen", precision)
    monkeypatch.setattr(graphs, "LARGEST", 2000)  # bytes
    export_onnx(loaded, tmp_path / "out", ExportOptions(precision))
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert "encoder.data" in files and files == {*Runtime(tmp_path / "out").description.files, "README.md", DESCRIPTION}
    assert (tmp_path / "out/encoder.onnx").stat().st_size < (small / "encoder.onnx").stat().st_size
    audio = noise(16000, 9000)
    for ours, theirs in zip(Runtime(tmp_path / "out").encode(audio, ["scd"]), Runtime(small).encode(audio, ["scd"])):
        np.testing.assert_array_equal(ours, theirs)


def test_description_is_in_the_folder_and_in_the_graphs(exported):
    loaded, folder = exported("whisper-frozen")
    data = json.loads((folder / "export.json").read_text())
    assert data == Runtime(folder).description.as_dict() and data["languages"] == ["en", "fr"]
    assert data["tasks"] == list(loaded.tasks.names) and data["symbols"] == list(loaded.tasks.symbols)
    assert data["check"]["encoder"]["rms"] < 1e-4
    for part in ("encoder", "predictor", "joiner"):
        props = {p.key: p.value for p in onnx.load(folder / f"{part}.onnx").metadata_props}
        assert props["part"] == part and json.loads(props["tasks"]) == data["tasks"]
        assert json.loads(props["frame_shift"]) == data["frame_shift"]
    assert (folder / "README.md").read_text().startswith("# An exported tokenverse_pp model")


def test_graphs_that_do_not_agree_leave_what_was_there(exported, tmp_path, monkeypatch):
    loaded, _ = exported("wav2vec2-group")
    with monkeypatch.context() as patch:
        patch.setitem(graphs.RMS_TOLERANCES, "float32", 1e-12)
        with pytest.raises(UserError, match=r"differ by .* more than 1e-12: nothing was written"):
            export_onnx(loaded, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    export_onnx(loaded, tmp_path / "out")
    before = (tmp_path / "out" / "export.json").read_text()
    with monkeypatch.context() as patch:
        patch.setitem(graphs.TOLERANCES, "float32", 0.0)
        with pytest.raises(UserError, match="differ"):
            export_onnx(loaded, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "export.json").read_text() == before
    export_onnx(loaded, tmp_path / "out", ExportOptions("float16"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert Runtime(tmp_path / "out").description.precision == "float16"


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="WavLM encoders cannot be exported"):
        export_onnx(build("wavlm", tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="precision: expected one of float32, float16, int8"):
        ExportOptions("int4")
    monkeypatch.setattr(torch, "__version__", "1.13.1+cu117")
    with pytest.raises(UserError, match=r"export needs torch 2.5 or newer, here is 1.13.1"):
        require_onnx()

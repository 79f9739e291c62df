"""Streams through the exported graphs, beside the streaming encoder and transcriber in torch."""

from functools import partial

import numpy as np
import onnx
import pytest
import soundfile
import torch
from command_lines import run, run_ok
from hypothesis import given, settings
from hypothesis import strategies as st
from test_export_commands import without_torch
from tiny_exports import build, noise

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.streaming.transcriber import StreamingOptions, StreamingTranscriber
from tokenverse_pp.onnx.graphs import torch_stream
from tokenverse_pp.runtime import Runtime, StreamingRuntime

CHUNKS = ChunkOptions(chunk_ms=320, left_chunks=2, sinks=3)
SAMPLES = 5120


@pytest.fixture(scope="module")
def streamed(exported):
    return partial(exported, chunks=CHUNKS)


SLOW = (pytest.param(case, marks=pytest.mark.slow) for case in ("whisper-split", "wav2vec2-group", "hubert-frozen"))


@pytest.mark.parametrize("case", ["whisper-frozen", "wav2vec2-layer", *SLOW])
def test_chunks_are_those_of_torch(streamed, case):
    loaded, folder = streamed(case)
    runtime = StreamingRuntime(folder)
    assert runtime.chunk_samples == SAMPLES
    audio, tasks = list(noise(12 * SAMPLES)[0].reshape(12, SAMPLES)), ["scd", "lid"]
    stream = runtime.open(tasks)
    for chunk, expected in zip(audio, torch_stream(loaded, CHUNKS, audio, tasks)):
        np.testing.assert_allclose(runtime.encode_chunk(stream, chunk), expected, atol=1e-3)


@pytest.mark.parametrize("case", ["whisper-frozen", "wav2vec2-group", "lstm"])
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_events_are_those_of_torch(streamed, case, method):
    """Except at the end, where the runtime pads the last chunk with silence."""
    loaded, folder = streamed(case)
    options = SearchOptions(method, force_language=True)
    runtime = StreamingRuntime(folder)
    transcriber = StreamingTranscriber(loaded, StreamingOptions(CHUNKS, search=options))
    ours, theirs = runtime.open(options=options), transcriber.open()
    for piece in np.array_split(noise(6 * SAMPLES + 77)[0], [100, 7000, 7001, 20000]):
        found, expected = runtime.push(ours, piece), transcriber.push(theirs, piece)
        assert [(e.kind, e.time, e.text) for e in found] == [(e.kind, e.time, e.text) for e in expected]
        for a, b in ((a, b) for one, other in zip(found, expected) for a, b in zip(one.words, other.words)):
            assert (a.start, a.end) == (b.start, b.end)
            assert a.confidence == pytest.approx(b.confidence, abs=1e-3)
    assert runtime.close(ours)[-1].kind == "end"


def test_any_pieces_give_the_same_text(streamed):
    runtime = StreamingRuntime(streamed("whisper-frozen")[1])
    (audio,) = noise(3 * SAMPLES + 1234)
    whole = runtime.transcribe(audio, options=SearchOptions("greedy", force_language=True)).raw
    assert len(whole.split()) > 3

    @settings(max_examples=10)
    @given(st.lists(st.integers(0, len(audio)), max_size=5))
    def same(cuts):
        stream = runtime.open()
        for piece in np.split(audio, sorted(cuts)):
            runtime.push(stream, piece)
        end = runtime.close(stream)[-1]
        assert (end.kind, end.text) == ("end", whole)

    same()


@pytest.mark.parametrize("case", ["whisper-frozen", "wav2vec2-layer"])
def test_frames_of_any_length(streamed, case):
    loaded, folder = streamed(case)
    runtime, encoder = StreamingRuntime(folder), loaded.model.encoder

    @settings(max_examples=8)
    @given(st.integers(0, 16000))
    def agree(size):
        expected = int(encoder.output_lens(encoder.feature_lens(torch.tensor(size)).clamp(min=0)))
        assert runtime.frames_of(size) == expected
        stream = runtime.open()
        runtime.push(stream, *noise(size))
        runtime.close(stream)
        assert stream.search.frame == expected

    agree()


def test_both_graphs_share_their_weights(streamed):
    _, folder = streamed("whisper-frozen", "int8")
    stored = {}
    for name in ("encoder.onnx", "encoder_first.onnx"):
        for tensor in onnx.load(folder / name, load_external_data=False).graph.initializer:
            places = {entry.key: entry.value for entry in tensor.external_data}
            if places:
                assert places["location"] == "encoder.weights"
                stored.setdefault(int(places["offset"]), set()).add(name)
    assert sum(len(names) == 2 for names in stored.values()) > len(stored) / 2
    assert StreamingRuntime(folder).transcribe(*noise(9000)).words


def test_what_is_refused(streamed, exported):
    with pytest.raises(UserError, match="exported for streaming: open it by"):
        Runtime(streamed("wav2vec2-group")[1])
    with pytest.raises(UserError, match="exported for whole utterances: streams need an export with --streaming"):
        StreamingRuntime(exported("wav2vec2-group")[1])
    runtime = StreamingRuntime(streamed("wav2vec2-group")[1])
    with pytest.raises(UserError, match="task 'emo'"):
        runtime.open(["emo"])
    stream = runtime.open(["asr"])
    with pytest.raises(UserError, match="audio: holds NaN"):
        runtime.push(stream, np.array([0.1, np.nan], dtype=np.float32))
    with pytest.raises(UserError, match=r"audio: expected samples in .-1, 1., got 3000; divide 16-bit"):
        runtime.push(stream, np.array([20, -3000], dtype=np.float32))
    assert runtime.push(stream, *noise(10)) == []
    runtime.close(stream)
    for action in (lambda: runtime.push(stream, *noise(10)), lambda: runtime.close(stream)):
        with pytest.raises(UserError, match="the stream is closed"):
            action()


def test_long_files_are_transcribed_in_chunks_without_torch(streamed, tmp_path):
    _, folder = streamed("whisper-frozen")
    soundfile.write(tmp_path / "long.wav", *noise(31 * 16000), 16000)
    done = without_torch(folder, tmp_path / "long.wav", "--tasks", "asr")
    assert done.returncode == 0, done.stderr
    (text,) = done.stdout.splitlines()
    assert len(text) > 20


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--chunk-ms", "325"], "--chunk-ms=325: expected a multiple of"),
        (["--chunk-ms", "0"], "--chunk-ms=0: streaming needs chunks"),
        (["--left-chunks", "-1"], "--left-chunks=-1: a graph's caches cannot grow"),
        (["--sinks", "-2"], "--sinks=-2: expected a number of frames"),
    ],
)
def test_bad_chunks_are_one_line(exported, tmp_path, args, message):
    loaded, _ = exported("wav2vec2-group")
    done = run("export", loaded.folder, "--output-dir", tmp_path / "out", "--streaming", *args)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and message in done.stderr
    assert not list(tmp_path.iterdir())


def test_export_by_the_command_line(tmp_path):
    build("wav2vec2-layer", tmp_path)
    args = ["--streaming", "--chunk-ms", "320", "--left-chunks", "1", "--float16"]
    run_ok("export", tmp_path / "model", "--output-dir", tmp_path / "out", *args)
    about = StreamingRuntime(tmp_path / "out").description
    assert (about.streaming["chunk_ms"], about.streaming["left_chunks"], about.precision) == (320, 1, "float16")
    assert "encoder_first.onnx" in (tmp_path / "out" / "README.md").read_text()

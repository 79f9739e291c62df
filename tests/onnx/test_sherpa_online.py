"""Exports for sherpa-onnx, form online: streams through its stock release, beside the streaming encoder in torch."""

import numpy as np
import pytest
import torch
from command_lines import run
from tiny_exports import follow_readme, ids_of, tones

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.onnx import from_sherpa
from tokenverse_pp.onnx.export import ExportOptions
from tokenverse_pp.onnx.graphs import torch_stream
from tokenverse_pp.onnx.runtime import open_graph

sherpa_onnx = pytest.importorskip("sherpa_onnx")
ALL = ("asr", "scd", "endp", "ner", "lid")
CHUNKS = ChunkOptions(chunk_ms=320, left_chunks=2, sinks=3)
SAMPLES = 5120
LOWEST = {"whisper-split": {"split_layer": 0}}
LATE = 80  # samples: frames of Kaldi's log-mel are so much later than Whisper's


@pytest.fixture(scope="module")
def models(sherpa_exported):
    """``models(case)`` -> the model in torch, and the folder of its export for all tasks and for speaker changes."""
    options = ExportOptions(form="online", chunks=CHUNKS, task_sets=(ALL, ("scd",)))
    return lambda case: sherpa_exported(case, options, **LOWEST.get(case, {}))


def recognizer(folder, names, **options):
    files = {part: str(folder / f"{part}-{'-'.join(names)}.onnx") for part in ("encoder", "joiner")}
    return sherpa_onnx.OnlineRecognizer.from_transducer(
        **files, decoder=str(folder / "decoder.onnx"), tokens=str(folder / "tokens.txt"), num_threads=1, **options
    )


def hear(sherpa, audio):
    stream = sherpa.create_stream()
    stream.accept_waveform(16000, audio)
    while sherpa.is_ready(stream):
        sherpa.decode_stream(stream)
    return sherpa.get_result_all(stream)


def sound(size, seed):
    """Silence, so that no mirror image is heard at the start, then tones, then silence that flushes the last chunk."""
    return np.concatenate([np.zeros(1600, np.float32), tones(size, seed), np.zeros(SAMPLES + 640, np.float32)])


def greedy(loaded, frames, names):
    """One symbol a frame of torch's encoder, of the tasks of a set -> pieces and frames."""
    tokenizer, model, context = loaded.tokenizer, loaded.model, [0] * loaded.model.predictor.context_size
    others = [s for task in loaded.tasks.tasks if task.name not in names for s in task.symbols]
    found, at = [], []
    for number, frame in enumerate(torch.from_numpy(frames)):
        with torch.inference_mode():
            state = model.joiner.predictor_proj(model.predictor.step(torch.tensor([context])))
            logits = model.joiner(frame[None], state)[0].numpy().copy()
        logits[[1, *(tokenizer.id_of(symbol) for symbol in others)]] = -np.inf
        token = int(logits.argmax())
        if token:
            context = [*context[1:], token]
            found.append(token)
            at.append(number)
    return tokenizer.pieces(found), at


@pytest.mark.parametrize("case", ["whisper-split", pytest.param("whisper-frozen", marks=pytest.mark.slow)])
@pytest.mark.parametrize("names", [ALL, pytest.param(("asr", "scd"), marks=pytest.mark.slow)])
def test_sherpa_streams_have_the_tokens_of_torch(models, case, names):
    loaded, folder = models(case)
    sherpa, written = recognizer(folder, names), 0
    for seed, size in enumerate((16000, 30000, 41234)):
        audio, stream, calls = sound(size, seed), sherpa.create_stream(), 0
        for piece in np.array_split(audio, [100, 7000, 7001, 9000]):
            stream.accept_waveform(16000, piece)
            while sherpa.is_ready(stream):
                sherpa.decode_stream(stream)
                calls += 1
        assert calls == (len(audio) // 160 - 1) // 32 or calls == (len(audio) // 160) // 32
        chunks = np.concatenate([audio[LATE:], np.zeros(SAMPLES, np.float32)])[: calls * SAMPLES].reshape(
            calls, SAMPLES
        )
        frames = np.concatenate(torch_stream(loaded, CHUNKS, list(chunks), names, registers=0))
        pieces, at = greedy(loaded, frames, names)
        result = sherpa.get_result_all(stream)
        assert [token.replace(" ", "▁") for token in result.tokens] == pieces
        assert result.timestamps == pytest.approx([0.04 * (frame + 1) for frame in at], abs=1e-4)
        heard = from_sherpa(result, folder, names, len(audio) / 16000)
        assert (heard.raw, heard.tasks) == (loaded.tokenizer.decode(ids_of(loaded, pieces)), names)
        assert heard.written[0].start == pytest.approx(0.04 * at[0]) and 0 < heard.written[0].confidence <= 1
        written += len(pieces)
    assert written > 10


def test_sherpa_decodes_streams_of_any_age_together(models):
    _, folder = models("whisper-split")
    sherpa = recognizer(folder, ALL)

    audio = [sound(20000, 1), sound(30000, 2)]
    expected = [hear(sherpa, item) for item in audio]
    old, young = sherpa.create_stream(), sherpa.create_stream()
    old.accept_waveform(16000, audio[0][: 2 * SAMPLES])
    while sherpa.is_ready(old):
        sherpa.decode_stream(old)
    old.accept_waveform(16000, audio[0][2 * SAMPLES :])
    young.accept_waveform(16000, audio[1])
    while any(ready := [stream for stream in (old, young) if sherpa.is_ready(stream)]):
        sherpa.decode_streams(ready)
    for stream, other in zip((old, young), expected):
        result = sherpa.get_result_all(stream)
        assert result.tokens and (result.tokens, result.timestamps) == (other.tokens, other.timestamps)


def test_sherpa_searches_with_a_beam(models):
    sherpa = recognizer(models("whisper-split")[1], ("asr", "scd"), decoding_method="modified_beam_search")
    tokens = hear(sherpa, sound(20000, 3)).tokens
    assert tokens and {token for token in tokens if token.startswith("[")} <= {"[SCD]"}


def test_sherpa_online_readme_can_be_followed(models, tmp_path, monkeypatch, capsys):
    loaded, plain = models("whisper-split")
    done = run(
        *("export", loaded.folder, "--output-dir", tmp_path / "out", "--for", "sherpa-onnx", "--form", "online"),
        *("--chunk-ms", "320", "--left-chunks", "1", "--tasks", "asr,endp", "--float16", "--token-bias", "[ENDP]=1.5"),
    )
    assert done.exit_code == 0 and "encoder: differs from torch by" in done.stdout, done.stderr
    text = follow_readme(tmp_path / "out", tmp_path, monkeypatch)
    assert '"tasks": ["asr", "endp"]' in capsys.readouterr().out and "chunks of 320 ms" in text
    graphs = (
        open_graph(path, 1) for path in (tmp_path / "out" / "joiner.onnx", plain / f"joiner-{'-'.join(ALL)}.onnx")
    )
    inputs = {"encoder_out": np.zeros((1, 21), np.float32), "decoder_out": np.ones((1, 20), np.float32)}
    biased, logits = (graph.run(None, inputs)[0][0] for graph in graphs)
    raised = loaded.tokenizer.id_of("[ENDP]")
    assert biased[raised] == pytest.approx(logits[raised] + 1.5, abs=1e-3) and biased[0] == pytest.approx(logits[0])


def test_sherpa_online_needs_chunks():
    for options in ({"form": "online"}, {"form": "prompt"}, {"form": "ctc", "chunks": CHUNKS}):
        with pytest.raises(UserError, match="chunks: for sherpa-onnx, needed with form online and prompt"):
            ExportOptions(**options)
    with pytest.raises(UserError, match="--token-bias: not with form ctc"):
        ExportOptions(form="ctc", token_bias=(("[SCD]", 1.0),))

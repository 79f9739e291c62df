"""Exports for sherpa-onnx, form ctc: what its stock release writes, beside the CTC head in torch."""

import itertools

import numpy as np
import onnx
import pytest
import torch
from command_lines import run
from tiny_exports import build, follow_readme, noise, tones

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.onnx import from_sherpa
from tokenverse_pp.onnx.export import ExportOptions, export_onnx
from tokenverse_pp.onnx.sherpa_export import LEVEL, tokens_text
from tokenverse_pp.runtime import Runtime

sherpa_onnx = pytest.importorskip("sherpa_onnx")
ALL = ("asr", "scd", "endp", "ner", "lid")
SETS = (ALL, ("asr",), ("asr", "scd", "lid"))
# Frames of 40 and 20 ms, and of 10 ms stacked; with vectors and without; audio normalised by the encoder or not.
MODELS = {
    "whisper-split": {},
    "whisper-finetune": {},
    "wav2vec2-layer": {},
    "wav2vec2-group": {"stack": 2, "normalise_audio": False},
    "no-vectors": {"stack": 2},
}


@pytest.fixture(scope="module")
def models(sherpa_exported):
    """``models(name)`` -> the model in torch, and the folder of its export with `SETS`."""
    options = ExportOptions(form="ctc", task_sets=SETS)
    return lambda name: sherpa_exported(name, options, ctc_scale=0.3, **MODELS[name])


def hear(folder, audio, file="model.onnx"):
    recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(
        model=str(folder / file), tokens=str(folder / "tokens.txt")
    )
    streams = [recognizer.create_stream() for _ in audio]
    for stream, samples in zip(streams, audio):
        stream.accept_waveform(16000, samples)
    recognizer.decode_streams(streams)
    return [stream.result for stream in streams]


def best_path(loaded, samples, names):
    """Pieces and frames of the best path of the CTC head in torch, given the samples that sherpa-onnx would give it."""
    strips = loaded.model.feature_vectors is None and loaded.model.encoder_vectors is None
    decoded = ALL if strips else names
    others = [s for task in loaded.tasks.tasks if task.name not in names for s in task.symbols]
    others = [loaded.tokenizer.id_of(symbol) for symbol in others]
    x = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-5)
    if not getattr(loaded.model.encoder.backbone, "normalise", False):
        x = LEVEL * x
    with torch.inference_mode():
        active = torch.tensor([loaded.tasks.mask(decoded)], dtype=torch.float32)
        out, _ = loaded.model.encode(torch.from_numpy(x.astype(np.float32))[None], torch.tensor([len(x)]), active)
        logits = loaded.model.ctc(out)[0].numpy()
    logits[:, [1, *([] if strips else others)]] = -np.inf
    frames, tokens = [], []
    for token, group in itertools.groupby(enumerate(logits.argmax(1).tolist()), key=lambda pair: pair[1]):
        if token != 0 and token not in others:
            frames.append(next(group)[0])
            tokens.append(token)
    return loaded.tokenizer.pieces(tokens), frames


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("names", SETS)
def test_sherpa_writes_the_tokens_of_torch(models, name, names):
    loaded, folder = models(name)
    sizes = (16000, 8000, 30001, 4321, 400)
    audio = [*(tones(size, size + len(names)) for size in sizes), 0.01 * tones(20000) + np.float32(0.3), *noise(9000)]
    written = 0
    for samples, result in zip(audio, hear(folder, audio, f"model-{'-'.join(names)}.onnx")):
        pieces, frames = best_path(loaded, samples, names)
        assert [token.replace(" ", "▁") for token in result.tokens] == pieces
        shift = loaded.model.encoder.output_frame_shift
        assert result.timestamps == pytest.approx([frame * shift for frame in frames], abs=1e-4)
        heard = from_sherpa(result, folder, names, len(samples) / 16000, "noise")
        tokens = (pieces, frames, [0.0] * len(pieces), shift, None, 0.0, len(samples) / 16000, "noise")
        expected = loaded.tasks.subset(names).reader.read_tokens(*tokens)
        for part in ("tasks", "text", "raw", "turns", "endpoints", "language", "duration"):
            assert getattr(heard, part) == getattr(expected, part), part
        assert [(e.text, e.start, e.end) for e in heard.entities] == [
            (e.text, e.start, e.end) for e in expected.entities
        ]
        written += len(pieces)
    assert written > 6


def test_sherpa_sets_share_their_weights(models):
    _, folder = models("whisper-split")
    graphs = [folder / f"model-{'-'.join(names)}.onnx" for names in SETS]
    assert all(any(t.external_data for t in onnx.load(g, load_external_data=False).graph.initializer) for g in graphs)
    large = max(len(t.raw_data) for g in graphs for t in onnx.load(g, load_external_data=False).graph.initializer)
    assert large < 256
    assert {p.key: p.value for p in onnx.load(graphs[1], load_external_data=False).metadata_props}["tasks"] == '["asr"]'


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_sherpa_runs_smaller_weights(models, tmp_path, precision):
    loaded, folder = models("whisper-split")
    done = run(
        *("export", loaded.folder, "--output-dir", tmp_path / "out", "--for", "sherpa-onnx", f"--{precision}"),
        *("--tasks", "asr,scd"),
    )
    assert done.exit_code == 0 and "logits: differs from torch by" in done.stdout, done.stderr
    audio = noise(16000, 9000)
    found = [result.tokens for result in hear(tmp_path / "out", audio)]
    exact = [result.tokens for result in hear(folder, audio, "model-asr-scd-lid.onnx")]
    assert (
        all(found) and exact and from_sherpa(hear(tmp_path / "out", audio)[0], tmp_path / "out").tasks == ("asr", "scd")
    )


def test_sherpa_readme_can_be_followed(models, tmp_path, monkeypatch, capsys):
    _, folder = models("wav2vec2-layer")
    text = follow_readme(folder, tmp_path, monkeypatch)
    assert '"tasks": ["asr", "scd", "endp", "ner", "lid"]' in capsys.readouterr().out
    assert "| model-asr.onnx | asr |" in text and "share `encoder.weights`" in text


def test_sherpa_refuses_models_that_it_cannot_carry(models, exported, tmp_path):
    def export(loaded, *sets):
        with pytest.raises(UserError) as caught:
            export_onnx(loaded, tmp_path / "out", ExportOptions(form="ctc", task_sets=sets))
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    loaded, folder = models("wav2vec2-layer")
    assert "no CTC head: train it with model.loss.ctc_scale above 0" in export(exported("whisper-frozen")[0])
    short = export(build("wav2vec2-group", tmp_path / "short", ctc_scale=0.3))
    assert "a frame of the encoder lasts 10 ms" in short and "frames of 20 ms" in short
    assert "WavLM" in export(build("wavlm", tmp_path / "wavlm", ctc_scale=0.3, stack=2))
    assert "'emo': this model knows" in export(loaded, ("emo",))
    assert "never active in training" in export(build("combination", tmp_path / "c", ctc_scale=0.3, stack=2), ("scd",))
    with pytest.raises(UserError, match=r"exported for sherpa-onnx, not for tokenverse_pp.runtime"):
        Runtime(folder)
    with pytest.raises(UserError, match=r"exported for tokenverse_pp.runtime, not for sherpa-onnx"):
        from_sherpa({"tokens": [], "timestamps": []}, exported("whisper-frozen")[1])


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        (["<blk>", "<unk>", "▁a", "SIL"], "'SIL'"),
        (["<blk>", "<unk>", "a b"], "'a b'"),
        (["<blk>", "<unk>", "▁ơ", "▁"], "byte-level BPE"),
    ],
)
def test_sherpa_refuses_vocabularies_that_it_would_misread(pieces, reason):
    with pytest.raises(UserError, match=reason):
        tokens_text(pieces)
    assert tokens_text(["<blk>", "▁é", "[SCD]"]) == "<blk> 0\n▁é 1\n[SCD] 2\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--form", "ctc"], "--form ctc: only with --for sherpa-onnx"),
        (["--tasks", "asr"], "--tasks: only for sherpa-onnx"),
        (["--for", "sherpa-onnx", "--streaming"], "--streaming: not with --for sherpa-onnx"),
    ],
)
def test_sherpa_options_that_do_not_go_together(models, tmp_path, options, message):
    done = run("export", models("wav2vec2-layer")[0].folder, "--output-dir", tmp_path / "out", *options)
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()

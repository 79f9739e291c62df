"""Exports for sherpa-onnx, form prompt: streams that choose their tasks, through its stock release."""

import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from command_lines import run
from tiny_exports import follow_readme, ids_of, noise, tones

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.encoders.whisper import LogMel
from tokenverse_pp.models.predictor import LstmPredictor
from tokenverse_pp.onnx import from_sherpa
from tokenverse_pp.onnx.export import ExportOptions, export_onnx
from tokenverse_pp.onnx.sherpa_prompt import mel_from_fbank, prompt_tokens

sherpa_onnx = pytest.importorskip("sherpa_onnx")
ALL = ("asr", "scd", "endp", "ner", "lid")
CHUNKS = ChunkOptions(chunk_ms=320, left_chunks=2, sinks=3)
LOWEST = {"whisper-split": {"split_layer": 0}}
FRAMES = 32  # of 10 ms a chunk


@pytest.fixture(scope="module")
def models(sherpa_exported):
    """``models(case)`` -> the model in torch, and the folder of its export with all sets of tasks."""
    options = ExportOptions(form="prompt", chunks=CHUNKS)
    return lambda case: sherpa_exported(case, options, **LOWEST.get(case, {}))


def recognizer(folder, **options):
    files = {part: str(folder / f"{part}.onnx") for part in ("encoder", "decoder", "joiner", "tokens")}
    files["tokens"] = str(folder / "tokens.txt")
    return sherpa_onnx.OnlineRecognizer.from_transducer(**files, num_threads=1, **options)


def opened(sherpa, audio, names=None):
    stream = sherpa.create_stream()
    if names:
        stream.set_option("language", names)
    stream.accept_waveform(16000, audio)
    return stream


def decode(sherpa, streams):
    while ready := [stream for stream in streams if sherpa.is_ready(stream)]:
        sherpa.decode_streams(ready)
    return [sherpa.get_result_all(stream) for stream in streams]


def features_of(sherpa, audio, calls):
    """Kaldi's log-mels as sherpa-onnx computes them (frames, M)."""
    frames = opened(sherpa, audio).get_frames(0, calls * FRAMES)
    return np.array(frames, np.float32).reshape(calls * FRAMES, -1)


def greedy(loaded, folder, features, names):
    """The encoder's graph and torch's predictor and joiner, one symbol a frame -> pieces, frames, log-probabilities."""
    session, model, tokenizer = onnxruntime.InferenceSession(folder / "encoder.onnx"), loaded.model, loaded.tokenizer
    properties = session.get_modelmeta().custom_metadata_map
    prompt = json.loads(properties["prompt_dictionary"])[",".join(names)]
    inputs = {item.name: item for item in session.get_inputs()}
    shapes = {name: [1 if isinstance(size, str) else size for size in item.shape] for name, item in inputs.items()}
    states = {name: np.zeros(shapes[name], np.float32) for name in ("cache_last_channel", "cache_last_time")}
    states["cache_last_channel_len"] = np.zeros(1, np.int64)
    others = [s for task in loaded.tasks.tasks if task.name not in names for s in task.symbols]
    suppressed = [1, *(tokenizer.id_of(symbol) for symbol in others)]
    context, found, at, log_probs = [0] * model.predictor.context_size, [], [], []
    rows = []
    for x in features.reshape(-1, FRAMES, features.shape[1]):
        given = {"audio_signal": x.T[None], "length": np.array([FRAMES]), **states, "prompt_index": np.array([prompt])}
        out, _, *following = session.run(None, given)
        states = dict(zip(states, following))
        rows += list(out[0, :-2, ::2].T)
    for number, frame in enumerate(rows[1:]):
        with torch.inference_mode():
            state = model.joiner.predictor_proj(model.predictor.step(torch.tensor([context])))
            logits = model.joiner(torch.from_numpy(frame)[None], state)[0]
            logits[suppressed] = -np.inf
        token = int(logits.argmax())
        if token:
            context = [*context[1:], token]
            found.append(token)
            at.append(number)
            log_probs.append(float(logits.log_softmax(0)[token]))
    return tokenizer.pieces(found), at, log_probs


@pytest.mark.slow
@pytest.mark.parametrize("case", ["whisper-split", "whisper-frozen"])
def test_sherpa_streams_of_different_tasks_are_decoded_together(models, case):
    loaded, folder = models(case)
    sherpa, audio = recognizer(folder), tones(44000, 2)
    sets = [("asr",), ("asr", "scd"), ("asr", "lid"), ALL, ALL]
    results = decode(sherpa, [opened(sherpa, audio, name) for name in ("asr", "scd", "asr,lid", ",".join(ALL), None)])
    features = features_of(sherpa, audio, len(audio) // 160 // FRAMES)
    told = set()
    for names, result in zip(sets, results):
        pieces, frames, log_probs = greedy(loaded, folder, features, names)
        assert pieces and [token.replace(" ", "▁") for token in result.tokens] == pieces
        assert result.timestamps == pytest.approx([0.04 * (frame + 1) for frame in frames], abs=1e-4)
        assert result.ys_probs == pytest.approx(log_probs, abs=1e-3)
        heard = from_sherpa(result, folder, names, len(audio) / 16000)
        assert (heard.raw, heard.tasks) == (loaded.tokenizer.decode(ids_of(loaded, pieces)), names)
        assert heard.written[0].start == pytest.approx(0.04 * frames[0])
        told.add(tuple(pieces))
    assert len(told) == 4  # the vectors are in the graph, and each stream has its own


def test_sherpa_streams_of_different_tasks_do_not_touch_each_other(models):
    _, folder = models("whisper-split")
    sherpa = recognizer(folder)
    asked = [(tones(20000, 1), "asr"), (tones(33000, 2), "asr,scd,ner"), (tones(9000, 3), "ASR,SCD")]
    alone = [decode(sherpa, [opened(sherpa, *item)])[0] for item in asked]
    for result, expected in zip(decode(sherpa, [opened(sherpa, *item) for item in asked]), alone):
        assert (result.tokens, result.timestamps) == (expected.tokens, expected.timestamps)
    unknown = decode(sherpa, [opened(sherpa, asked[0][0], "scd,asr")])[0]
    assert unknown.tokens == decode(sherpa, [opened(sherpa, asked[0][0])])[0].tokens != alone[0].tokens


def test_sherpa_streams_can_change_their_tasks(models):
    _, folder = models("whisper-split")
    sherpa, audio = recognizer(folder), tones(44000, 2)
    stream = opened(sherpa, audio[:12000], "asr")
    decode(sherpa, [stream])
    stream.set_option("language", "asr,scd")
    stream.accept_waveform(16000, audio[12000:])
    (changed,) = decode(sherpa, [stream])
    asr, scd = decode(sherpa, [opened(sherpa, audio, "asr"), opened(sherpa, audio, "asr,scd")])
    before = sum(time < 0.6 for time in changed.timestamps)
    assert before and changed.tokens[:before] == asr.tokens[:before]
    assert changed.tokens != asr.tokens and changed.tokens != scd.tokens


def test_sherpa_streams_are_reset_at_endpoints(models):
    _, folder = models("whisper-split")
    sherpa, audio = recognizer(folder), tones(30000, 4)
    stream = opened(sherpa, audio[:10560], "asr")
    decode(sherpa, [stream])
    sherpa.reset(stream)
    stream.accept_waveform(16000, audio[10560:])
    (again,) = decode(sherpa, [stream])
    assert again.tokens and again.start_time > 0
    assert from_sherpa(again, folder, ["asr"]).written[0].start >= again.start_time - 0.04


@pytest.mark.parametrize(("bins", "most"), [(80, 0.1), (128, 0.4)])
def test_sherpa_fbank_becomes_the_log_mel_of_whisper(bins, most):
    """Kaldi's features computed here, of a noise: above 200 Hz the mels are on average Whisper's, 5 ms later.

    The lowest of 128 filters hold one or two frequencies of an FFT each.
    """
    log_mel, matrix = LogMel(bins), mel_from_fbank(bins)
    x = np.cumsum(noise(48000)[0].astype(np.float64)) * 0.02 + noise(48000, seed=1)[0]
    starts = 160 * np.arange(1, 290)[:, None] - 120 + np.arange(400)
    frames, before = x[starts], x[np.maximum(starts - 1, starts[:, :1])]
    spectrum = np.fft.rfft((frames - 0.97 * before) * log_mel.window.numpy(), 512)
    count = matrix.shape[1]
    mels = np.linspace(0, 45.2455, count + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    places = 31.25 * np.arange(257)
    triangles = np.maximum(0, np.minimum((places - low) / (centre - low), (high - places) / (high - centre)))
    assert (triangles.sum(1) > 0).all()  # sherpa-onnx aborts at a filter without any frequency
    found = np.log10(np.abs(spectrum) ** 2 @ (triangles * 2 / (high - low)).T @ matrix.T)
    late = torch.from_numpy(x[80 + 160 - 200 :].astype(np.float32))[None]
    expected = log_mel.log_power(late)[0].T.numpy()[: len(found)]
    low_bins = int((edges[1:-1] < 200).sum() * bins / count) + 1
    assert np.abs((found - expected).mean(0))[low_bins:].max() < most
    assert np.abs((found - expected).mean()) < 0.05


def test_sherpa_computes_the_features_that_are_asked_for(models):
    _, folder = models("whisper-split")
    sherpa, audio = recognizer(folder), tones(20000, 5)
    features = features_of(sherpa, audio, 3)
    assert features.shape == (96, mel_from_fbank(80).shape[1])
    mel = np.log10(np.exp(features.astype(np.float64)) @ mel_from_fbank(80).T)
    expected = LogMel(80).log_power(torch.from_numpy(audio[40:])[None])[0].T.numpy()[:94]  # frames from 1 on
    loud = expected > expected.max() - 4
    assert loud.any(0).sum() > 60 and np.abs(mel[1:95] - expected)[loud].mean() < 0.15


def test_sherpa_prompt_keeps_one_symbol_a_frame_and_hides_its_own(models):
    _, folder = models("whisper-split")
    tokens = (folder / "tokens.txt").read_text().split("\n")[:-1]
    assert [line.split()[0] for line in tokens[-2:]] == ["<nop>", "<blk>"]
    sherpa = recognizer(folder)
    for result in decode(sherpa, [opened(sherpa, tones(40000, seed), "asr") for seed in range(3)]):
        assert "<nop>" not in result.tokens and "<nop>" not in result.text
        assert len({round(time / 0.04) for time in result.timestamps}) == len(result.tokens) == len(result.ys_probs) > 9


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_sherpa_prompt_readme_can_be_followed(models, tmp_path, monkeypatch, capsys, precision):
    loaded, _ = models("whisper-split")
    done = run(
        *("export", loaded.folder, "--output-dir", tmp_path / "out", "--for", "sherpa-onnx", "--form", "prompt"),
        *("--chunk-ms", "320", "--left-chunks", "1", "--tasks", "asr,scd,endp", "--tasks", "endp", f"--{precision}"),
    )
    assert done.exit_code == 0 and "encoder: differs from torch by" in done.stdout, done.stderr
    text = follow_readme(tmp_path / "out", tmp_path, monkeypatch)
    assert '"tasks": ["asr", "endp"]' in capsys.readouterr().out
    assert "--language=asr,endp --left-padding=0 --right-padding=0.36" in text
    assert 'setOption("language", "asr,endp")' in text and "| asr,scd,endp | asr, scd, endp |" in text
    with pytest.raises(UserError, match="say which was decoded: tasks=asr,scd,endp or asr,endp"):
        from_sherpa({"tokens": [], "timestamps": []}, tmp_path / "out")


def test_sherpa_prompt_has_the_sets_that_were_trained(models):
    _, folder = models("whisper-split")
    graph = onnx.load(folder / "encoder.onnx")
    prompts = json.loads({item.key: item.value for item in graph.metadata_props}["prompt_dictionary"])
    described = json.loads((folder / "export.json").read_text())["sherpa"]["prompts"]
    assert len(described) == 16 and prompts["auto"] == prompts[",".join(ALL)] == 0
    assert {*prompts.values()} == {*range(16)} and prompts["scd"] == prompts["asr,scd"] and prompts["asr"] == 15


@pytest.mark.parametrize("form", ["online", "prompt"])
@pytest.mark.parametrize(
    ("case", "chunks", "sets", "reason"),
    [
        ("wav2vec2-layer", CHUNKS, (), "sherpa-onnx computes the log-mel of Whisper, and this encoder takes audio"),
        ("whisper-finetune", CHUNKS, (), "a frame of the encoder lasts 20 ms, and in sherpa-onnx 40 ms"),
        ("whisper-split", ChunkOptions(chunk_ms=330), (), "--chunk-ms=330: expected a multiple of 40 ms"),
        ("whisper-split", ChunkOptions(left_chunks=-1), (), "--left-chunks=-1: a graph's caches cannot grow"),
        ("whisper-split", ChunkOptions(chunk_ms=0), (), "--chunk-ms=0: streaming needs chunks"),
        ("whisper-split", CHUNKS, (("emo",),), "'emo': this model knows"),
    ],
)
def test_sherpa_refuses_streams_that_it_cannot_carry(exported, tmp_path, form, case, chunks, sets, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        export_onnx(exported(case)[0], tmp_path / "out", ExportOptions(form=form, chunks=chunks, task_sets=sets))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["online", "prompt"])
def test_sherpa_refuses_other_predictors(exported, tmp_path, monkeypatch, form):
    loaded, options = exported("whisper-frozen")[0], ExportOptions(form=form, chunks=CHUNKS)
    monkeypatch.setattr(loaded.model.predictor, "symbols_per_frame", 3)
    with pytest.raises(UserError, match=f"form {form}: it writes several symbols a frame"):
        export_onnx(loaded, tmp_path / "out", options)
    monkeypatch.setitem(loaded.model._modules, "predictor", LstmPredictor(loaded.tokenizer.vocab_size, 4, 1))
    with pytest.raises(UserError, match=f"form {form}: its predictor remembers more than the last few tokens"):
        export_onnx(loaded, tmp_path / "out", options)
    assert not list(tmp_path.iterdir())


def test_sherpa_prompt_refuses_what_it_would_not_write():
    for piece in ("<en>", "<eng>", "<en-US>"):
        with pytest.raises(UserError, match="form prompt: it never writes the piece '<en"):
            prompt_tokens(["<blk>", "<unk>", "▁a", piece])
    assert prompt_tokens(["<blk>", "<unk>", "<EN>", "[EN]"]) == ["<unk>", "<EN>", "[EN]", "<nop>", "<blk>"]
    with pytest.raises(UserError, match="200 mel bins, sherpa-onnx computes 191 at most"):
        mel_from_fbank(200)

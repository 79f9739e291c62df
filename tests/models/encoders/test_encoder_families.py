"""The encoder families of today: equal to transformers, padded == single, chunks, types, adapters, loading."""

import importlib
import json
from pathlib import Path

import pytest
import torch
import transformers
from encoder_families import (
    FAMILIES,
    FRAMES_OF_20_MS,
    assert_padding_changes_nothing,
    assert_same_gradients,
    extractor_of,
    gradients,
    move_and_merge,
    save_family,
)
from toy_runs import call_ok, toy_options
from transformers import AutoModel

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.encoders import EncoderConfig, build_encoder

CONTEXT = dict(context_dim=16, context_heads=2, context_ffn=24, context_kernel=5, context_layers=1)
KINDS = {
    "finetune": dict(),
    "frozen": dict(kind="frozen", layers=[1, -1], **CONTEXT),
    "split": dict(kind="split", split_layer=1, layers=[1, -1], stack=2, **CONTEXT),
}
FAST = ("parakeet-tdt",)  # the others are slow tests
each_family = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in FAMILIES]
)
LENS = [9600, 7037, 4000]  # samples
SECONDS = [38400, 28150, 16000]  # of Qwen3-ASR, whose windows are seconds


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folders = {}

    def folder(family):
        if family not in folders:
            folders[family] = save_family(family, tmp_path_factory.mktemp(family))
        return folders[family]

    return folder


@pytest.fixture
def speech(family):
    """Audio (3, S) with rubbish in the padding, and its lengths."""
    lens = SECONDS if family == "qwen3-asr" else LENS
    return 0.1 * torch.randn(3, lens[0], generator=torch.Generator().manual_seed(0)), torch.tensor(lens)


def build(folder, kind="finetune", **changes):
    return build_encoder(EncoderConfig(folder, **{**KINDS[kind], **changes}))


PARTS = {
    "parakeet": "encoder",
    "nemotron_asr_streaming": "encoder",
    "moonshine_streaming": "model.encoder",
    "qwen3_asr": "model.audio_tower",
}


def of_transformers(family, folder, audio):
    """What transformers gives for one utterance, audio (S,) -> (1, T, C)."""
    module, _, model_class, _ = FAMILIES[family]
    model = getattr(importlib.import_module(f"transformers.models.{module}"), model_class)
    model = model.from_pretrained(folder).eval().get_submodule(PARTS.get(module, ""))
    if module == "qwen3_asr":
        extractor = transformers.Qwen3ASRFeatureExtractor(feature_size=16, min_length=0)
        options = dict(sampling_rate=16000, padding="longest", return_attention_mask=True, return_tensors="pt")
        inputs = extractor(audio.numpy(), **options)
        mask = next(value for key, value in inputs.items() if key.endswith("mask"))
        return model(inputs["input_features"], mask).last_hidden_state.unsqueeze(0)
    if module == "moonshine_streaming":
        return model(audio.unsqueeze(0), torch.ones(1, len(audio), dtype=torch.long)).last_hidden_state
    extractor = extractor_of(family)
    if extractor is None:
        return model(audio.unsqueeze(0)).last_hidden_state
    inputs = extractor(audio.numpy(), sampling_rate=16000, return_tensors="pt")
    count = int(inputs["attention_mask"].sum())  # some give one frame more, of padding
    return model(inputs["input_features"][:, :count], inputs["attention_mask"][:, :count]).last_hidden_state


@pytest.mark.parametrize("family", FAMILIES)
def test_one_utterance_equals_transformers(family, saved, speech):
    samples = {"qwen3-asr": 35200, "moonshine": 8000}.get(family, LENS[1])
    audio = speech[0][0, :samples]
    with torch.no_grad():
        expected = of_transformers(family, saved(family), audio)
        found, lens = build(saved(family)).eval()(audio.unsqueeze(0), torch.tensor([samples]))
    assert lens.tolist() == [expected.shape[1]] and expected.shape[1] > 2
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


@each_family
@pytest.mark.parametrize("kind, stack", [("finetune", 1), ("frozen", 2), ("split", 2)])
def test_padded_batches_equal_single_utterances(family, kind, stack, saved, speech):
    """In evaluation, and in training where no dropout acts (batch norms keep their statistics)."""
    encoder = build(saved(family), kind, stack=stack, context_dropout=0.0).eval()
    assert_padding_changes_nothing(encoder, *speech, atol=2e-4, rtol=1e-3)


CHUNK_MS = {"parakeet": 160, "nemotron_asr_streaming": 160, "qwen3_asr": 1000}


@each_family
@pytest.mark.parametrize("strict, left", [(True, -1), (True, 1), (False, 1)])
def test_chunks_see_nothing_after_their_end_and_batches_equal_single_utterances(family, strict, left, saved, speech):
    encoder = build(saved(family)).eval()
    chunks = ChunkOptions(CHUNK_MS.get(FAMILIES[family][0], 100), left, 0, strict)
    audio, lens = speech
    grid = encoder.grid(chunks)

    def run(audio, lens):
        features, frames = encoder.extract(audio, lens, chunks)
        return encoder.contextualise(features, frames, chunks)

    with torch.no_grad():
        output = run(audio, lens)[0]
        for row in range(3):
            one, one_lens = run(audio[row : row + 1, : lens[row]], lens[row : row + 1])
            torch.testing.assert_close(output[row, : one_lens[0]], one[0], atol=5e-4, rtol=2e-3)
        known = 2 * grid.size - grid.delay  # frames of the first two chunks
        cut = 2 * chunks.chunk_samples + round(encoder.lookahead_ms(chunks) * 16)
        changed = audio.clone()
        changed[:, cut:] = 0.5 * torch.randn(3, max(0, audio.shape[1] - cut))
        again = run(changed, lens)[0]
    assert not strict or encoder.lookahead_ms(chunks) == 0
    torch.testing.assert_close(again[0, :known], output[0, :known], atol=5e-4, rtol=2e-3)
    assert cut >= audio.shape[1] or not torch.equal(again[0], output[0])


@pytest.mark.skipif(torch.__version__ < "2", reason="torch 1.13 has no LayerNorm for autocast on CPU")
@pytest.mark.slow
@each_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_near(family, dtype, saved, speech):
    encoder = build(saved(family), "frozen").eval()
    with torch.no_grad():
        expected = encoder(*speech)[0]
        with torch.autocast("cpu", dtype):
            features, lens = encoder.extract(*speech)
            output = encoder.contextualise(features, lens)[0]
    assert features.dtype == torch.float32 and output.isfinite().all()
    assert (output.float() - expected).norm() < (0.15 if dtype == torch.bfloat16 else 0.05) * expected.norm()


@pytest.mark.slow
@each_family
def test_gradient_checkpointing_changes_nothing_and_no_parameter_is_unused(family, saved, speech):
    """In training mode, with the checkpoint's dropouts; DDP would stop at an unused parameter."""
    grads = []
    for count in (0, 2, 9):
        encoder = build(saved(family), checkpoint_layers=count, freeze_feature_encoder=False).train()
        torch.manual_seed(0)
        encoder(*speech)[0].square().sum().backward()
        grads.append(gradients(encoder))
    for found in grads[1:]:
        assert_same_gradients(found, grads[0], atol=1e-3)


@each_family
def test_freezing_and_what_is_saved(family, saved, speech):
    plain = build(saved(family))
    assert not all(p.requires_grad for p in plain.parameters()) or family.startswith("w2v-bert")
    fixed = build(saved(family), freeze_layers=2)
    trained = {id(p) for p in fixed.parameters() if p.requires_grad}
    trains = [any(id(p) in trained for p in layer.parameters()) for layer in fixed.backbone.layers]
    assert trains == [False, False, True]
    frozen = build(saved(family), "frozen").train()
    assert not any(module.training for module in frozen.backbone.modules())
    first, second = frozen.extract(*speech)[0], frozen.extract(*speech)[0]
    assert torch.equal(first, second) and not first.requires_grad
    split = build(saved(family), "split").train()
    split(*speech)[0].square().sum().backward()
    moved = {name for name, parameter in split.named_parameters() if parameter.grad is not None}
    kept = {key for key in split.state_dict() if not key.startswith(split.frozen_prefixes())}
    assert moved == kept


@pytest.mark.slow
@each_family
def test_adapters_change_nothing_at_first_are_all_that_learns_and_can_be_merged(family, saved, speech):
    pytest.importorskip("peft")
    plain = build(saved(family)).eval()
    adapted = build(saved(family), lora_rank=2, lora_feed_forward=True).eval()
    torch.testing.assert_close(adapted(*speech)[0], plain(*speech)[0], atol=1e-5, rtol=1e-5)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    matrices = 8 if hasattr(adapted.backbone.layers[0], "conv") or hasattr(adapted.backbone.layers[0], "ffn1") else 6
    assert len(trained) == 3 * matrices * 2 and all("lora_" in name for name in trained)
    move_and_merge(adapted, trained.values(), speech, tolerance=1e-3)
    assert set(adapted.state_dict()) == set(plain.state_dict())


@pytest.mark.slow
@each_family
def test_random_weights_need_sizes_only(family, saved, tmp_path):
    (tmp_path / "config.json").write_text(Path(saved(family), "config.json").read_text())
    encoder = build_encoder(EncoderConfig(str(tmp_path), random_init=True))
    assert encoder.state_dict().keys() == build(saved(family)).state_dict().keys()


@pytest.mark.parametrize("family", ["parakeet-tdt", "nemotron"])
def test_encoders_alone_load_as_well(family, saved, tmp_path, speech):
    AutoModel.from_pretrained(saved(family)).encoder.save_pretrained(tmp_path)
    extractor_of(family).save_pretrained(tmp_path)
    torch.testing.assert_close(build(str(tmp_path)).eval()(*speech)[0], build(saved(family)).eval()(*speech)[0])


def test_missing_weights_of_a_part_are_refused(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = Path(saved("parakeet-rnnt"))
    weights = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    name = "encoder.layers.1.self_attn.q_proj.weight"
    save_file(
        {k: v for k, v in weights.items() if k != name}, tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.q_proj\.weight"):
        build(str(tmp_path))


def test_an_older_transformers_says_which_version_is_needed(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "parakeet_tdt"}))

    def unknown(*_, **__):
        raise ValueError(
            "The checkpoint you are trying to load has model type `parakeet_tdt` but Transformers does not recognize it"
        )

    monkeypatch.setattr("tokenverse_pp.models.encoders.kinds.AutoConfig.from_pretrained", unknown)
    with pytest.raises(
        UserError, match=rf"parakeet_tdt needs transformers 5\.\d+ or later, here is {transformers.__version__}"
    ):
        build(str(tmp_path))


@pytest.mark.slow
@each_family
def test_trains_decodes_and_exports(family, tmp_path, tiny_corpus, train_script, decode_script):
    """20 steps on toy audio lower the loss; decode.py writes hypotheses; the export agrees with torch."""
    frames = FRAMES_OF_20_MS if "conv_stride" in FAMILIES[family][-1] else {}
    folder = save_family(family, tmp_path / "encoder", **frames)
    changes = dict(model__encoder__name=folder, model__encoder__random_init="false", training__max_steps=20)
    if family.startswith("parakeet"):
        changes["model__encoder__gradient_checkpointing"] = "true"
    options = toy_options(tiny_corpus, tmp_path / "exp", optim__lr=3e-3, optim__encoder_lr=3e-3, **changes)
    call_ok(train_script.main, *options)
    records = [json.loads(line) for line in (tmp_path / "exp" / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert len(losses) == 20 and sum(losses[-5:]) < sum(losses[:5])
    where = ["--cuts", f"{tiny_corpus}/cuts_test.jsonl.gz", "--output-dir", tmp_path / "dec"]
    call_ok(decode_script.main, "--model", tmp_path / "exp", *where, standalone_mode=True)
    assert len((tmp_path / "dec" / "hyps.jsonl").read_text().splitlines()) == 4
    if torch.__version__ >= "2.5":
        pytest.importorskip("onnxruntime")
        from tokenverse_pp.models.bundle import load_model
        from tokenverse_pp.onnx.export import export_onnx

        assert export_onnx(load_model(tmp_path / "exp"), tmp_path / "onnx").check["encoder"]["max"] < 2e-3


def test_too_short_utterances_are_refused(saved):
    for family in ("parakeet-ctc", "nemotron", "w2v-bert", "moonshine", "qwen3-asr"):
        with pytest.raises(UserError, match=r"0 samples|60 samples"):
            build(saved(family)).extract(torch.zeros(2, 4000), torch.tensor([4000, 0 if family == "qwen3-asr" else 60]))


def frames_seen(encoder, size, registers, chunks=None):
    """The audio frames and registers that each frame of the backbone's output depends on, (T, T) bool."""
    size += registers
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(1, size, encoder.feature_dim, generator=generator).repeat(size + 1, 1, 1)
    places = torch.arange(size)
    features[places, places] += torch.randn(size, encoder.feature_dim, generator=generator)  # one in each row
    lens = torch.full((size + 1,), size)
    encoder.add_context = lambda states, lens, grid: (states, lens)
    with torch.no_grad():
        out, _ = encoder.contextualise(features, lens, chunks, registers)
    return ((out[:-1] - out[-1]).abs().amax(2) > 1e-6).T


@pytest.mark.parametrize(
    "family, chunk_ms, size", [("nemotron", 160, 11), ("qwen3-asr", 1000, 30), ("moonshine", 80, 13)]
)
def test_windows_of_the_encoder_stay_where_they_are_behind_registers_which_all_frames_see(
    saved, family, chunk_ms, size
):
    encoder = build(saved(family), "split", split_layer=2, layers=[-1], stack=1).eval()
    for chunks in (None, ChunkOptions(chunk_ms, left_chunks=1)):
        alone, behind = (frames_seen(encoder, size, registers, chunks) for registers in (0, 3))
        assert not alone.all() and torch.equal(behind[3:, 3:], alone)
        assert behind[:, :3].all()

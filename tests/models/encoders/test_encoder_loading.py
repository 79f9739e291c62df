import json
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, Wav2Vec2Config, Wav2Vec2ForPreTraining, WhisperModel

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.encoders import EncoderConfig, build_encoder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def error_of(*args, **options):
    with pytest.raises(UserError) as caught:
        build_encoder(EncoderConfig(*args, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["no-such/encoder", "data/nothing/here", "./nothing"])
def test_unknown_name_without_a_network(no_network, name):
    message = error_of(name)
    assert name in message and "no folder" in message and "cannot be reached" in message


def test_empty_name():
    assert "encoder.name" in error_of()


def test_folder_without_config(tmp_path):
    assert str(tmp_path) in error_of(str(tmp_path))


def test_unknown_family(tmp_path):
    BertConfig(hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path)
    message = error_of(str(tmp_path))
    assert "bert" in message and "wav2vec2" in message and "whisper" in message


def test_missing_and_damaged_weights(wav2vec2_folder):
    folder = wav2vec2_folder("hubert")
    path = Path(folder, "model.safetensors")
    weights = load_file(path)
    name = next(key for key in weights if key.endswith("layers.1.feed_forward.output_dense.weight"))
    save_file({k: v for k, v in weights.items() if k != name}, path, metadata={"format": "pt"})
    assert "layers.1.feed_forward.output_dense.weight" in error_of(folder)
    path.write_bytes(path.read_bytes()[:-1000])
    assert folder in error_of(folder)
    path.unlink()
    assert folder in error_of(folder)


def test_pretraining_checkpoint_with_old_names(wav2vec2_folder, tmp_path, batch):
    """Laid out as facebook/wav2vec2-large-xlsr-53: pytorch_model.bin, prefixes, a quantizer, weight_g, weight_v."""
    config = Wav2Vec2Config.from_pretrained(wav2vec2_folder("wav2vec2"))
    config.update(dict(codevector_dim=8, proj_codevector_dim=8, num_codevectors_per_group=4))
    model = Wav2Vec2ForPreTraining(config)
    config.save_pretrained(tmp_path)
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = {}
    for key, value in model.state_dict().items():
        for new, old in names.items():
            key = key.replace(new, old)
        state[key] = value.contiguous()
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight_g" in state and "quantizer.codevectors" in state
    torch.save(state, tmp_path / "pytorch_model.bin")
    encoder = build_encoder(EncoderConfig(str(tmp_path), normalise_audio=False)).eval()
    expected = model.eval().wav2vec2(batch[0][:1]).last_hidden_state
    output, _ = encoder(batch[0][:1], batch[1][:1])
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        dict(kind="thawed"),
        dict(stack=3),
        dict(freeze_layers=4),
        dict(checkpoint_layers=-1),
        dict(kind="frozen", layers=[4]),
        dict(kind="frozen", layers=[]),
        dict(kind="frozen", context_dim=30),
        dict(kind="frozen", context_kernel=4),
    ],
)
def test_options_out_of_range_are_named(wav2vec2_folder, options):
    message = error_of(wav2vec2_folder("wav2vec2"), **options)
    assert f"encoder.{list(options)[-1]}" in message and "expected" in message


def test_random_init_needs_no_weights(wav2vec2_folder, whisper_folder, tmp_path):
    for folder in (wav2vec2_folder("wavlm"), whisper_folder):
        (tmp_path / "config.json").write_text(Path(folder, "config.json").read_text())
        torch.manual_seed(1)
        encoder = build_encoder(EncoderConfig(str(tmp_path), random_init=True))
        torch.manual_seed(1)
        again = build_encoder(EncoderConfig(str(tmp_path), random_init=True))
        pretrained = build_encoder(EncoderConfig(folder)).state_dict()
        state = encoder.state_dict()
        assert state.keys() == pretrained.keys() and all(
            torch.equal(v, state[k]) for k, v in again.state_dict().items()
        )
        assert any(not torch.equal(v, state[k]) for k, v in pretrained.items())


def test_whisper_folder_with_the_encoder_alone(whisper_folder, tmp_path, batch):
    """As prepare_encoder.py writes it, in float16: the weights come back as float32."""
    encoder = WhisperModel.from_pretrained(whisper_folder).encoder
    encoder.half().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["WhisperEncoder"]
    ours, full = (build_encoder(EncoderConfig(str(f))).eval() for f in (tmp_path, whisper_folder))
    assert all(p.dtype == torch.float32 for p in ours.parameters())
    torch.testing.assert_close(ours(*batch)[0], full(*batch)[0], atol=0.05, rtol=0.05)


def test_too_short_audio_is_refused(wav2vec2_folder):
    encoder = build_encoder(EncoderConfig(wav2vec2_folder("wav2vec2")))
    with pytest.raises(UserError, match="12 samples"):
        encoder.extract(torch.zeros(2, 4000), torch.tensor([4000, 12]))

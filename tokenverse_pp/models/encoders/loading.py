"""Load a pretrained encoder of any known family by transformers' ``from_pretrained``."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any, Callable, Dict
from urllib.parse import urlparse

import huggingface_hub
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tokenverse_pp.base.config import EncoderConfig
from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.models.compat import float32_argument, quiet_transformers
from tokenverse_pp.models.encoders.base import Backbone
from tokenverse_pp.models.encoders.wav2vec2 import Wav2Vec2Backbone, WavLMBackbone
from tokenverse_pp.models.encoders.whisper import WhisperBackbone

# ``model_type`` of config.json -> what takes the model apart.
FAMILIES: Dict[str, Callable[..., Backbone]] = {
    "wav2vec2": Wav2Vec2Backbone,  # also XLSR-53, XLS-R, MMS
    "hubert": Wav2Vec2Backbone,
    "wavlm": WavLMBackbone,
    "whisper": WhisperBackbone,
}
# Otherwise transformers asks on the terminal, and takes what standard input holds for the answer.
NO_CODE = {"trust_remote_code": False}
UNPICKLES_SAFELY = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 6)
LOADING_ERRORS = (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def load_backbone(options: EncoderConfig, foreign: bool = False) -> Backbone:
    """Load the encoder that ``options.name`` names (or its sizes alone, with ``random_init``), in float32.

    No code of its folder is run. Pickled weights are read by torch's restricted unpickler.

    Args:
        options: of the encoder.
        foreign: not the user but a model folder names it. Then pickled weights are refused where torch is older than
            2.6, whose restricted unpickler can be made to run code (CVE-2025-32434).

    Raises:
        UserError: in one line; does not wait for a hub that cannot be reached.
    """
    config = _from_pretrained(AutoConfig.from_pretrained, options.name, **NO_CODE)
    _check_attention(config, options.name)
    if config.model_type not in FAMILIES:
        raise UserError(
            f"encoder.name: {options.name} has type {config.model_type}, expected one of {', '.join(FAMILIES)}"
        )
    if options.random_init:
        model = _random_model(config, options.name)
    elif "WhisperEncoder" in (config.architectures or []):
        model = _load_weights(WhisperEncoder.from_pretrained, options.name, foreign)
    else:
        model = _load_weights(AutoModel.from_pretrained, options.name, foreign, **NO_CODE)
    if config.model_type == "whisper":
        return WhisperBackbone(model.encoder if hasattr(model, "encoder") else model)
    normalise = options.normalise_audio
    return FAMILIES[config.model_type](model, _normalises_audio(options.name) if normalise is None else normalise)


def _check_attention(config: Any, name: str) -> None:
    """See that no attention kernel is named, which transformers would fetch: compiled code (raises UserError)."""
    asked = getattr(config, "_attn_implementation", None)
    if isinstance(asked, str) and not re.fullmatch(r"\w+", asked):
        raise UserError(f"encoder.name: {name}: its config.json names {asked!r} as attention, which is not loaded")


def _random_model(config: Any, name: str) -> nn.Module:
    try:
        model = WhisperEncoder(config) if config.model_type == "whisper" else AutoModel.from_config(config, **NO_CODE)
    except Exception as error:  # config.json may hold anything
        raise UserError(f"encoder.name: {name}: no model can be made by its config.json: {_why(error)}") from error
    return model.float()


def _load_weights(loader: Callable[..., Any], name: str, foreign: bool, **arguments: Any) -> nn.Module:
    """Load the weights; refuse a model of which some are not in the files (transformers draws them at random)."""
    arguments.update(float32_argument())
    if foreign and not UNPICKLES_SAFELY:
        arguments["use_safetensors"] = True
    model, info = _from_pretrained(loader, name, output_loading_info=True, **arguments)
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("masked_spec_embed"))
    if missing:
        raise UserError(f"encoder.name: {name} has no weights for {missing[0]} ({len(missing)} missing in all)")
    return model


def _normalises_audio(name: str) -> bool:
    """Whether the model wants normalised audio, by its preprocessor_config.json; true where there is none."""
    try:
        return bool(_from_pretrained(Wav2Vec2FeatureExtractor.from_pretrained, name).do_normalize)
    except UserError:
        return True


def _from_pretrained(loader: Callable[..., Any], name: str, **arguments: Any) -> Any:
    """Call ``loader(name)`` on a folder or the local cache first, then on the hub if it can be reached."""
    if not name:
        raise UserError("encoder.name: expected a Hugging Face hub name or a folder, got nothing")
    with quiet_transformers():
        try:
            return loader(name, local_files_only=True, **arguments)
        except LOADING_ERRORS as error:
            if Path(name).is_dir():
                raise UserError(f"encoder.name: cannot load folder {name}: {_why(error)}") from error
        if not hub_reachable():
            raise UserError(
                f"encoder.name: there is no folder {name}, and the Hugging Face hub cannot be reached "
                "(nor is a model of that name in its local cache)"
            )
        try:
            return loader(name, **arguments)
        except LOADING_ERRORS as error:
            raise UserError(f"encoder.name: {name} is neither a folder nor on the hub: {_why(error)}") from error


def hub_reachable() -> bool:
    """Whether the hub's name resolves (huggingface_hub would retry for half a minute); proxies are trusted."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if any(os.environ.get(key) for key in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return True
    try:
        socket.getaddrinfo(urlparse(huggingface_hub.constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _why(error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return "its config.json names code of its own (auto_map), which is not run"
    return one_line(error)

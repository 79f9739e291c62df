"""Load a pretrained encoder of any known family by transformers' ``from_pretrained``."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Callable, Dict
from urllib.parse import urlparse

import huggingface_hub
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tokenverse_pp.compat import float32_argument, quiet_transformers
from tokenverse_pp.errors import UserError, one_line
from tokenverse_pp.model.encoder.base import Backbone
from tokenverse_pp.model.encoder.config import EncoderConfig
from tokenverse_pp.model.encoder.wav2vec2 import Wav2Vec2Backbone, WavLMBackbone
from tokenverse_pp.model.encoder.whisper import WhisperBackbone

# ``model_type`` of config.json -> what takes the model apart.
FAMILIES: Dict[str, Callable[..., Backbone]] = {
    "wav2vec2": Wav2Vec2Backbone,  # also XLSR-53, XLS-R, MMS
    "hubert": Wav2Vec2Backbone,
    "wavlm": WavLMBackbone,
    "whisper": WhisperBackbone,
}
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def load_backbone(options: EncoderConfig) -> Backbone:
    """Load the encoder that ``options.name`` names (or its sizes alone, with ``random_init``), in float32.

    Raises:
        UserError: in one line; does not wait for a hub that cannot be reached.
    """
    config = _from_pretrained(AutoConfig.from_pretrained, options.name)
    if config.model_type not in FAMILIES:
        raise UserError(
            f"encoder.name: {options.name} has type {config.model_type}, expected one of {', '.join(FAMILIES)}"
        )
    if options.random_init:
        model = _random_model(config)
    elif "WhisperEncoder" in (config.architectures or []):
        model = _load_weights(WhisperEncoder.from_pretrained, options.name)
    else:
        model = _load_weights(AutoModel.from_pretrained, options.name)
    if config.model_type == "whisper":
        return WhisperBackbone(model.encoder if hasattr(model, "encoder") else model)
    normalise = options.normalise_audio
    return FAMILIES[config.model_type](model, _normalises_audio(options.name) if normalise is None else normalise)


def _random_model(config: Any) -> nn.Module:
    model = WhisperEncoder(config) if config.model_type == "whisper" else AutoModel.from_config(config)
    return model.float()


def _load_weights(loader: Callable[..., Any], name: str) -> nn.Module:
    """Load the weights; refuse a model of which some are not in the files (transformers draws them at random)."""
    model, info = _from_pretrained(loader, name, output_loading_info=True, **float32_argument())
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
                raise UserError(f"encoder.name: cannot load folder {name}: {one_line(error)}") from error
        if not hub_reachable():
            raise UserError(
                f"encoder.name: there is no folder {name}, and the Hugging Face hub cannot be reached "
                "(nor is a model of that name in its local cache)"
            )
        try:
            return loader(name, **arguments)
        except LOADING_ERRORS as error:
            raise UserError(f"encoder.name: {name} is neither a folder nor on the hub: {one_line(error)}") from error


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

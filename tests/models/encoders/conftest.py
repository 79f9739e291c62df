"""Tiny pretrained models of every family, saved by transformers' own save_pretrained."""

import pytest
import torch
from encoder_families import RAW, perturb
from transformers import (
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperModel,
)
from wav2vec2_styles import STYLES

FAMILIES = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "hubert": (HubertConfig, HubertModel),
    "wavlm": (WavLMConfig, WavLMModel),
}


@pytest.fixture(scope="session")
def wav2vec2_folder(tmp_path_factory):
    """A function (family, style, **config) -> folder of a tiny model with perturbed random weights."""

    def save(family, style="layer", **changes):
        folder = tmp_path_factory.mktemp(f"{family}-{style}")
        torch.manual_seed(1)
        config_class, model_class = FAMILIES[family]
        config = config_class(**{**RAW, **STYLES[style], **changes})
        perturb(model_class(config)).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory):
    """A tiny Whisper (with its decoder, as on the hub)."""
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(1)
    config = WhisperConfig(
        d_model=16,
        encoder_layers=3,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=24,
        vocab_size=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        encoder_layerdrop=0.9,
    )
    perturb(WhisperModel(config)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def batch():
    """Audio (3, 4000) with rubbish in the padding, and lengths 4000, 2700, 1500.

    For Whisper that is 25, 17 and 10 frames of 10 ms: an odd number is where the second convolution sees padding.
    """
    generator = torch.Generator().manual_seed(0)
    lens = torch.tensor([4000, 2700, 1500])
    audio = 0.1 * torch.randn(3, 4000, generator=generator) + 0.02 * torch.arange(3).unsqueeze(1)
    return audio, lens

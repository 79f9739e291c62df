"""Tiny random transducers of every family and kind, and helpers to stream audio through them."""

from __future__ import annotations

import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from wav2vec2_styles import STYLES

from tokenverse_pp.base.config import ModelConfig, VectorsConfig
from tokenverse_pp.decoding.streaming.encoder import StreamingEncoder
from tokenverse_pp.models.encoders import EncoderConfig
from tokenverse_pp.models.encoders.kinds import FinetuneEncoder, FrozenEncoder, SplitEncoder
from tokenverse_pp.models.encoders.wav2vec2 import Wav2Vec2Backbone
from tokenverse_pp.models.encoders.whisper import WhisperBackbone
from tokenverse_pp.models.transducer import Transducer

# Three convolutions as in the real models' first, with frames of 20 ms and a receptive field of 25.3 ms.
SMALL = dict(
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
    conv_dim=[6, 6, 6],
    conv_kernel=[10, 16, 5],
    conv_stride=[5, 16, 4],
    num_feat_extract_layers=3,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
)
FAMILIES = ("wav2vec2-group", "wav2vec2-layer", "hubert-group", "whisper")
KINDS = {"finetune": FinetuneEncoder, "frozen": FrozenEncoder, "split": SplitEncoder}
OUTSIDE = dict(context_layers=2, context_dim=16, context_heads=2, context_ffn=16, context_kernel=7)


def backbone_of(family):
    """A backbone with random weights, all away from their initial values."""
    if family == "whisper":
        config = WhisperConfig(d_model=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=24)
        config.max_source_positions = 40  # positions start again every 0.8 s at most
        backbone = WhisperBackbone(WhisperEncoder(config))
    else:
        name, style = family.split("-")
        config_class, model_class = {
            "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
            "hubert": (HubertConfig, HubertModel),
        }[name]
        backbone = Wav2Vec2Backbone(model_class(config_class(**SMALL, **STYLES[style])))
    return backbone


def tiny_transducer(
    family, kind, stack=1, placement="both", seed=1, code="binary", scale=1.0, split_layer=1, registers=0
):
    """A transducer in eval mode with three tasks and random task vectors."""
    torch.manual_seed(seed)
    layers = [1, -1] if kind != "finetune" else [-1]
    config = EncoderConfig(
        kind=kind, stack=stack, layers=layers, split_layer=split_layer if kind == "split" else 0, **OUTSIDE
    )
    encoder = KINDS[kind](backbone_of(family), config)
    vectors = VectorsConfig(placement=placement, code=code, scale=scale, registers=registers)
    model = Transducer(ModelConfig(encoder=config, vectors=vectors), encoder, 3, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def noise(samples, seed=0):
    """Audio whose loudness and mean change, (S,)."""
    generator = torch.Generator().manual_seed(seed)
    swell = 0.02 + 0.2 * torch.rand(1 + samples // 3000, generator=generator).repeat_interleave(3000)[:samples]
    return swell * torch.randn(samples, generator=generator) + 0.01 * (seed % 5)


def mask_of(seed):
    """Active tasks, (3,)."""
    return torch.tensor([1.0, float(seed % 2), float(seed // 2 % 2)])


def masked_pass(model, audio, active, chunks):
    """Output (T, C) of the masked full pass over one utterance."""
    with torch.no_grad():
        out, lens = model.encode(audio[None], torch.tensor([len(audio)]), active[None], chunks=chunks)
    return out[0, : int(lens)]


def stream(model, audio, active, chunks):
    """Output (T, C) of one stream, heard alone, and its last state but one."""
    encoder = StreamingEncoder(model, chunks)
    state = encoder.start(active)
    outs, previous = [], state
    size = encoder.chunk_samples
    for start in range(0, max(1, len(audio)), size):
        previous = state
        (out,), (state,) = encoder.step([audio[start : start + size]], [state], [start + size >= len(audio)])
        outs.append(out)
    return torch.cat(outs), previous

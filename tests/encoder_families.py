"""Tiny checkpoints of the encoder families of today, saved by transformers' own classes (pytest puts this on the path).

Each is a whole model as on the hub (Parakeet with its predictor, Qwen3-ASR with its language model), with random
weights moved away from their initial values: zero biases and unit gains would hide mistakes.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from tokenverse_pp.models.encoders.kinds import merge_lora

SMALL = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24)
RAW = dict(
    **SMALL,
    conv_dim=[8, 8, 8],
    conv_kernel=[10, 3, 2],
    conv_stride=[5, 2, 2],
    num_feat_extract_layers=3,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
)
FRAMES_OF_20_MS = dict(conv_kernel=[10, 8, 8], conv_stride=[5, 8, 8])  # as real models have; `RAW` has 1.25 ms
LAYER = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
FAST = dict(**SMALL, subsampling_conv_channels=4, num_mel_bins=16, conv_kernel_size=5, attention_dropout=0.0)
RNNT = dict(vocab_size=11, blank_token_id=10, pad_token_id=2, decoder_hidden_size=12, num_decoder_layers=2)
CONFORMER = dict(**RAW, feat_extract_norm="layer", conv_bias=True, conv_depthwise_kernel_size=5)
BERT = dict(**SMALL, feature_projection_input_dim=32, conv_depthwise_kernel_size=5, add_adapter=False)
TEXT = dict(model_type="qwen3", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
AUDIO = dict(
    model_type="qwen3_asr_encoder", num_mel_bins=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=24,
    d_model=16, output_dim=16, downsample_hidden_size=4, n_window=50, n_window_infer=100,
)  # fmt: skip
REL, ROT = dict(position_embeddings_type="relative"), dict(position_embeddings_type="rotary")
KEY = dict(position_embeddings_type="relative_key")
W2V_BERT = ("wav2vec2_bert", "Wav2Vec2BertConfig", "Wav2Vec2BertModel")
W2V_CONFORMER = ("wav2vec2_conformer", "Wav2Vec2ConformerConfig", "Wav2Vec2ConformerModel")
DATA2VEC = dict(RAW, num_conv_pos_embeddings=2, conv_pos_kernel_size=5)
WINDOWS = dict(SMALL, num_key_value_heads=2, sliding_windows=((4, 2), (3, 0), (5, 3)))
TDT = dict(RNNT, encoder_config=dict(FAST, scale_input=False))
# Name -> module of transformers, class of the configuration, class of the model, changes of the configuration.
FAMILIES = {
    "parakeet-ctc": ("parakeet", "ParakeetCTCConfig", "ParakeetForCTC", dict(vocab_size=11, encoder_config=FAST)),
    "parakeet-rnnt": ("parakeet", "ParakeetRNNTConfig", "ParakeetForRNNT", dict(RNNT, encoder_config=FAST)),
    "parakeet-tdt": ("parakeet", "ParakeetTDTConfig", "ParakeetForTDT", TDT),
    "nemotron": (
        *("nemotron_asr_streaming", "NemotronAsrStreamingConfig", "NemotronAsrStreamingForRNNT"),
        dict(RNNT, encoder_config=dict(FAST, sliding_window=5, default_num_lookahead_tokens=1)),
    ),
    "w2v-bert": (*W2V_BERT, dict(BERT, **KEY)),
    "w2v-bert-relative": (*W2V_BERT, dict(BERT, **REL)),
    "conformer-relative": (*W2V_CONFORMER, dict(CONFORMER, **REL)),
    "conformer-rotary": (*W2V_CONFORMER, dict(CONFORMER, **ROT)),
    "data2vec": ("data2vec", "Data2VecAudioConfig", "Data2VecAudioModel", DATA2VEC),
    "unispeech-sat": ("unispeech_sat", "UniSpeechSatConfig", "UniSpeechSatModel", dict(RAW, **LAYER)),
    "unispeech": ("unispeech", "UniSpeechConfig", "UniSpeechModel", dict(RAW, **LAYER)),
    "moonshine": (
        *("moonshine_streaming", "MoonshineStreamingConfig", "MoonshineStreamingForConditionalGeneration"),
        dict(SMALL, num_hidden_layers=1, num_key_value_heads=2, vocab_size=20, encoder_config=WINDOWS),
    ),
    "qwen3-asr": (
        *("qwen3_asr", "Qwen3ASRConfig", "Qwen3ASRForConditionalGeneration"),
        dict(
            audio_config=AUDIO, text_config=dict(TEXT, num_key_value_heads=1, head_dim=8, vocab_size=30),
            audio_token_id=3, timestamp_token_id=4, pad_token_id=0, eos_token_id=1,
        ),
    ),
}  # fmt: skip
EXTRACTORS = {"parakeet": "ParakeetFeatureExtractor", "nemotron_asr_streaming": "NemotronAsrStreamingFeatureExtractor"}


def extractor_of(family):
    """The feature extractor of a family's tiny checkpoint; None where it takes audio."""
    module = FAMILIES[family][0]
    if module in EXTRACTORS:
        return getattr(importlib.import_module("transformers"), EXTRACTORS[module])(feature_size=FAST["num_mel_bins"])
    if module == "wav2vec2_bert":
        from transformers import SeamlessM4TFeatureExtractor

        return SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16)
    return None


def perturb(model):
    """Move every weight away from its initial value: zero biases and unit gains would hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.mul_(1 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def save_family(family, folder, **changes):
    """Save a tiny checkpoint of a family -> the folder; skip the test where transformers does not have it."""
    module, config_class, model_class, options = FAMILIES[family]
    try:
        config_module = importlib.import_module(f"transformers.models.{module}")
        make, config_class = getattr(config_module, model_class), getattr(config_module, config_class)
    except (ImportError, AttributeError):
        pytest.skip(f"this transformers has no {model_class}")
    torch.manual_seed(1)
    perturb(make(config_class(**{**options, **changes}))).save_pretrained(folder)
    extractor = extractor_of(family) or Wav2Vec2FeatureExtractor(do_normalize=False)
    extractor.save_pretrained(folder)
    return str(folder)


def assert_padding_changes_nothing(encoder, audio, lens, **tolerance):
    """A padded batch gives what each utterance gives alone, and zeros -> [(frames, outputs), ..] of the three."""
    features, feature_lens = encoder.extract(audio, lens)
    rubbish = torch.arange(features.shape[1]).unsqueeze(0) >= feature_lens.unsqueeze(1)
    output, output_lens = encoder.contextualise(features + 5.0 * rubbish.unsqueeze(-1), feature_lens)
    assert (features.shape[2], output.shape[2]) == (encoder.feature_dim, encoder.output_dim)
    assert encoder.feature_lens(lens).tolist() == feature_lens.tolist() and features.shape[1] == feature_lens.max()
    assert encoder.output_lens(feature_lens).tolist() == output_lens.tolist() and len(set(output_lens.tolist())) == 3
    for row in range(3):
        one, one_lens = encoder.extract(audio[row : row + 1, : lens[row]], lens[row : row + 1])
        assert one.shape[1] == one_lens == feature_lens[row]
        torch.testing.assert_close(features[row, : one_lens[0]], one[0], **tolerance)
        assert features[row, one_lens[0] :].abs().sum() == 0
        out, out_lens = encoder.contextualise(one, one_lens)
        assert out_lens == output_lens[row] == out.shape[1]
        torch.testing.assert_close(output[row, : out_lens[0]], out[0], **tolerance)
        assert output[row, out_lens[0] :].abs().sum() == 0
    return list(zip(feature_lens.tolist(), output_lens.tolist()))


def gradients(encoder):
    """By name; each parameter that is trained has one, or DDP would stop at it."""
    assert all((p.grad is not None) == p.requires_grad for p in encoder.parameters())
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected, atol):
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, atol=atol, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@torch.no_grad()
def move_and_merge(adapted, adapters, batch, tolerance):
    """Move the adapters; the output, which is returned, is the same once they are merged into the weights."""
    for parameter in adapters:
        parameter.add_(0.1 * torch.randn(parameter.shape))
    moved = adapted(*batch)[0]
    merge_lora(adapted.backbone)
    torch.testing.assert_close(adapted(*batch)[0], moved, atol=tolerance, rtol=tolerance)
    return moved

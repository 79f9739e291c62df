"""Tiny random models of every kind that is exported (pytest puts this folder on the path)."""

from pathlib import Path

import torch
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

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.config_files import save_config
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import ModelBundle, build_model, load_model, tasks_of

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
CONVOLUTIONS = dict(
    conv_dim=[8, 8, 8],
    conv_kernel=[10, 3, 2],
    conv_stride=[5, 2, 16],
    num_feat_extract_layers=3,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
)
TEXTS = ["the cat sat on the mat", "a dog and a bird sang loudly", "john met mary in paris", "no", "yes we can"]
# name -> (encoder family, options of the encoder, options of the vectors)
CASES = {
    "whisper-frozen": ("whisper", {"kind": "frozen", "stack": 2, "layers": [1, -1]}, {"placement": "features"}),
    "whisper-split": ("whisper", {"kind": "split", "split_layer": 1, "stack": 2}, {"placement": "both"}),
    "whisper-finetune": ("whisper", {}, {"placement": "both"}),
    "wav2vec2-layer": ("layer", {"stack": 2}, {"placement": "features"}),
    "wav2vec2-group": ("group", {}, {"placement": "encoder"}),
    "hubert-frozen": ("hubert", {"kind": "frozen", "layers": [-1]}, {"placement": "both"}),
    "combination": ("layer", {"normalise_audio": False}, {"placement": "features", "strategy": "combination"}),
    "no-vectors": ("group", {}, {"placement": "none"}),
}


def save_encoder(family: str, folder: Path) -> Path:
    """A tiny pretrained encoder of random weights, far from their initial values."""
    torch.manual_seed(1)
    if family == "whisper":
        small = dict(decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=24, vocab_size=20)
        special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3)
        config = WhisperConfig(d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24,
                               suppress_tokens=None, begin_suppress_tokens=None, **small, **special)  # fmt: skip
        model = WhisperModel(config)
    else:
        style = STYLES["layer" if family == "layer" else "group"]
        classes = {"hubert": (HubertConfig, HubertModel), "wavlm": (WavLMConfig, WavLMModel)}
        config_class, model_class = classes.get(family, (Wav2Vec2Config, Wav2Vec2Model))
        model = model_class(config_class(**SIZES, **CONVOLUTIONS, **style))
        Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


def build(case: str, folder: Path) -> ModelBundle:
    """A whole model, written as a model folder and read back."""
    family, encoder, vectors = CASES.get(case) or (case, {}, {"placement": "features"})
    config = Config()
    config.tasks.names, config.tasks.languages = ["asr", "scd", "endp", "ner", "lid"], ["en", "fr"]
    options = config.model.encoder
    options.name = str(save_encoder(family, folder / "encoder"))
    options.context_layers, options.context_dim, options.context_heads = 2, 16, 2
    options.context_ffn, options.context_kernel = 24, 5
    for target, changes in ((options, encoder), (config.model.vectors, vectors)):
        for name, value in changes.items():
            assert hasattr(target, name), name
            setattr(target, name, value)
    config.model.predictor_dim, config.model.joiner_dim = 12, 20
    tasks = tasks_of(config.tasks)
    tokenizer = train_tokenizer(TEXTS, tasks, 48)
    model = build_model(config, tasks, tokenizer)
    _stir(model)
    save_config(config, folder / "config.yaml")
    texts = {checkpoint.CONFIG: (folder / "config.yaml").read_bytes(), checkpoint.TOKENIZER: tokenizer.model}
    checkpoint.write_folder(folder / "model", {checkpoint.WEIGHTS: model.checkpoint_state()}, texts)
    return load_model(folder / "model")


def _stir(model: torch.nn.Module) -> None:
    """Task vectors that matter, and a joiner that writes a lot and is sure of it."""
    with torch.no_grad():
        for vectors in filter(None, (model.feature_vectors, model.encoder_vectors)):
            vectors.table.normal_()
            vectors.trained[::2] = 1
        model.joiner.output.weight.mul_(8)
        model.joiner.output.bias[0] += 1

"""Tiny random models of every kind that is exported (pytest puts this folder on the path)."""

import os
import re
from pathlib import Path

import numpy as np
import soundfile
import torch
import transformers
from encoder_families import FAMILIES, FRAMES_OF_20_MS, save_family
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
    **dict(num_feat_extract_layers=3, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2),
)
TEXTS = ["the cat sat on the mat", "a dog and a bird sang loudly", "john met mary in paris", "no", "yes we can"]
# name -> (encoder family, options of the encoder, options of the vectors)
CASES = {
    "whisper-frozen": ("whisper", {"kind": "frozen", "stack": 2, "layers": [1, -1]}, {"placement": "features"}),
    "whisper-split": (
        "whisper",
        {"kind": "split", "split_layer": 1, "stack": 2},
        {"placement": "both", "code": "centred", "scale": 0.5, "registers": 4},
    ),
    "whisper-finetune": ("whisper", {}, {"placement": "both"}),
    "wav2vec2-layer": ("layer", {"stack": 2}, {"placement": "features", "code": "centred", "scale": 0.7}),
    "wav2vec2-group": ("group", {}, {"placement": "encoder"}),
    "hubert-frozen": ("hubert", {"kind": "frozen", "layers": [-1]}, {"placement": "both"}),
    "combination": ("layer", {"normalise_audio": False}, {"placement": "features", "strategy": "combination"}),
    "no-vectors": ("group", {}, {"placement": "none"}),
    "lstm": ("group", {}, {"placement": "features"}),
}
PREDICTORS = {"lstm": {"predictor_layers": 2, "symbols_per_frame": 3, "joiner_activation": "relu"}}


def noise(*sizes, seed=0):
    """Audio of each size."""
    random = np.random.default_rng(seed)
    return [(0.1 * random.standard_normal(size)).astype(np.float32) for size in sizes]


def tones(size, seed=0):
    """Audio that changes every 50 ms, so that frames differ."""
    random = np.random.default_rng(seed)
    pitch, loud = random.uniform(100, 4000, size // 800 + 1), random.uniform(0.01, 0.5, size // 800 + 1)
    time = np.arange(size)
    sound = np.sin(2 * np.pi * pitch[time // 800] * time / 16000) * loud[time // 800]
    return (sound + 0.01 * random.standard_normal(size)).astype(np.float32)


def save_encoder(family: str, folder: Path) -> Path:
    """A tiny pretrained encoder of random weights, far from their initial values."""
    if family in FAMILIES:
        folder.mkdir()
        return Path(save_family(family, folder, **(FRAMES_OF_20_MS if "conv_kernel" in FAMILIES[family][3] else {})))
    torch.manual_seed(1)
    if family == "whisper":
        options = dict(encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24)
        options.update(decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=24, vocab_size=20)
        options.update(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3)
        config = transformers.WhisperConfig(d_model=16, suppress_tokens=None, begin_suppress_tokens=None, **options)
        model = transformers.WhisperModel(config)
    else:
        name = {"hubert": "Hubert", "wavlm": "WavLM"}.get(family, "Wav2Vec2")
        options = {**SIZES, **CONVOLUTIONS, **STYLES["layer" if family == "layer" else "group"]}
        model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))
        transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


def build(case: str, folder: Path, ctc_scale: float = 0.0, **changes) -> ModelBundle:
    """A whole model, written as a model folder and read back; ``changes`` of the options of its encoder."""
    family, encoder, vectors = CASES.get(case) or (case, {}, {"placement": "features"})
    encoder = {**encoder, **changes}
    config = Config()
    config.tasks.names, config.tasks.languages = ["asr", "scd", "endp", "ner", "lid"], ["en", "fr"]
    config.tasks.activation = "subset"  # tasks that are not requested are inactive, not stripped
    options = config.model.encoder
    options.name = str(save_encoder(family, folder / "encoder"))
    options.context_layers, options.context_dim, options.context_heads = 2, 16, 2
    options.context_ffn, options.context_kernel = 24, 5
    predictor = PREDICTORS.get(case, {})
    for target, changes in ((options, encoder), (config.model.vectors, vectors), (config.model, predictor)):
        for name, value in changes.items():
            assert hasattr(target, name), name
            setattr(target, name, value)
    config.model.loss.ctc_scale = ctc_scale
    config.model.predictor_dim, config.model.joiner_dim = 12, 20
    tasks = tasks_of(config.tasks)
    tokenizer = train_tokenizer(TEXTS, tasks, 48)
    model = build_model(config, tasks, tokenizer)
    with torch.no_grad():  # task vectors that matter, and a joiner that emits many tokens with confidence
        for table in filter(None, (model.feature_vectors, model.encoder_vectors)):
            table.table.normal_()
            table.trained[::2] = 1
        model.joiner.output.weight.mul_(8)
        model.joiner.output.bias[0] += 1
        if model.ctc is not None:
            sound = torch.from_numpy(tones(16000))[None]
            active = torch.eye(1, len(tasks.names))  # asr
            mean = model.eval().encode(sound, torch.tensor([16000]), active)[0].mean((0, 1))
            model.ctc.weight.mul_(8)
            model.ctc.bias.copy_(-model.ctc.weight @ mean)
    save_config(config, folder / "config.yaml")
    texts = {checkpoint.CONFIG: (folder / "config.yaml").read_bytes(), checkpoint.TOKENIZER: tokenizer.model}
    checkpoint.write_folder(folder / "model", {checkpoint.WEIGHTS: model.checkpoint_state()}, texts)
    return load_model(folder / "model")


def ids_of(loaded, pieces):
    return [loaded.tokenizer.processor.PieceToId(piece) for piece in pieces]


def follow_readme(folder, tmp_path, monkeypatch):
    """Run the Python example of the README of an export for sherpa-onnx, as printed, on tones -> the README."""
    soundfile.write(tmp_path / "call.wav", tones(20000), 16000)
    text = (folder / "README.md").read_text()
    code = re.search(r"Python:\n\n((?:    .*\n|\n)+)", text).group(1).replace("\n    ", "\n").strip()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(soundfile, "read", lambda name, dtype, read=soundfile.read: read(tmp_path / name, dtype=dtype))
    exec(code.replace("THIS_FOLDER", os.fspath(folder)), {})
    return text

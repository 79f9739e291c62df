"""A model as a folder that a person can read, whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Sequence

import torch
import yaml

import tokenverse_pp
from tokenverse_pp.api.locate import CALIBRATION, CARD, ENCODER_FOLDER
from tokenverse_pp.config import Config
from tokenverse_pp.config.sections import TokenizerConfig
from tokenverse_pp.errors import UserError
from tokenverse_pp.files import check_links, temporary_folder
from tokenverse_pp.training import checkpoint
from tokenverse_pp.training.setup import Loaded

OWN = {
    checkpoint.WEIGHTS,
    checkpoint.CONFIG,
    checkpoint.TOKENIZER,
    checkpoint.CHECKSUMS,
    CALIBRATION,
    CARD,
    ENCODER_FOLDER,
    ".gitattributes",
}
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.json")


def save_model(
    loaded: Loaded,
    folder: Path,
    encoder_name: str,
    encoder_folder: Optional[Path],
    include_encoder: bool = False,
    half: bool = False,
) -> None:
    """Write a model folder.

    The weights of a trained encoder are among the model's own: of its folder only the sizes (config.json) are needed,
    and they are always put in. A frozen encoder's folder is put in with ``include_encoder``, else named.

    Args:
        loaded: the model.
        folder: new, empty, or a model folder, which is replaced.
        encoder_name: as its configuration named the encoder before it was found.
        encoder_folder: where it was found; None for one from the hub.
        include_encoder: see above.
        half: write the weights in float16.

    Raises:
        UserError: for a folder that holds anything else, for an encoder without a folder, and where nothing can be
            written; what was there before stays.
    """
    _check_target(folder)
    config = loaded.config
    frozen = config.model.encoder.kind == "frozen"
    if encoder_folder is None and (include_encoder or not frozen):
        raise UserError(
            f"{folder}: the encoder {encoder_name} is not in a folder, so that it cannot be put in; save it "
            "with transformers' save_pretrained and give it as encoder="
        )
    own_encoder = include_encoder or not frozen
    texts = {
        checkpoint.CONFIG: _config_text(config, ENCODER_FOLDER if own_encoder else encoder_name, not frozen),
        checkpoint.TOKENIZER: loaded.tokenizer.model,
        CARD: model_card(loaded, encoder_name, own_encoder).encode(),
    }
    calibration = loaded.folder / CALIBRATION if loaded.folder is not None else None
    if calibration is not None and calibration.is_file():
        check_links([calibration])
        texts[CALIBRATION] = calibration.read_bytes()
    weights = loaded.model.checkpoint_state()
    if half:
        weights = {k: v.half() if v.dtype == torch.float32 else v for k, v in weights.items()}
    stage = temporary_folder(folder)
    try:
        checkpoint.write_folder(stage / "new", {checkpoint.WEIGHTS: weights}, texts)
        if own_encoder and encoder_folder is not None:
            skip = () if frozen else WEIGHT_FILES
            if loaded.folder is not None and loaded.folder in encoder_folder.parents:
                check_links(encoder_folder.iterdir())
            shutil.copytree(encoder_folder, stage / "new" / ENCODER_FOLDER, ignore=_only_files(skip))
        if folder.exists():
            os.replace(folder, stage / "old")
        os.replace(stage / "new", folder)
    except OSError as error:
        if (stage / "old").exists() and not folder.exists():
            os.replace(stage / "old", folder)
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _check_target(folder: Path) -> None:
    """See that nothing but a model would be replaced."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder}: is not a folder")
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in OWN) if folder.exists() else []
    if foreign:
        raise UserError(f"{folder}: expected a new or empty folder or a model, found {foreign[0]} in it")


def _only_files(patterns: Sequence[str]) -> Any:
    """What `shutil.copytree` leaves out: these patterns, folders and hidden files."""
    named = shutil.ignore_patterns(".*", *patterns)

    def ignored(where: str, names: Iterable[str]) -> set:
        names = list(names)
        return set(named(where, names)) | {name for name in names if Path(where, name).is_dir()}

    return ignored


def _config_text(config: Config, encoder: str, is_whole: bool) -> bytes:
    """The parts of the configuration that make the model: neither data nor training."""
    model: Dict[str, Any] = dataclasses.asdict(config.model)
    model["encoder"].update(name=encoder)
    if is_whole:  # all its weights are in the checkpoint
        model["encoder"].update(random_init=True)
    vocabulary = dataclasses.asdict(TokenizerConfig(vocab_size=config.tokenizer.vocab_size))
    sections = {"tasks": dataclasses.asdict(config.tasks), "tokenizer": vocabulary, "model": model}
    head = (
        f"# A model of tokenverse_pp {tokenverse_pp.__version__}; the parts of its configuration that it is made by.\n"
    )
    return (head + yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)).encode()


def model_card(loaded: Loaded, encoder: str, own_encoder: bool) -> str:
    """README.md of a model folder."""
    languages = getattr(loaded.tasks["lid"], "languages", ()) if "lid" in loaded.tasks else ()
    size = sum(value.numel() for value in loaded.model.checkpoint_state().values())
    where = "in `encoder/`" if own_encoder else f"`{encoder}`, which is not in this folder"
    lines = [
        "---",
        "library_name: tokenverse_pp",
        "pipeline_tag: automatic-speech-recognition",
        *(["language:", *(f"- {code}" for code in languages)] if languages else []),
        "---",
        "",
        "# A TokenVerse++ model",
        "",
        f"- tasks: {', '.join(loaded.tasks.names)}",
        *([f"- languages: {', '.join(languages)}"] if languages else []),
        f"- task tokens: {' '.join(f'`{symbol}`' for symbol in loaded.tasks.symbols) or 'none'}",
        f"- {size / 1e6:.2f} M parameters, vocabulary of {loaded.tokenizer.vocab_size}",
        f"- encoder: {where}",
        "",
        "What it was trained on and what it scores, its author has to say here.",
        "",
        "    from tokenverse_pp import TokenVerse",
        "",
        '    print(TokenVerse.from_pretrained("THIS FOLDER").transcribe("audio.wav").raw)',
        "",
        "Or `tokenverse-pp transcribe --model FOLDER audio.wav`. `config.yaml` says what it is made of,",
        "`tokenizer.model` is SentencePiece's, `model.safetensors` holds the weights, `calibration.json` (if there)",
        "maps confidences.",
    ]
    return "\n".join(lines) + "\n"

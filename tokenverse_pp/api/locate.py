"""Where a model is, and where its pretrained encoder is."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Optional, Union

from tokenverse_pp.errors import UserError
from tokenverse_pp.model.encoder.loading import hub_reachable
from tokenverse_pp.model.encoder.whisper_base import convert_whisper_base
from tokenverse_pp.training.checkpoint import CONFIG, TOKENIZER, WEIGHTS
from tokenverse_pp.training.setup import find_model, own_encoder

PathLike = Union[str, Path]
# Models that are part of the package: name -> folder, and what a user should know of it.
PACKAGED = {"human-speech-small": Path(__file__).parents[1] / "pretrained" / "human_speech_small"}
DEFAULT = "human-speech-small"
ABOUT_DEFAULT = (
    f"{DEFAULT}: a small example model (cs, en, es, fr, it, nl, ru; about every second word is wrong); "
    "--model names another"
)
WHISPER_BASE = "whisper-base"  # the last part of an encoder's name that stands for Whisper-base's
ENCODER_FOLDER = "encoder"  # of a model folder that holds its own
CALIBRATION, CARD = "calibration.json", "README.md"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate_model(model: PathLike, revision: Optional[str] = None) -> Path:
    """The folder of a model.

    Args:
        model: a folder (of a model, a checkpoint or an experiment), the name of a model that is part of the package,
            or the id of one on the Hugging Face hub.
        revision: on the hub: branch, tag or commit.

    Raises:
        UserError: where there is none, and for a hub that cannot be reached.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return find_model(path)
    if path.exists():
        raise UserError(f"{path}: is a file, expected a model folder")
    if str(model) in PACKAGED:
        folder = PACKAGED[str(model)]
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"{model}: {folder / WEIGHTS} is missing from this installation of tokenverse_pp")
        return folder
    if not HUB_ID.fullmatch(str(model)):
        raise UserError(f"{model}: no such folder, nor a model of the package ({', '.join(PACKAGED)})")
    return find_model(_download(str(model), revision))


def _download(repository: str, revision: Optional[str]) -> Path:
    """A model from the hub, or from its local cache where the hub cannot be reached."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [WEIGHTS, CONFIG, TOKENIZER, CALIBRATION, CARD, "checksums.json", f"{ENCODER_FOLDER}/*"]
    offline = not hub_reachable()
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=wanted, local_files_only=offline
            )
        )
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        if offline:
            raise UserError(
                f"{repository}: there is no such folder, and the Hugging Face hub cannot be reached "
                "(nor is a model of that name in its local cache)"
            ) from None
        raise UserError(f"{repository}: not to be had from the hub: {' '.join(str(error).split())[:200]}") from None


def locate_encoder(name: str, folder: Path, given: Optional[PathLike] = None) -> str:
    """The folder (or hub name) of a model's pretrained encoder.

    Looked for where ``given`` says; else under its name in the model's folder, then in the working directory.
    Whisper-base is otherwise made of the packages of the extra ``human-speech``, once, in `cache_folder`.

    Args:
        name: as the model's configuration has it.
        folder: of the model.
        given: where the user says it is.

    Raises:
        UserError: where ``given`` is no encoder, and where Whisper-base cannot be made.
    """
    if given:
        path = Path(given).expanduser()
        if path.is_dir() and not (path / "config.json").is_file():
            raise UserError(f"encoder: {path}: expected an encoder as transformers saves it, there is no config.json")
        return str(path) if path.is_dir() else str(given)
    for holder in (folder, Path()):
        held = own_encoder(holder, name)
        if held is not None:
            return str(held)
    if Path(name).name == WHISPER_BASE:
        return str(whisper_base())
    return name


def whisper_base() -> Path:
    """Whisper-base's encoder in the cache, made now if it is not there (raises UserError)."""
    target = cache_folder() / WHISPER_BASE
    try:
        return convert_whisper_base(target)[0]
    except UserError as error:
        raise UserError(
            f"the model's encoder, {WHISPER_BASE}: {error}; or say where it is: encoder (--encoder)"
        ) from None


def cache_folder() -> Path:
    """Where this package keeps what it made: ``TOKENVERSE_PP_CACHE``, else a folder in the user's cache."""
    own = os.environ.get("TOKENVERSE_PP_CACHE")
    if own:
        return Path(own).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tokenverse_pp"

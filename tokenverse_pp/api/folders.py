"""Find a model and its pretrained encoder, and save a model as a folder."""

from __future__ import annotations

import dataclasses
import filecmp
import re
import shutil
from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Sequence, Tuple, Union

import torch
import yaml

import tokenverse_pp
from tokenverse_pp.base.config import Config, TokenizerConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import cache_folder, check_links, replacing_folder, url_of
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.base.storage import fetch_folder, list_folder
from tokenverse_pp.decoding.hypothesis import CALIBRATION
from tokenverse_pp.evaluation.report.tables import render
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import ModelBundle, find_model, own_encoder
from tokenverse_pp.models.checkpoint import CHECKSUMS, CONFIG, TOKENIZER, WEIGHTS
from tokenverse_pp.models.encoders.kinds import hub_reachable
from tokenverse_pp.models.encoders.whisper_base import convert_whisper_base

PathLike = Union[str, Path]
# Models that are part of the package: name -> folder, older names for them, and what a user should know of the default.
PACKAGED = {"human-speech": Path(__file__).parents[1] / "pretrained" / "human_speech"}
RENAMED = {"human-speech-small": "human-speech"}
DEFAULT = "human-speech"
ABOUT_DEFAULT = (
    f"{DEFAULT}: an example model (cs, en, es, fr, it, nl, ru; four words in ten are wrong, with word lists three); "
    "--model names another"
)
WHISPER_BASE = "whisper-base"  # an encoder's name that ends in this stands for Whisper-base's
ENCODER_FOLDER = "encoder"  # in a model folder that contains its encoder
CARD = "README.md"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate_model(model: PathLike, revision: Optional[str] = None) -> Path:
    """Return the folder of a model.

    Args:
        model: a folder (of a model, a checkpoint or an experiment) or its URL in object storage, the name of a model
            that is part of the package, or the id of one on the Hugging Face hub.
        revision: branch, tag or commit on the hub.

    Raises:
        UserError: if there is no such model, or the hub cannot be reached.
    """
    url = url_of(model)
    if url is not None:
        return find_model(fetch_folder(*_model_at(url)))
    path = Path(model).expanduser()
    if path.is_dir():
        return find_model(path)
    if path.exists():
        raise UserError(f"{path}: is a file, expected a model folder")
    name = RENAMED.get(str(model), str(model))
    if name in PACKAGED:
        folder = PACKAGED[name]
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"{model}: {folder / WEIGHTS} is missing from this installation of tokenverse_pp")
        return folder
    if not HUB_ID.fullmatch(str(model)):
        raise UserError(f"{model}: no such folder, nor a model of the package ({', '.join(PACKAGED)})")
    return find_model(_download(str(model), revision))


def place_of(model: PathLike, folder: Path) -> Path:
    """Return where to write files of a model: its ``folder`` (`locate_model`), or the URL that it is a copy of."""
    url = url_of(model)
    return folder if url is None else Path(_model_at(url)[0])


def _model_at(url: str) -> Tuple[str, Dict[str, Any]]:
    """Return URL and objects of a model folder; in an experiment, the final model or latest complete checkpoint."""
    there = list_folder(url)
    found = (name.rpartition("/") for name in there if name.rpartition("/")[2] == WEIGHTS)
    folders = {holder for holder, _, _ in found if f"{holder}/{CHECKSUMS}".lstrip("/") in there or not holder}
    steps = sorted(folder for folder in folders if re.fullmatch(r"checkpoints/step-\d{8}", folder))
    holder = next((holder for holder in ("", "model", *reversed(steps)) if holder in folders), None)
    if holder is None:
        raise UserError(f"{url}: no model here: expected a folder with {WEIGHTS}, or an experiment folder")
    prefix = f"{holder}/" if holder else ""
    wanted = {name[len(prefix) :]: info for name, info in there.items() if name.startswith(prefix)}
    own = {name: info for name, info in wanted.items() if name in OWN or name.startswith(f"{ENCODER_FOLDER}/")}
    return f"{url}/{holder}".rstrip("/"), own


def _download(repository: str, revision: Optional[str]) -> Path:
    """Return a model from the hub, or from its local cache if the hub cannot be reached."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [WEIGHTS, CONFIG, TOKENIZER, CALIBRATION, CARD, CHECKSUMS, f"{ENCODER_FOLDER}/*"]
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
    """Return the folder (or hub name) of a model's pretrained encoder.

    This is ``given``, else the folder with the encoder's name in the model's folder, then in the working directory.
    Otherwise Whisper-base is built once from the packages of the extra ``human-speech``, in `cache_folder`
    (openai/whisper-base only if the hub cannot be reached).

    Args:
        name: the encoder's name in the model's configuration.
        folder: of the model.
        given: the user's choice.

    Raises:
        UserError: if ``given`` is not an encoder, or Whisper-base cannot be built.
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
    if Path(name).name == WHISPER_BASE and not (name == f"openai/{WHISPER_BASE}" and hub_reachable()):
        try:
            return str(convert_whisper_base(cache_folder() / WHISPER_BASE)[0])
        except UserError as error:
            where = "or say where it is: encoder (--encoder)"
            raise UserError(f"the model's encoder, {WHISPER_BASE}: {error}; {where}") from None
    return name


def keep_encoder(name: str, folder: Path, target: Path) -> str:
    """Return a permanent folder of an encoder (`locate_encoder`): one in a model's ``folder`` in the cache is copied.

    The copy is ``target``; if it exists already, it is used (raises UserError if it is another encoder's).
    """
    if folder not in Path(name).parents or cache_folder() / "objects" not in folder.parents:
        return name
    if target.exists():
        files = [path.relative_to(name) for path in Path(name).rglob("*") if path.is_file()]
        if not all((target / f).is_file() and filecmp.cmp(name / f, target / f, shallow=False) for f in files):
            raise UserError(f"{target}: is not the encoder of {folder}: take another --training.exp_dir")
    else:
        with replacing_folder(target) as new:
            shutil.copytree(name, new)
    return str(target)


OWN = {WEIGHTS, CONFIG, TOKENIZER, CHECKSUMS, CALIBRATION, CARD, ENCODER_FOLDER, ".gitattributes"}
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.json")


def save_model(
    loaded: ModelBundle,
    folder: Path,
    encoder_name: str,
    encoder_folder: Optional[Path],
    include_encoder: bool = False,
    half: bool = False,
) -> None:
    """Write a model folder.

    If the model's weights include all of the encoder's, only config.json of its folder is needed, and is always copied.
    The folder of an encoder that is frozen, even in part (``kind: split``), is copied with ``include_encoder``;
    otherwise the model names it.

    Args:
        folder: a new or empty folder, or a model folder, which is replaced.
        encoder_name: the encoder's name in the original configuration.
        encoder_folder: the encoder's folder; None for an encoder from the hub.
        half: write the weights in float16.

    Raises:
        UserError: if the folder contains anything else, the encoder has no folder, or the model cannot be written.
            Existing files are then kept.
    """
    check_target(folder)
    config = loaded.config
    frozen = bool(loaded.model.encoder.frozen_prefixes())
    if encoder_folder is None and (include_encoder or not frozen):
        raise UserError(
            f"{folder}: the encoder {encoder_name} is not in a folder, so that it cannot be put in; save it "
            "with transformers' save_pretrained and give it as encoder="
        )
    own_encoder = include_encoder or not frozen
    texts = {
        CONFIG: _config_text(config, ENCODER_FOLDER if own_encoder else encoder_name, not frozen),
        TOKENIZER: loaded.tokenizer.model,
        CARD: model_card(loaded, encoder_name, own_encoder).encode(),
    }
    calibration = loaded.folder / CALIBRATION if loaded.folder is not None else None
    if calibration is not None and calibration.is_file():
        check_links([calibration])
        texts[CALIBRATION] = calibration.read_bytes()
    weights = loaded.model.checkpoint_state()
    if half:
        weights = {k: v.half() if v.dtype == torch.float32 else v for k, v in weights.items()}
    copied = encoder_folder if own_encoder else None
    _write_model(loaded, folder, weights, texts, copied, () if frozen else WEIGHT_FILES)


def save_with_biases(loaded: ModelBundle, folder: Path, search: SearchOptions) -> None:
    """Write a copy of a model's folder with ``search.token_bias`` in its joiner, so that decoding needs no option.

    The calibration is left out: it was fitted to other scores.

    Args:
        loaded: the model; its folder is copied with the adapters, number types and encoder that it has.
        folder: a new or empty folder.
        search: its other options are not stored.

    Raises:
        UserError: the model has no folder, or the target is not empty or cannot be written.
    """
    if loaded.folder is None:
        raise UserError(f"{folder}: the model has no folder that could be copied")
    taken = folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir())))
    if url_of(folder) is not None or taken:
        raise UserError(f"{url_of(folder) or folder}: expected a new or empty folder of this machine")
    weights = checkpoint.read_tensors(loaded.folder / WEIGHTS)
    bias = weights["joiner.output.bias"]
    weights["joiner.output.bias"] = (bias.float() + torch.from_numpy(loaded.tokenizer.bias_of(search))).to(bias.dtype)
    files = [file for name in (CONFIG, TOKENIZER, CARD) if (file := loaded.folder / name).is_file()]
    check_links(files)
    encoder = loaded.folder / ENCODER_FOLDER
    texts = {file.name: file.read_bytes() for file in files}
    _write_model(loaded, folder, weights, texts, encoder if encoder.is_dir() else None)


def _write_model(
    loaded: ModelBundle,
    folder: Path,
    weights: Dict[str, torch.Tensor],
    texts: Dict[str, bytes],
    encoder_folder: Optional[Path],
    skip: Sequence[str] = (),
) -> None:
    """Write a model folder completely or not at all; an existing one is replaced.

    Args:
        loaded: the model that is written; links in its own encoder folder are refused.
        encoder_folder: copied as well, without the files that match ``skip``.

    Raises:
        UserError: it cannot be written. Existing files are then kept.
    """
    with replacing_folder(folder) as new:
        checkpoint.write_folder(new, {WEIGHTS: weights}, texts)
        if encoder_folder is not None:
            if loaded.folder is not None and loaded.folder in encoder_folder.parents:
                check_links(encoder_folder.iterdir())
            shutil.copytree(encoder_folder, new / ENCODER_FOLDER, ignore=_only_files(skip))


def check_target(folder: Path) -> None:
    """Check that only a model folder would be replaced (raises UserError)."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder}: is not a folder")
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in OWN) if folder.exists() else []
    if foreign:
        raise UserError(f"{folder}: expected a new or empty folder or a model, found {foreign[0]} in it")


def _only_files(patterns: Sequence[str]) -> Any:
    """Return a filter for `shutil.copytree` that ignores these patterns, folders and hidden files."""
    named = shutil.ignore_patterns(".*", *patterns)

    def ignored(where: str, names: Iterable[str]) -> set:
        names = list(names)
        return set(named(where, names)) | {name for name in names if Path(where, name).is_dir()}

    return ignored


def _config_text(config: Config, encoder: str, is_whole: bool) -> bytes:
    """The sections of the configuration that define the model, without data and training."""
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


def model_card(loaded: ModelBundle, encoder: str, own_encoder: bool) -> str:
    """Return README.md of a model folder."""
    card = render(
        "api/model_card.md.j2",
        loaded=loaded,
        # YAML reads Norwegian, no, as false, unless it is quoted.
        languages=yaml.safe_dump({"language": list(loaded.tasks.languages)}).rstrip(),
        millions=sum(value.numel() for value in loaded.model.checkpoint_state().values()) / 1e6,
        encoder="in `encoder/`" if own_encoder else f"`{encoder}`, which is not in this folder",
    )
    return f"{card}\n"

"""A trained model: tasks, tokenizer and network, built from a configuration or loaded from a model folder."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Tuple

import torch

from tokenverse_pp.base.config import Config, TasksConfig
from tokenverse_pp.base.config_files import load_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import canonical_tag
from tokenverse_pp.data.samplers import load_cuts, open_rounds
from tokenverse_pp.data.tokenizer import Tokenizer, train_tokenizer
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.encoders import build_encoder
from tokenverse_pp.models.encoders.kinds import merge_lora
from tokenverse_pp.models.pretrained_transducer import read_vocabulary, set_sizes
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.tasks import TaskSet, build_tasks
from tokenverse_pp.tasks.lid import language_code, language_token
from tokenverse_pp.tasks.registry import load_plugins_for
from tokenverse_pp.tasks.transcript import is_task_token, turns_of

PRETRAINED = "encoder.backbone."  # prefix of the names of the pretrained encoder's weights


@dataclass
class ModelBundle:
    """A trained model with its tokenizer, tasks and configuration."""

    config: Config
    tasks: TaskSet
    tokenizer: Tokenizer
    model: Transducer
    folder: Optional[Path] = None  # where it was read from


def tasks_of(config: TasksConfig, trust_plugins: bool = False, folder: Optional[Path] = None) -> TaskSet:
    """The tasks of a model's configuration (raises UserError for an unknown task); see `load_plugins_for`."""
    load_plugins_for(config.names, config.plugins, trust_plugins, folder)
    return build_tasks(config.names, config.options())


def spelled_as_before(config: Config) -> List[str]:
    """``tasks.languages`` as spelt in the vocabulary that the run continues from; new languages as configured.

    If ``[FR]`` is in the vocabulary, ``fra`` becomes ``fr``, so that no language gets a second token.
    """
    vocabulary = _vocabulary_before(config)
    if vocabulary is None:
        return config.tasks.languages
    tokens = [piece for piece in vocabulary.pieces() if is_task_token(piece)]
    by_tag = {canonical_tag(language_code(token)): language_code(token) for token in tokens}
    return [
        code if language_token(code) in tokens else by_tag.get(canonical_tag(code) or code, code)
        for code in config.tasks.languages
    ]


def _vocabulary_before(config: Config) -> Optional[Tokenizer]:
    """The tokenizer of the configuration, of the latest checkpoint or of ``training.init_from``, if any."""
    t = config.training
    folders = [Path(str(t.resume)), *reversed(checkpoint.list_checkpoints(Path(t.exp_dir)))]
    if t.init_from:
        source = Path(t.init_from)
        folders += [source, source / "model", *reversed(checkpoint.list_checkpoints(source))]
    files = [Path(config.tokenizer.model)] if config.tokenizer.model else []
    for file in [*files, *(folder / checkpoint.TOKENIZER for folder in folders)]:
        if file.is_file():
            with contextlib.suppress(UserError):  # reported by the code that needs the file
                return Tokenizer.load(file)
    return None


def get_tokenizer(
    config: Config, tasks: TaskSet, start: Optional[Path] = None, base: Optional[Tokenizer] = None
) -> Tokenizer:
    """The tokenizer of a run, with all tokens of ``tasks``.

    It is the first of: the file that the configuration names; that of the checkpoint ``start`` to resume from; ``base``
    (or the vocabulary of a pretrained transducer), extended by missing tokens and characters of ``data.train``; a new
    one, trained on these texts. The texts are those of ``tokenizer.sentences`` cuts (None: all).
    """
    if base is None and start is None and config.model.transducer == "pretrained":
        base = read_vocabulary(config.model.encoder.name).tokenizer
    if config.tokenizer.model:
        tokenizer = Tokenizer.load(config.tokenizer.model)
        if base and not tokenizer.extends(base) and config.model.transducer == "pretrained":
            raise UserError(
                f"--tokenizer.model={config.tokenizer.model}: it does not extend the vocabulary of "
                f"{config.model.encoder.name}, which --model.transducer=pretrained takes over: leave it out"
            )
    elif start:
        tokenizer = Tokenizer.load(start / checkpoint.TOKENIZER)
    else:
        count = config.tokenizer.sentences
        cuts = load_cuts(config.data.train) if count is None else open_rounds(config.data, 0).sample(count)
        texts = (turn.text for cut in cuts for turn in turns_of(cut))
        if base:
            return base.extended(tasks.symbols, texts)
        tokenizer = train_tokenizer(texts, tasks, config.tokenizer.vocab_size)
    try:
        tokenizer.check(tasks)
    except UserError as error:
        where = f"--tokenizer.model={config.tokenizer.model}" if config.tokenizer.model else start
        raise UserError(f"{where}: {error}; --training.init_from a model adds what it lacks, in a new run") from None
    return tokenizer


def build_model(config: Config, tasks: TaskSet, tokenizer: Tokenizer, foreign: bool = False) -> Transducer:
    """A new model; parameters that are not pretrained are initialised from the seed.

    For a pretrained transducer, this function sets the sizes of predictor and joiner in ``config``; their weights are
    loaded by `tokenverse_pp.training.transfer.start_from_pretrained`.

    ``foreign``: see `tokenverse_pp.models.encoders.kinds.load_backbone`.
    """
    set_sizes(config.model)
    torch.manual_seed(config.training.seed % 2**64)  # torch takes no larger one
    return Transducer(
        config.model, build_encoder(config.model.encoder, foreign), len(tasks.tasks), tokenizer.vocab_size
    )


def pretrained_prefixes(config: Config) -> Tuple[str, ...]:
    """Name prefixes of pretrained parameters, which use the lower learning rate.

    These are the encoder's, and with ``model.transducer=pretrained`` also those of predictor and joiner. A model that
    stores all weights of its encoder has ``random_init`` set; a run that continues from it does not start from random
    weights.
    """
    taken_over = ("predictor.", "joiner.") if config.model.transducer == "pretrained" else ()
    encoder = (PRETRAINED,) if not config.model.encoder.random_init or config.training.init_from else ()
    return (*encoder, *taken_over)


def load_weights(model: Transducer, folder: Path) -> None:
    """Load the weights of a model folder into a model of the same shape (raises UserError)."""
    problem = model.load_checkpoint_state(checkpoint.read_tensors(folder / checkpoint.WEIGHTS))
    if problem:
        raise UserError(f"{folder / checkpoint.WEIGHTS}: does not fit the model: {problem}")


def check_vocabulary(folder: Path, tokenizer: Tokenizer) -> None:
    """Check that a model folder was trained with the same vocabulary (raises UserError)."""
    theirs = Tokenizer.load(folder / checkpoint.TOKENIZER)
    if theirs.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{folder}: trained with another vocabulary ({theirs.vocab_size} tokens, ours has {tokenizer.vocab_size}); "
            f"use its own: --tokenizer.model {folder / checkpoint.TOKENIZER}"
        )


def find_model(path: Path) -> Path:
    """A model folder: the path itself, or ``model/`` or the latest checkpoint of an experiment folder."""
    for folder in (path, path / "model", *reversed(checkpoint.list_checkpoints(path))):
        if (folder / checkpoint.WEIGHTS).is_file():
            if (folder / "config.json").is_file() and not (folder / checkpoint.CONFIG).exists():
                raise UserError(
                    f"{folder}: a transformers model, which can be the encoder of a training (--model.encoder.name), "
                    f"not a model of this package: it has no {checkpoint.CONFIG}"
                )
            return folder
    if (path / "export.json").is_file():
        raise UserError(f"{path}: an export, which runs without torch (its README.md says how); expected a model")
    raise UserError(f"{path}: no model here: expected a folder with {checkpoint.WEIGHTS}, or an experiment folder")


def own_encoder(folder: Path, name: str) -> Optional[Path]:
    """The pretrained encoder that a model folder contains under the configured name, or None."""
    path = folder / name
    return path if name and (path / "config.json").is_file() else None


def load_model(
    path: Path, encoder_name: str = "", trust_plugins: bool = False, foreign: Optional[bool] = None
) -> ModelBundle:
    """Read a model folder, checkpoint or experiment folder.

    Args:
        encoder_name: hub name or path of the pretrained encoder, if it is not the one in the configuration.
        trust_plugins: run the task files that the model names (for your own: `tokenverse_pp.tasks.load_plugins`).
        foreign: see `build_model`; by default true without ``encoder_name``.

    Raises:
        UserError: the folder is damaged or not a model, or a task needs a file that is not trusted or cannot be run.
    """
    folder = find_model(path)
    checkpoint.check_model(folder)
    config = load_config(folder / checkpoint.CONFIG)
    name = config.model.encoder.name
    foreign = not encoder_name if foreign is None else foreign
    if encoder_name:
        config.model.encoder.name = encoder_name
    elif own_encoder(folder, name):
        config.model.encoder.name = str(own_encoder(folder, name))
    tasks = tasks_of(config.tasks, trust_plugins, folder)
    tokenizer = Tokenizer.load(folder / checkpoint.TOKENIZER)
    tokenizer.check(tasks)
    model = build_model(config, tasks, tokenizer, foreign=foreign)
    load_weights(model, folder)
    if config.model.encoder.lora_rank:
        merge_lora(model.encoder.backbone)  # type: ignore[arg-type]
        config.model.encoder.lora_rank = 0
    return ModelBundle(config, tasks, tokenizer, model.eval(), folder)

"""Checkpoints of a run: writing and reading them, the one to resume from, and averages of weights.

A checkpoint records the code, the libraries and the corpora that it was made with. On resume, what has changed since is
reported or refused.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import lhotse
import torch
import transformers
from torch import Tensor

import tokenverse_pp
from tokenverse_pp.base.config import Config
from tokenverse_pp.base.config_files import load_config, save_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.samplers import SamplerState
from tokenverse_pp.data.sources import CutSource
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import check_vocabulary, load_weights
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.training.steps import Progress

LOG = logging.getLogger(__name__)


def versions() -> Dict[str, str]:
    """Versions of what decides the numbers."""
    return {
        "tokenverse_pp": tokenverse_pp.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "lhotse": lhotse.__version__,
    }


def git_commit() -> Optional[str]:
    """The commit of the checkout that the package runs from, with ``+`` for changes since; None outside of one."""
    folder = Path(tokenverse_pp.__file__).parent
    git = ["git", "-c", "core.fsmonitor=false", "-C", str(folder)]  # a command that a repository may name
    try:
        run = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=30)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", "."], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() + ("+" if changed.stdout.strip() else "")


def fingerprints(sources: Sequence[CutSource]) -> List[Dict[str, Any]]:
    """Path, bytes and SHA-256 of the manifests of each corpus."""
    return [source.fingerprint() for source in sources]


def changed_corpus(before: Sequence[Dict[str, Any]], now: Sequence[Dict[str, Any]]) -> Optional[str]:
    """What has changed in the corpora, in a few words, or None; a file that was moved has not changed."""
    if len(before) != len(now):
        return f"{len(now)} corpora, {len(before)} at the checkpoint"
    for old, new in zip(before, now):
        if old["sha256"] != new["sha256"]:
            return f"{new['path']} has changed ({old['bytes']} bytes at the checkpoint, {new['bytes']} now)"
    return None


# Options that say where and how long, not what is computed.
UNIMPORTANT = ("training.exp_dir", "training.resume", "training.max_steps", "training.epochs", "training.threads")


def find_start(config: Config, say: Callable[[str], None] = LOG.warning) -> Optional[Path]:
    """The checkpoint that `training.resume` asks for, its files verified; None: start anew.

    Args:
        config: ``auto``: the latest intact checkpoint, if any; damaged ones are skipped. ``true``: the
            latest, which must exist and be intact. ``false``: none may be there. Else the folder of a checkpoint.

    Raises:
        UserError: where there is no such checkpoint.
    """
    exp_dir, wish = Path(config.training.exp_dir), str(config.training.resume)
    found = checkpoint.list_checkpoints(exp_dir)
    mode = wish.lower()
    if mode == "false":
        if found:
            raise UserError(f"{exp_dir} holds checkpoints: pass --training.resume auto, or another exp_dir")
        return None
    if mode == "auto":
        return _newest_whole(exp_dir, found, say)
    if mode == "true" and not found:
        raise UserError(f"--training.resume=true: {exp_dir} holds no checkpoint")
    folder = found[-1] if mode == "true" else Path(wish)
    problem = checkpoint.damage(folder) if folder.is_dir() else f"{folder}: no such folder"
    if problem:
        raise UserError(f"--training.resume={wish}: {problem}")
    return folder


def _newest_whole(exp_dir: Path, found: Sequence[Path], say: Callable[[str], None]) -> Optional[Path]:
    for folder in reversed(found):
        problem = checkpoint.damage(folder)
        if problem is None:
            return folder
        say(f"{problem}; passing over {folder.name}")
    if found:
        raise UserError(f"{exp_dir}: none of its {len(found)} checkpoints is whole; move them away to start anew")
    return None


def set_later_aside(exp_dir: Path, step: int) -> List[Path]:
    """Rename checkpoints after ``step`` to ``.aside``, which the run will write again; drop half-written ones."""
    aside = []
    for folder in checkpoint.list_checkpoints(exp_dir):
        if checkpoint.step_of(folder) > step:
            target = folder.with_name(folder.name + ".aside")
            number = 2
            while target.exists():
                target = folder.with_name(f"{folder.name}.aside{number}")
                number += 1
            folder.rename(target)
            aside.append(target)
    return aside


def check_unchanged(folder: Path, state: Dict[str, Any], corpora: Sequence[Dict[str, Any]], config: Config) -> None:
    """See that tasks and corpora are those of the checkpoint.

    Raises:
        UserError: naming what has changed; changed corpora are accepted with ``training.allow_changed_data``.
    """
    names = list(config.tasks.names)
    if state.get("tasks", names) != names:
        raise UserError(f"{folder}: its tasks are {', '.join(state['tasks'])}, not {', '.join(names)}")
    changed = changed_corpus(state.get("corpora", corpora), corpora)
    if changed and not config.training.allow_changed_data:
        raise UserError(f"{folder}: --data.train: {changed}; pass --training.allow_changed_data true to go on with it")


def changed_options(folder: Path, config: Config) -> List[str]:
    """``name: old -> new`` of each option that was another one at the checkpoint."""
    old, new = (dict(_flat(dataclasses.asdict(c))) for c in (load_config(folder / checkpoint.CONFIG), config))
    return [
        f"{name}: {old[name]} -> {value}"
        for name, value in new.items()
        if old[name] != value and name not in UNIMPORTANT
    ]


def _flat(options: Dict[str, Any], prefix: str = "") -> Iterator[Tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


FORMAT = 2  # of state.json


class Saver:
    """Writes and reads the folders of one run (the first rank writes, all ranks read).

    Args:
        config: with what is kept.
        model: not wrapped.
        optimizer: of its parameters.
        scaler: loss scaling; a disabled one has an empty state.
        tokenizer: its vocabulary.
        world_size: number of ranks.
    """

    def __init__(
        self,
        config: Config,
        model: Transducer,
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        tokenizer: Tokenizer,
        world_size: int,
    ):
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.tokenizer = tokenizer
        self.exp_dir = Path(config.training.exp_dir)
        period = config.training.average_period
        self.average = RunningAverage(period) if period else None
        self.origin: Dict[str, Any] = {
            "format": FORMAT,
            "world_size": world_size,
            "seed": config.training.seed,
            "average_period": period,
            "tasks": list(config.tasks.names),
            "git": git_commit(),
            "versions": versions(),
        }

    def prepare(self, corpora: List[Dict[str, Any]]) -> None:
        """Make the experiment folder, write the resolved configuration and the tokenizer into it."""
        self.origin["corpora"] = corpora
        try:
            self.exp_dir.mkdir(parents=True, exist_ok=True)
            save_config(self.config, self.exp_dir / checkpoint.CONFIG)
            self.tokenizer.save(self.exp_dir / checkpoint.TOKENIZER)
        except OSError as error:
            raise UserError(f"--training.exp_dir: {self.exp_dir}: cannot be written: {error.strerror}") from None
        for end in ("tmp", "old"):
            for left in (self.exp_dir / "checkpoints").glob(f"step-*.{end}"):
                shutil.rmtree(left, ignore_errors=True)

    def save(self, progress: Progress) -> None:
        """Write a checkpoint and delete those that need not be kept."""
        state = {
            **self.origin,
            "step": progress.step,
            "skipped_steps": progress.skipped_steps,
            **progress.place._asdict(),
            "bad_steps": progress.bad_steps,
            "bad_in_a_row": progress.bad_in_a_row,
            "valid": finite(progress.valid),
            "scaler": self.scaler.state_dict(),
        }
        tensors = {
            checkpoint.WEIGHTS: self.model.checkpoint_state(),
            checkpoint.OPTIMIZER: checkpoint.optimizer_tensors(self.optimizer),
        }
        if self.average is not None and self.average.tensors:
            tensors[checkpoint.AVERAGE] = self.average.tensors
        texts = {**self._texts(), checkpoint.STATE: json.dumps(state, indent=1).encode()}
        checkpoint.write_folder(checkpoint.checkpoint_dir(self.exp_dir, progress.step), tensors, texts)
        t = self.config.training
        retain(self.exp_dir, t.keep_last, t.keep_best, t.best_by)

    def load(self, folder: Path) -> Tuple[Progress, Dict[str, Any]]:
        """Take weights, optimiser, loss scale and running average from a verified checkpoint -> how far it was."""
        check_vocabulary(folder, self.tokenizer)
        state = checkpoint.read_state(folder)
        path = folder / checkpoint.OPTIMIZER
        load_weights(self.model, folder)
        unread = self.model.unread(checkpoint.read_names(folder / checkpoint.WEIGHTS))
        checkpoint.load_optimizer(self.optimizer, checkpoint.read_tensors(path), path, bool(unread))
        if self.scaler.is_enabled() and state.get("scaler"):
            try:
                self.scaler.load_state_dict(state["scaler"])
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise UserError(f"{folder / checkpoint.STATE}: 'scaler': not as it was written: {error}") from None
        if self.average is not None:
            self._load_average(folder, state)
        progress = Progress(
            state["step"],
            state.get("skipped_steps", 0),  # older runs counted them in their schedules
            SamplerState(state["epoch"], state.get("round", 0), state["batch"]),
            state.get("bad_steps", 0),
            state.get("bad_in_a_row", 0),
            state.get("valid"),
        )
        return progress, state

    def _load_average(self, folder: Path, state: Dict[str, Any]) -> None:
        assert self.average is not None
        period = state.get("average_period", 0)
        if period != self.average.period:
            raise UserError(
                f"{folder}: its running average has --training.average_period={period}, not {self.average.period}"
            )
        if state["step"] >= period:
            self.average.tensors = checkpoint.read_tensors(folder / checkpoint.AVERAGE)

    def write_model(self) -> Path:
        """Average the last checkpoints into ``model/``."""
        last = checkpoint.list_checkpoints(self.exp_dir)[-self.config.training.average_last :]
        period = self.config.training.average_period
        if period and period <= checkpoint.step_of(last[0]) <= checkpoint.step_of(last[-1]) - period:
            weights = average_between(last[0], last[-1])
        else:
            weights = average(last)
        folder = self.exp_dir / "model"
        checkpoint.write_folder(folder, {checkpoint.WEIGHTS: weights}, self._texts())
        return folder

    def _texts(self) -> Dict[str, bytes]:
        """The files of a model folder beside its weights."""
        path = self.exp_dir / checkpoint.CONFIG
        return {checkpoint.CONFIG: path.read_bytes(), checkpoint.TOKENIZER: self.tokenizer.model}


def finite(scores: Optional[Dict[str, float]]) -> Optional[Dict[str, float]]:
    """Scores without those that are no numbers, which JSON has no words for."""
    if scores is None:
        return None
    return {key: value for key, value in scores.items() if value == value and abs(value) != float("inf")}


def retain(exp_dir: Path, last: int, best: int, by: str) -> None:
    """Delete all checkpoints but the ``last`` ones and the ``best`` by a valid score (lower is better)."""
    found = checkpoint.list_checkpoints(exp_dir)
    scored = []
    for folder in found if best else []:
        valid = checkpoint.read_state(folder).get("valid") or {}
        if by in valid:
            scored.append((valid[by], folder))
    kept = {*found[-last:], *(folder for _, folder in sorted(scored)[:best])}
    for folder in found:
        if folder not in kept:
            shutil.rmtree(folder)


PRETRAINED = "encoder.backbone."  # prefix of the names of the pretrained encoder's weights


def average(folders: Sequence[Path]) -> Dict[str, Tensor]:
    """The mean of the weights of several checkpoints (float64 inside); what is not floating point is the last's.

    Raises:
        UserError: where one has other tensors than the last.
    """
    assert folders, "no checkpoint to average"
    last = checkpoint.read_tensors(folders[-1] / checkpoint.WEIGHTS)
    total = {k: torch.zeros_like(v, dtype=torch.float64) for k, v in last.items() if v.is_floating_point()}
    for folder in folders:
        weights = last if folder == folders[-1] else checkpoint.read_tensors(folder / checkpoint.WEIGHTS)
        _check_same(weights, last, folder, folders[-1])
        for key, value in total.items():
            value += weights[key]
    return {k: (total[k] / len(folders)).to(v.dtype) if k in total else v for k, v in last.items()}


def _check_same(found: Dict[str, Tensor], wanted: Dict[str, Tensor], folder: Path, last: Path) -> None:
    """See that the tensors of a checkpoint are those of the last one (raises UserError).

    Layers of the pretrained encoder that the last one lacks are passed over: older versions saved some that nothing
    reads (`Transducer.unread`).
    """
    missing = sorted(set(wanted) - set(found))
    foreign = sorted(key for key in set(found) - set(wanted) if not key.startswith(PRETRAINED))
    for what, keys in (("lacks", missing), ("has, unlike that,", foreign)):
        if keys:
            raise UserError(f"{folder}: cannot be averaged with {last.name}: it {what} tensor {keys[0]}")
    for key, value in wanted.items():
        if found[key].shape != value.shape:
            shapes = f"{tuple(found[key].shape)}, not {tuple(value.shape)}"
            raise UserError(f"{folder}: cannot be averaged with {last.name}: its tensor {key} has shape {shapes}")


class RunningAverage:
    """The mean of the weights after steps p, 2p, 3p, .. of a run, p being ``period``.

    The same as ``update_averaged_model`` of icefall (icefall/checkpoint.py): after each period,
    average = (period / step) * weights + (1 - period / step) * average; kept in float64.
    """

    def __init__(self, period: int):
        self.period = period
        self.tensors: Dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, weights: Dict[str, Tensor], step: int) -> None:
        """Take in the weights after ``step`` steps, if it is a multiple of the period."""
        if step % self.period:
            return
        share = self.period / step
        for key, value in weights.items():
            if value.is_floating_point():
                new = value.detach().to("cpu", torch.float64)
                old = self.tensors.get(key)
                self.tensors[key] = new.clone() if old is None else old.mul_(1 - share).add_(new, alpha=share)


def average_between(start: Path, end: Path) -> Dict[str, Tensor]:
    """The mean of the weights over all the periods after one checkpoint, up to another.

    Both hold the mean since the run began, after s and e steps: (e * mean_e - s * mean_s) / (e - s), as icefall's
    ``average_checkpoints_with_averaged_model``. Steps are counted in whole periods.

    Raises:
        UserError: where a checkpoint has no running average (``training.average_period`` was 0), or one of other
            tensors.
    """
    means, steps = [], []
    for folder in (start, end):
        if not (folder / checkpoint.AVERAGE).is_file():
            raise UserError(f"{folder}: no running average: the run had --training.average_period=0")
        means.append(checkpoint.read_tensors(folder / checkpoint.AVERAGE))
        state = checkpoint.read_state(folder)
        steps.append(state["step"] - state["step"] % state["average_period"])
    weights = checkpoint.read_tensors(end / checkpoint.WEIGHTS)
    averaged = {key: value for key, value in means[1].items() if key in weights}
    _check_same({key: value for key, value in means[0].items() if key in weights}, averaged, start, end)
    if steps[0] >= steps[1]:
        raise UserError(f"{start} .. {end}: no period of the running average lies between them")
    scale = [step / (steps[1] - steps[0]) for step in steps]
    return {
        key: (averaged[key] * scale[1] - means[0][key] * scale[0]).to(value.dtype) if key in averaged else value
        for key, value in weights.items()
    }

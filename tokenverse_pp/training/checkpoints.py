"""The checkpoints of a run: which one to resume from, writing, reading, retention, and averages of weights.

A checkpoint records its code, libraries and corpora. On resume, changes since then are reported or refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import IO, Any, Callable, Collection, Dict, List, Optional, Sequence, Tuple

import lhotse
import torch
import transformers
from torch import Tensor

import tokenverse_pp
from tokenverse_pp.base.config import Config
from tokenverse_pp.base.config_files import load_config, options_of, save_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import claimed
from tokenverse_pp.data.distributed import gathered
from tokenverse_pp.data.samplers import SamplerState
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import PRETRAINED, check_vocabulary, load_weights, pretrained_prefixes
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.training.optim import parameter_groups
from tokenverse_pp.training.steps import Progress

LOG = logging.getLogger(__name__)


def versions() -> Dict[str, str]:
    """Return the versions of the software on which a run's numbers depend."""
    return {
        "tokenverse_pp": tokenverse_pp.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "lhotse": lhotse.__version__,
    }


def git_commit() -> Optional[str]:
    """The git commit of the package, with ``+`` if files have changed since; None if it is not a checkout."""
    folder = Path(tokenverse_pp.__file__).parent
    git = ["git", "-c", "core.fsmonitor=false", "-C", str(folder)]  # a repository may name a command here
    try:
        run = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=30)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", "."], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() + ("+" if changed.stdout.strip() else "")


# Options that may change on resume without a message: they say where and how long, not what is computed.
UNIMPORTANT = tuple(
    f"training.{name}" for name in ("exp_dir", "storage", "resume", "max_steps", "epochs", "threads", "peer_timeout")
)


def find_start(config: Config, say: Callable[[str], None] = LOG.warning) -> Optional[Path]:
    """Return the checkpoint that ``training.resume`` selects, verified, or None to start a new run.

    Args:
        config: ``training.resume`` is ``auto`` (the latest intact checkpoint, if any; damaged ones are skipped),
            ``true`` (the latest one, which must exist and be intact), ``false`` (there must be none) or a folder.
        say: called with a line for each damaged checkpoint that is skipped.

    Raises:
        UserError: there is no such checkpoint, or the folder is that of a saved model.
    """
    exp_dir, wish = Path(config.training.exp_dir), str(config.training.resume)
    found = checkpoint.list_checkpoints(exp_dir)
    mode = wish.lower()
    if not found and (exp_dir / checkpoint.WEIGHTS).exists():
        raise UserError(
            f"--training.exp_dir: {exp_dir} holds a model, whose configuration and tokenizer a run would replace: "
            "name another folder; --training.init_from starts from a model"
        )
    if mode == "false":
        if found:
            raise UserError(f"{exp_dir} holds checkpoints: pass --training.resume auto, or another exp_dir")
        return None
    if mode == "auto":
        for folder in reversed(found):
            problem = checkpoint.damage(folder)
            if problem is None:
                return folder
            say(f"{problem}; {folder.name} is skipped")
        if found:
            raise UserError(
                f"{exp_dir}: none of its {len(found)} checkpoints is intact; move them away to start a new run"
            )
        return None
    if mode == "true" and not found:
        raise UserError(f"--training.resume=true: {exp_dir} holds no checkpoint")
    folder = found[-1] if mode == "true" else Path(wish)
    problem = checkpoint.damage(folder) if folder.is_dir() else f"{folder}: no such folder"
    if problem:
        raise UserError(f"--training.resume={wish}: {problem}")
    return folder


def set_later_aside(exp_dir: Path, step: int) -> List[Path]:
    """Rename checkpoints after ``step`` to ``.aside``: the run will write them again. Returns the new names."""
    later = [folder for folder in checkpoint.list_checkpoints(exp_dir) if checkpoint.step_of(folder) > step]
    return [set_aside(folder) for folder in later]


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint to ``.aside`` (or ``.aside2``, ..); return the new name."""
    target = folder.with_name(folder.name + ".aside")
    number = 2
    while target.exists():
        target = folder.with_name(f"{folder.name}.aside{number}")
        number += 1
    return folder.rename(target)


def check_unchanged(folder: Path, state: Dict[str, Any], corpora: Sequence[Dict[str, Any]], config: Config) -> None:
    """Check that tasks and corpora are those of the checkpoint; a corpus may have moved.

    Raises:
        UserError: naming the change; ``training.allow_changed_data`` accepts other corpora.
    """
    names = list(config.tasks.names)
    if state.get("tasks", names) != names:
        raise UserError(f"{folder}: its tasks are {', '.join(state['tasks'])}, not {', '.join(names)}")
    before, changed = state.get("corpora", corpora), ""
    if len(before) != len(corpora):
        changed = f"{len(corpora)} corpora, {len(before)} at the checkpoint"
    for old, new in zip(before, corpora):
        if not changed and old["sha256"] != new["sha256"]:
            changed = f"{new['path']} has changed ({old['bytes']} bytes at the checkpoint, {new['bytes']} now)"
    if changed and not config.training.allow_changed_data:
        raise UserError(
            f"{folder}: --data.train: {changed}; pass --training.allow_changed_data true to continue with it"
        )


def changed_options(before: Config, now: Config) -> List[str]:
    """``name: old -> new`` for each option that has changed."""
    pairs = zip(options_of(before), options_of(now))
    quiet = set(UNIMPORTANT) - ({"training.max_steps"} if now.optim.decay == "cosine" else set())  # the rates end there
    return [f"{name}: {old} -> {new}" for (name, old, _), (_, new, _) in pairs if old != new and name not in quiet]


RUNNING = ".running"  # file in the experiment folder, locked by the process that trains there
# Of state.json. Up to 2, `optim.layer_decay` counted also the layers above the highest one that runs.
FORMAT = 3


def recover_run(exp_dir: Path) -> None:
    """`checkpoint.recover` the checkpoints and the final model of a run, unless another process trains there now."""
    end = checkpoint.OLD
    left = [*exp_dir.glob(f"model{end}"), *(exp_dir / "checkpoints").glob(f"step-*{end}")]
    with contextlib.suppress(OSError, UserError):  # which `Saver.prepare` tells
        if left:
            with claimed(exp_dir / RUNNING):
                for old in left:
                    checkpoint.recover(old.with_name(old.name[: -len(end)]))


class Saver:
    """Writes and reads the checkpoints of a run: some ranks write, all ranks read.

    ``model``: not wrapped for DDP. ``scaler``: of the loss; a disabled one has an empty state.
    """

    def __init__(
        self,
        config: Config,
        model: Transducer,
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        tokenizer: Tokenizer,
        world_size: int,
        undecayed: Collection[str] = (),
    ):
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.tokenizer = tokenizer
        self.undecayed = undecayed
        self.exp_dir = Path(config.training.exp_dir)
        period = config.training.average_period
        self.average = RunningAverage(period) if period else None
        self.claim: Optional[IO[bytes]] = None  # of the experiment folder
        self.origin: Dict[str, Any] = {
            "format": FORMAT,
            "world_size": world_size,
            "seed": config.training.seed,
            "average_period": period,
            "tasks": list(config.tasks.names),
            "git": git_commit(),
            "versions": versions(),
        }

    def prepare(self, corpora: List[Dict[str, Any]], url: Optional[str] = None) -> None:
        """Create the experiment folder with the resolved configuration and the tokenizer, and claim it for this run.

        ``url``: where the folder is uploaded to. Raises UserError if it cannot be written, or another run uses it.
        """
        self.origin["corpora"] = corpora
        named = dataclasses.replace(self.config.training, exp_dir=url or self.config.training.exp_dir)
        try:
            self.exp_dir.mkdir(parents=True, exist_ok=True)
            self.claim = claimed(self.exp_dir / RUNNING)
            save_config(dataclasses.replace(self.config, training=named), self.exp_dir / checkpoint.CONFIG)
            self.tokenizer.save(self.exp_dir / checkpoint.TOKENIZER)
        except OSError as error:
            raise UserError(f"--training.exp_dir: {self.exp_dir}: cannot be written: {error.strerror}") from None
        except UserError as error:
            raise UserError(f"--training.exp_dir: another run trains there: {error}") from None
        for end in (checkpoint.TEMPORARY, checkpoint.OLD):
            for left in (self.exp_dir / "checkpoints").glob(f"step-*{end}"):
                shutil.rmtree(left, ignore_errors=True)

    def release(self) -> None:
        """Let other processes train in the experiment folder."""
        if self.claim is not None:
            self.claim.close()

    def save(self, progress: Progress, write: bool = True) -> None:
        """Write a checkpoint. All ranks call this, as a sharded model is gathered; ``write``: this rank writes."""
        tensors = {
            checkpoint.WEIGHTS: gathered(self.model.checkpoint_state(), write),
            checkpoint.OPTIMIZER: gathered(checkpoint.optimizer_tensors(self.optimizer), write),
        }
        if not write:
            return
        valid = progress.valid and {key: value for key, value in progress.valid.items() if math.isfinite(value)}
        state = {
            **self.origin,
            "step": progress.step,
            "skipped_steps": progress.skipped_steps,
            **progress.place._asdict(),
            "bad_steps": progress.bad_steps,
            "bad_in_a_row": progress.bad_in_a_row,
            "valid": valid,  # JSON has no NaN
            "best": progress.best,
            "worse": progress.worse,
            "scaler": self.scaler.state_dict(),
        }
        if self.average is not None and self.average.tensors:
            tensors[checkpoint.AVERAGE] = self.average.tensors
        texts = {**self._texts(), checkpoint.STATE: json.dumps(state, indent=1).encode()}
        checkpoint.write_folder(checkpoint.checkpoint_dir(self.exp_dir, progress.step), tensors, texts)

    def load(self, folder: Path, write: bool = True) -> Tuple[Progress, Dict[str, Any]]:
        """Load weights, optimiser, loss scale and running average from a verified checkpoint; return its state.

        ``write``: as in `save`; other ranks do not need the running average, twice the size of the model.
        """
        check_vocabulary(folder, self.tokenizer)
        state = checkpoint.read_state(folder)
        path = folder / checkpoint.OPTIMIZER
        load_weights(self.model, folder)
        unread = self.model.unread(checkpoint.read_names(folder / checkpoint.WEIGHTS))
        # Groups, and so the numbers of parameters, depend on the learning rates, which may have changed (see `FORMAT`).
        theirs = load_config(folder / checkpoint.CONFIG)
        top = len(self.model.encoder.backbone.layers) if state.get("format") in (None, 1, 2) else None
        groups = parameter_groups(self.model, theirs.optim, pretrained_prefixes(theirs), self.undecayed, top)
        order = [parameter for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
        checkpoint.load_optimizer(self.optimizer, checkpoint.read_tensors(path), path, bool(unread), order)
        if self.scaler.is_enabled() and state.get("scaler"):
            try:
                self.scaler.load_state_dict(state["scaler"])
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise UserError(f"{folder / checkpoint.STATE}: 'scaler': not as it was written: {error}") from None
        if self.average is not None:
            period = state.get("average_period", 0)
            if period != self.average.period:
                mine = self.average.period
                raise UserError(f"{folder}: its running average has --training.average_period={period}, not {mine}")
            if write and state["step"] >= period:
                self.average.tensors = checkpoint.read_tensors(folder / checkpoint.AVERAGE)
        progress = Progress(
            state["step"],
            state.get("skipped_steps", 0),  # older runs counted them in their schedules
            SamplerState(state["epoch"], state.get("round", 0), state["batch"]),
            state.get("bad_steps", 0),
            state.get("bad_in_a_row", 0),
            state.get("valid"),
            state.get("best"),
            state.get("worse", 0),
        )
        return progress, state

    def write_model(self) -> str:
        """Write the mean of the last (``training.patience``: best) checkpoints to ``model/``; return a description.

        The checkpoint of step 0 (``training.valid_first``) can be the best one, but is not one of the last, unless it
        is the only one: it has not been trained, and has no running average.
        """
        t = self.config.training
        best = best_checkpoints(self.exp_dir, t.best_by)[: max(1, t.keep_best)] if t.patience else []
        found = checkpoint.list_checkpoints(self.exp_dir)
        trained = [folder for folder in found if checkpoint.step_of(folder) > 0]
        last = sorted(best) or (trained or found)[-t.average_last :]
        period = t.average_period
        if not best and period and period <= checkpoint.step_of(last[0]) <= checkpoint.step_of(last[-1]) - period:
            weights = average_between(last[0], last[-1])
        else:
            weights = average(last)
        checkpoint.write_folder(self.exp_dir / "model", {checkpoint.WEIGHTS: weights}, self._texts())
        names = ", ".join(path.name for path in last)
        return f"best by {t.best_by}: {names}" if best else "average of the last checkpoints"

    def _texts(self) -> Dict[str, bytes]:
        """The other files of a model folder."""
        path = self.exp_dir / checkpoint.CONFIG
        return {checkpoint.CONFIG: path.read_bytes(), checkpoint.TOKENIZER: self.tokenizer.model}


def retain(exp_dir: Path, last: int, best: int, by: str) -> None:
    """Delete all checkpoints except the ``last`` ones and the ``best`` by a validation score (lower is better)."""
    found = checkpoint.list_checkpoints(exp_dir)
    kept = {*found[-last:], *(best_checkpoints(exp_dir, by)[:best] if best else ())}
    for folder in found:
        if folder not in kept:
            # If another program reads a file on NFS, part of the folder stays until the next start (`prepare`).
            old = folder.with_name(f"{folder.name}{checkpoint.OLD}")
            shutil.rmtree(old, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.replace(folder, old)
                shutil.rmtree(old, ignore_errors=True)


def best_checkpoints(exp_dir: Path, by: str) -> List[Path]:
    """The checkpoints that have a validation score, the best (lowest) first."""
    scored = []
    for folder in checkpoint.list_checkpoints(exp_dir):
        valid = checkpoint.read_state(folder).get("valid") or {}
        if by in valid:
            scored.append((valid[by], folder))
    return [folder for _, folder in sorted(scored)]


def average(folders: Sequence[Path]) -> Dict[str, Tensor]:
    """The mean of the weights of several checkpoints, summed in float64; other tensors are those of the last one.

    Raises UserError if a checkpoint is damaged, or its tensors differ from those of the last one.
    """
    assert folders, "no checkpoint to average"
    for folder in folders:
        checkpoint.check_model(folder, (checkpoint.WEIGHTS,))
    last = checkpoint.read_tensors(folders[-1] / checkpoint.WEIGHTS)
    total = {k: torch.zeros_like(v, dtype=torch.float64) for k, v in last.items() if v.is_floating_point()}
    for folder in folders:
        weights = last if folder == folders[-1] else checkpoint.read_tensors(folder / checkpoint.WEIGHTS)
        _check_same(weights, last, folder, folders[-1])
        for key, value in total.items():
            value += weights[key]
    return {k: (total[k] / len(folders)).to(v.dtype) if k in total else v for k, v in last.items()}


def _check_same(found: Dict[str, Tensor], wanted: Dict[str, Tensor], folder: Path, last: Path) -> None:
    """Check that a checkpoint has the tensors of the last one (raises UserError).

    It may have more layers of the pretrained encoder: older versions saved unused ones (`Transducer.unread`).
    """
    missing = sorted(set(wanted) - set(found))
    foreign = sorted(key for key in set(found) - set(wanted) if not key.startswith(PRETRAINED))
    for what, keys in (("lacks", missing), ("has the additional", foreign)):
        if keys:
            raise UserError(f"{folder}: cannot be averaged with {last.name}: it {what} tensor {keys[0]}")
    for key, value in wanted.items():
        if found[key].shape != value.shape:
            shapes = f"{tuple(found[key].shape)}, not {tuple(value.shape)}"
            raise UserError(f"{folder}: cannot be averaged with {last.name}: its tensor {key} has shape {shapes}")


class RunningAverage:
    """The mean of the weights after steps p, 2p, 3p, .. of a run (p: ``period``), in float64.

    Like icefall's ``update_averaged_model`` (icefall/checkpoint.py).
    """

    def __init__(self, period: int):
        self.period = period
        self.tensors: Dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, weights: Dict[str, Tensor], step: int) -> None:
        """Add the weights after ``step`` steps, if that is a multiple of the period."""
        if step % self.period:
            return
        share = self.period / step
        for key, value in weights.items():
            if value.is_floating_point():
                new = value.detach().to("cpu", torch.float64)
                old = self.tensors.get(key)
                self.tensors[key] = new.clone() if old is None else old.mul_(1 - share).add_(new, alpha=share)


def average_between(start: Path, end: Path) -> Dict[str, Tensor]:
    """Return the mean of the weights over all periods after one checkpoint, up to another.

    Both hold the mean since the run began, after s and e steps: (e * mean_e - s * mean_s) / (e - s), as icefall's
    ``average_checkpoints_with_averaged_model``. Steps are counted in whole periods.

    Raises UserError if one is damaged, has other tensors, or no running average (``training.average_period`` was 0).
    """
    means, steps = [], []
    for folder in (start, end):
        if not (folder / checkpoint.AVERAGE).is_file():
            raise UserError(f"{folder}: no running average: the run had --training.average_period=0")
        checkpoint.check_model(folder, (checkpoint.AVERAGE, *([checkpoint.WEIGHTS] if folder == end else [])))
        means.append(checkpoint.read_tensors(folder / checkpoint.AVERAGE))
        state = checkpoint.read_state(folder)
        steps.append(state["step"] - state["step"] % state["average_period"])
    weights = checkpoint.read_tensors(end / checkpoint.WEIGHTS)
    averaged = {key: value for key, value in means[1].items() if key in weights}
    _check_same({key: value for key, value in means[0].items() if key in weights}, averaged, start, end)
    if steps[0] >= steps[1]:
        raise UserError(f"{start} .. {end}: there is no period of the running average between them")
    scale = [step / (steps[1] - steps[0]) for step in steps]
    return {
        key: (averaged[key] * scale[1] - means[0][key] * scale[0]).to(value.dtype) if key in averaged else value
        for key, value in weights.items()
    }

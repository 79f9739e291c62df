"""Writing a run's checkpoints and its final model, keeping as many as wanted, and reading one back."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch

from tokenverse_pp.config import Config, save_config
from tokenverse_pp.errors import UserError
from tokenverse_pp.model.transducer import Transducer
from tokenverse_pp.tokenizer import Tokenizer
from tokenverse_pp.training import checkpoint
from tokenverse_pp.training.averaging import RunningAverage, average, average_between
from tokenverse_pp.training.data import Place
from tokenverse_pp.training.provenance import git_commit, versions
from tokenverse_pp.training.setup import check_vocabulary, load_weights

FORMAT = 2  # of state.json


@dataclass
class Progress:
    """How far a run has come: what ``state.json`` holds besides where the run comes from."""

    step: int = 0  # all of them, the skipped ones too
    skipped_steps: int = 0  # that changed no weight: bad ones, and those whose gradients overflowed in fp16
    place: Place = field(default_factory=Place)
    bad_steps: int = 0  # skipped for a loss or gradient that was not finite, in all
    bad_in_a_row: int = 0
    valid: Optional[Dict[str, float]] = None  # scores of this very step

    @property
    def updates(self) -> int:
        """Steps that changed the weights: what learning rate, warm-up and freezing go by."""
        return self.step - self.skipped_steps


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
            Place(state["epoch"], state.get("round", 0), state["batch"]),
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

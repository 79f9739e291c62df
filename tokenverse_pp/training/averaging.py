"""Averages of weights: of checkpoints, and the running average of all steps between two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Sequence

import torch
from torch import Tensor

from tokenverse_pp.errors import UserError
from tokenverse_pp.training import checkpoint

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

"""Task vectors made stronger or weaker at decoding: a dial between precision and recall of a task."""

from __future__ import annotations

import math
from typing import Sequence, Tuple

import torch
from torch import Tensor

from tokenverse_pp.errors import UserError
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.training.setup import Loaded

Scales = Tuple[Tuple[str, float], ...]  # task, what its vector is multiplied by


def read_scales(words: Sequence[str]) -> Scales:
    """``ner=1.5`` -> (ner, 1.5) (raises UserError).

    >>> read_scales(["ner=1.5", "scd=0"])
    (('ner', 1.5), ('scd', 0.0))
    """
    scales = []
    for word in words:
        task, _, number = word.partition("=")
        try:
            scale = float(number)
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale):
            raise UserError(f"--vector-scale: expected TASK=NUMBER such as ner=1.5, got {word!r}")
        scales.append((task, scale))
    return tuple(scales)


def vector_weights(loaded: Loaded, active: TaskSet, scales: Scales = ()) -> Tensor:
    """What each task's vector is multiplied by, (K + 1,): 1 for an active task, 0 for another, or its scale.

    The search goes on allowing the tokens of all active tasks, whatever their scale.

    Raises:
        UserError: for a scale of a task that is not decoded, and for a model without a vector for each task.
    """
    weights = torch.tensor(loaded.tasks.mask(active.names), dtype=torch.float32)
    if not scales:
        return weights
    vectors = loaded.config.model.vectors
    if vectors.placement == "none" or vectors.strategy != "sum":
        raise UserError(
            f"--vector-scale: needs a model with one vector a task (vectors.strategy=sum); this one has "
            f"placement={vectors.placement}, strategy={vectors.strategy}"
        )
    for task, scale in scales:
        if task not in active:
            raise UserError(f"--vector-scale {task}={scale:g}: decoded are {', '.join(active.names)}")
        weights[loaded.tasks.names.index(task)] = scale
    return weights

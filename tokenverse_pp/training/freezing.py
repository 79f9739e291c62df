"""Which layers of a pretrained encoder are trained from which step on (``training.freeze``)."""

from __future__ import annotations

from typing import List, Optional, Sequence

from torch import nn

from tokenverse_pp.errors import UserError
from tokenverse_pp.model.encoder.base import Backbone

ALL = -1


class FreezeSchedule:
    """Stages of a run: ``[step, n]`` trains the top n layers of the encoder's transformer from that step on.

    Layers above the highest one that runs (``encoder.layers``) do not count.

    With n > 0 its final norm is trained too; n = -1 trains all that `EncoderConfig` has not frozen for good (the
    convolutions are, by default). The rest of the model is always trained.

    Args:
        model: not wrapped.
        stages: with steps that rise from 0; empty: everything from the start.

    Raises:
        UserError: where the encoder has not so many layers, or is not trained at all.
    """

    def __init__(self, model: nn.Module, stages: Sequence[Sequence[int]]):
        self.stages = [(step, layers) for step, layers in stages]
        self.layers = ALL  # that are trained now
        encoder = getattr(model, "encoder", None)
        self.backbone: Optional[Backbone] = getattr(encoder, "backbone", None)
        parameters = self.backbone.parameters() if self.backbone is not None else []
        self.trained: List[nn.Parameter] = [p for p in parameters if p.requires_grad]
        if not self.stages:
            return
        if self.backbone is None or not self.trained:
            raise UserError("--training.freeze: nothing of the encoder is trained: expected kind finetune")
        self.highest: int = encoder.highest_layer  # type: ignore[union-attr,assignment]
        wrong = [layers for _, layers in self.stages if layers > self.highest]
        if wrong:
            raise UserError(f"--training.freeze: the encoder has {self.highest} layers, not {wrong[0]}")

    def apply(self, step: int) -> bool:
        """Freeze and unfreeze for a step; True if something has changed since the last call (or the start)."""
        layers = next((n for start, n in reversed(self.stages) if start <= step), ALL)
        if layers == self.layers:
            return False
        self.layers = layers
        top = self._top(layers)
        for parameter in self.trained:
            parameter.requires_grad_(layers == ALL or id(parameter) in top)
        return True

    def _top(self, layers: int) -> set[int]:
        """The ids of the parameters of the top layers and the final norm."""
        if layers <= 0 or self.backbone is None:
            return set()
        modules = list(self.backbone.layers)[: self.highest][-layers:]
        if self.backbone.final_norm is not None:
            modules.append(self.backbone.final_norm)
        return {id(parameter) for module in modules for parameter in module.parameters()}

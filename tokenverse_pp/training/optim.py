"""What is trained, and at which learning rate.

AdamW with three learning rates, the schedules of losses and learning rate, the layers of the encoder that are trained
from which step on (``training.freeze``), and the rows that are trained where only what is new is (``train_only``).
"""

from __future__ import annotations

import math
from typing import Collection, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from tokenverse_pp.base.config import LossConfig, OptimConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.encoders.base import Backbone
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.training.transfer import VOCABULARY_ROWS, Before, old_row_of_each

ALL = -1  # layers of the encoder


def parameter_groups(
    model: nn.Module, config: OptimConfig, pretrained: Tuple[str, ...], undecayed: Collection[str] = ()
) -> List[Dict[str, object]]:
    """Groups for AdamW: each learning rate, with or without weight decay.

    Vectors, biases and norms (one dimension), and the task vectors' tables are not decayed: the latter start at zero,
    and how far they move is what they say.

    Args:
        model: its parameters that require gradients are taken.
        config: learning rates and decay.
        pretrained: name prefixes of the parameters that came with pretrained weights.
        undecayed: names of further parameters whose weights are not to decay.
    """
    groups: Dict[Tuple[float, float], List[nn.Parameter]] = {}
    below = layers_below_top(model) if config.layer_decay != 1 else {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_vector = name.endswith("vectors.table")
            lr = config.vector_lr if is_vector else config.lr
            if name.startswith(pretrained) and "lora_" not in name:
                lr = config.encoder_lr * config.layer_decay ** below.get(id(parameter), 0)
            decays = parameter.ndim > 1 and not is_vector and name not in undecayed
            decay = config.weight_decay if decays else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    return [
        {"params": parameters, "base_lr": lr, "lr": 0.0, "weight_decay": decay}
        for (lr, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def layers_below_top(model: nn.Module) -> Dict[int, int]:
    """How many layers of the pretrained encoder lie between a parameter (its id) and the encoder's output.

    0 for the highest layer and the norm after it; for what comes before the lowest layer, the number of layers.
    """
    backbone = getattr(getattr(model, "encoder", None), "backbone", None)
    if backbone is None:
        return {}
    count = len(backbone.layers)
    below = {id(parameter): count for parameter in backbone.parameters()}
    for number, layer in enumerate(backbone.layers):
        below.update((id(parameter), count - 1 - number) for parameter in layer.parameters())
    if backbone.final_norm is not None:
        below.update((id(parameter), 0) for parameter in backbone.final_norm.parameters())
    return below


def make_optimizer(
    model: nn.Module, config: OptimConfig, pretrained: Tuple[str, ...], undecayed: Collection[str] = ()
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`."""
    groups = parameter_groups(model, config, pretrained, undecayed)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), eps=1e-8)


def lr_factor(step: int, config: OptimConfig, max_steps: int) -> float:
    """The share of the base learning rate at a step (counted from 0)."""
    warm = max(1, config.warmup_steps)
    if step < warm:
        return (step + 1) / warm
    if config.decay == "inverse_sqrt":
        return math.sqrt(warm / (step + 1))
    if config.decay == "cosine":
        done = min(1.0, (step - warm) / max(1, max_steps - warm))
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's base learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def loss_scales(step: int, config: LossConfig) -> Tuple[float, float]:
    """Weights of the simple and the pruned loss (icefall zipformer/train.py): the bounds must be learnt first."""
    done = min(1.0, step / max(1, config.warm_steps))
    return 1.0 - done * (1.0 - config.simple_scale), 0.1 + 0.9 * done


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


class TrainedRows:
    """Which rows of which parameters are trained.

    All other parameters get ``requires_grad`` false when this is made, so that optimiser and DDP leave them out. Of a
    parameter that is trained in part, the gradients of the other rows are set to zero before each update; AdamW then
    does not move them by a bit, as long as it does not decay the weights of this parameter (`partly`).

    Args:
        model: not wrapped.
        before: what the model was before the run.
        tasks: the tasks of the run, in order.
        mode: ``new``: rows of new tokens (predictor's embedding, joiner's output, simple and CTC outputs), and vectors
            of new tasks; ``new_and_joiner``: the whole joiner besides.

    Raises:
        UserError: where nothing is new.
    """

    def __init__(self, model: Transducer, before: Before, tasks: Sequence[str], mode: str):
        self.frozen: Dict[str, Tensor] = {}  # of parameters trained in part: True for rows that are not
        self.parameters: Dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            frozen = _frozen_rows(model, name, parameter, before, tasks)
            if mode == "new_and_joiner" and name.startswith("joiner."):
                continue
            if bool(frozen.all()):
                parameter.requires_grad_(False)
            elif bool(frozen.any()):
                self.frozen[name], self.parameters[name] = frozen, parameter
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(f"--training.train_only={mode}: no task or token is new, there is nothing to train")

    @property
    def partly(self) -> Tuple[str, ...]:
        """Names of the parameters that are trained in part: weight decay must leave them alone."""
        return tuple(self.frozen)

    def mask_gradients(self) -> None:
        """Set the gradients of rows that are not trained to zero (also where they are not finite)."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                self.frozen[name] = frozen = self.frozen[name].to(parameter.grad.device)
                parameter.grad[frozen] = 0

    def count(self, model: nn.Module) -> int:
        """How many numbers of a model are trained."""
        return sum(self._counts(model))

    def _counts(self, model: nn.Module) -> Iterator[int]:
        for name, parameter in model.named_parameters():
            if name in self.frozen:
                yield int((~self.frozen[name]).sum()) * (parameter.numel() // len(parameter))
            elif parameter.requires_grad:
                yield parameter.numel()


def _frozen_rows(model: Transducer, name: str, parameter: nn.Parameter, before: Before, tasks: Sequence[str]) -> Tensor:
    """A flag for each row of a parameter: True where the model had it before the run."""
    rows = len(parameter) if parameter.ndim else 1
    if name in VOCABULARY_ROWS:
        if name.startswith("ctc.") and not before.ctc:
            return torch.zeros(rows, dtype=torch.bool)
        return torch.arange(rows) < before.vocabulary
    table, _, kind = name.partition(".")
    if kind == "table" and table.endswith("vectors"):
        if table not in before.tables:
            return torch.zeros(rows, dtype=torch.bool)
        return ~old_row_of_each(getattr(model, table).strategy, before.tasks, tasks)[1]
    return torch.ones(rows, dtype=torch.bool)

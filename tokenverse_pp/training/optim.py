"""Which parameters are trained, and at which learning rate.

AdamW with three learning rates, schedules of learning rate and losses, layers that are frozen for a time
(``training.freeze``), and parameters of which only some rows are trained (``training.train_only``).
"""

from __future__ import annotations

import math
from typing import Collection, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from tokenverse_pp.base.config import LossConfig, OptimConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.distributed import local, sharded_like
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.training.transfer import VOCABULARY_ROWS, Before, old_row_of_each

ALL = -1  # layers of the encoder


def parameter_groups(
    model: Transducer,
    config: OptimConfig,
    pretrained: Tuple[str, ...],
    undecayed: Collection[str] = (),
    top: Optional[int] = None,
) -> List[Dict[str, object]]:
    """Parameter groups for AdamW, one per learning rate and weight decay.

    Biases, norms and the tables of task vectors have no weight decay.

    Args:
        pretrained: name prefixes of pretrained parameters.
        undecayed: names of other parameters without weight decay.
        top: see `layers_below_top`.
    """
    groups: Dict[Tuple[float, float], List[nn.Parameter]] = {}
    below = layers_below_top(model, top) if config.layer_decay != 1 else {}
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


def layers_below_top(model: Transducer, top: Optional[int] = None) -> Dict[int, int]:
    """Return for each parameter of the pretrained encoder (by ``id``) the number of running layers above it.

    0 for the highest layer that runs and the final norm; the number of layers that run for parameters below the lowest.
    ``top``: number of layers to count, from the lowest; None: those that run (`Encoder.highest_layer`).
    """
    backbone = model.encoder.backbone
    count = model.encoder.highest_layer if top is None else top
    below = {id(parameter): count for parameter in backbone.parameters()}
    for number, layer in enumerate(backbone.layers):
        below.update((id(parameter), max(0, count - 1 - number)) for parameter in layer.parameters())
    if backbone.final_norm is not None:
        below.update((id(parameter), 0) for parameter in backbone.final_norm.parameters())
    return below


def make_optimizer(
    model: Transducer, config: OptimConfig, pretrained: Tuple[str, ...], undecayed: Collection[str] = ()
) -> torch.optim.AdamW:
    """Return AdamW over `parameter_groups`, on a GPU with one kernel for all parameters (torch 2.0)."""
    groups = parameter_groups(model, config, pretrained, undecayed)
    on_gpu = all(p.is_cuda for group in groups for p in group["params"])  # type: ignore[attr-defined]
    fused = {"fused": True} if on_gpu and int(torch.__version__.split(".")[0]) >= 2 else {}
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), eps=1e-8, **fused)  # type: ignore[arg-type]


def lr_factor(step: int, config: OptimConfig, max_steps: int) -> float:
    """Return the factor on the base learning rates at a step (from 0)."""
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
    """Set every group's learning rate to its base times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def loss_scales(step: int, config: LossConfig) -> Tuple[float, float]:
    """Return the weights of the simple and the pruned loss, as in icefall's zipformer/train.py."""
    done = min(1.0, step / config.warm_steps) if config.warm_steps > 0 else 1.0
    return 1.0 - done * (1.0 - config.simple_scale), 0.1 + 0.9 * done


class FreezeSchedule:
    """Stages of a run: ``[step, n]`` trains the top n layers of the encoder's transformer from that step on.

    Layers above the highest one that runs (``encoder.layers``) do not count. With n > 0 the final norm is trained too;
    n = -1 trains all that `EncoderConfig` does not freeze. The rest of the model is always trained.

    ``stages``: [step, n] pairs with rising steps from 0; empty: everything is trained from the start. Raises UserError
    if the encoder has fewer layers, or is not trained at all.
    """

    def __init__(self, model: Transducer, stages: Sequence[Sequence[int]]):
        self.stages = [(step, layers) for step, layers in stages]
        self.layers = ALL  # currently trained
        self.backbone, self.highest = model.encoder.backbone, model.encoder.highest_layer
        self.trained = [p for p in self.backbone.parameters() if p.requires_grad]
        if self.stages and not self.trained:
            raise UserError("--training.freeze: nothing of the encoder is trained: expected kind finetune")
        wrong = [layers for _, layers in self.stages if layers > self.highest]
        if wrong:
            raise UserError(f"--training.freeze: the encoder has {self.highest} layers, not {wrong[0]}")

    def apply(self, step: int) -> bool:
        """Freeze and unfreeze for a step; return whether something changed."""
        layers = next((n for start, n in reversed(self.stages) if start <= step), ALL)
        if layers == self.layers:
            return False
        self.layers = layers
        modules: List[nn.Module] = []
        if layers > 0:
            modules += list(self.backbone.layers)[: self.highest][-layers:]
            modules += [self.backbone.final_norm] if self.backbone.final_norm is not None else []
        top = {id(parameter) for module in modules for parameter in module.parameters()}
        for parameter in self.trained:
            parameter.requires_grad_(layers == ALL or id(parameter) in top)
        return True


class TrainedRows:
    """Trains only some rows of a model's parameters.

    Parameters without trained rows get ``requires_grad=False``, so optimiser and DDP ignore them. In the others the
    gradients of frozen rows are set to zero before each update; AdamW then does not change these rows if the parameter
    has no weight decay (`partly`).

    Args:
        model: not wrapped for DDP.
        mode: ``new``: rows of new tokens (predictor's embedding; outputs of joiner, simple and CTC heads) and vectors
            of new tasks; ``new_and_joiner``: also the whole joiner.

    Raises:
        UserError: no task or token is new.
    """

    def __init__(self, model: Transducer, before: Before, tasks: Sequence[str], mode: str):
        self.frozen: Dict[str, Tensor] = {}  # parameters trained in part: True for frozen rows
        self.parameters: Dict[str, nn.Parameter] = {}
        self._masks: Dict[str, Tensor] = {}  # `frozen` on the device, of the rows that this rank holds
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
        """Names of the parameters that are trained in part; they must not decay."""
        return tuple(self.frozen)

    def mask_gradients(self) -> None:
        """Set the gradients of frozen rows to zero, even if they are not finite."""
        for name, parameter in self.parameters.items():
            grad = parameter.grad
            if grad is not None:
                if name not in self._masks:
                    self._masks[name] = local(sharded_like(self.frozen[name].to(grad.device), grad))
                part = local(grad)
                part.masked_fill_(self._masks[name].view(-1, *[1] * (part.dim() - 1)), 0.0)

    def count(self, model: nn.Module) -> int:
        """The number of trained scalars of a model."""
        total = 0
        for name, parameter in model.named_parameters():
            if name in self.frozen:
                total += int((~self.frozen[name]).sum()) * (parameter.numel() // len(parameter))
            elif parameter.requires_grad:
                total += parameter.numel()
        return total


def _frozen_rows(model: Transducer, name: str, parameter: nn.Parameter, before: Before, tasks: Sequence[str]) -> Tensor:
    """(rows,) bool: True for the rows of a parameter that the model had before the run."""
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

"""AdamW with three learning rates, and the schedules of both losses and learning rate."""

from __future__ import annotations

import math
from typing import Collection, Dict, List, Tuple

import torch
from torch import nn

from tokenverse_pp.base.config import LossConfig, OptimConfig


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

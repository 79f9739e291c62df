"""Devices: mixed precision, loss scaling and memory."""

from __future__ import annotations

import contextlib
import resource
import sys
from typing import Any, ContextManager

import torch

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models import compat


def peak_memory(device: torch.device) -> float:
    """Megabytes: the most that was allocated on a GPU, or the largest resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of `peak_memory`, where the device can (a process's peak cannot be taken back)."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        part in str(error).lower() for part in ("out of memory", "can't allocate memory", "not enough memory")
    )


def grad_scaler(device: torch.device, precision: str) -> Any:
    """Loss scaling (GradScaler), at work only for fp16 on a GPU.

    The loss of a step is a sum over frames, so its gradients are large: the scale starts at 1, as icefall's does.
    """
    enabled = precision == "fp16" and device.type == "cuda"
    scales = {"init_scale": FIRST_SCALE, "growth_interval": GROWTH_INTERVAL}
    return compat.grad_scaler(device.type, enabled=enabled, **scales)


def autocast(device: torch.device, precision: str) -> ContextManager[Any]:
    """Autocast for ``fp32`` (none), ``bf16`` or ``fp16``.

    Raises:
        UserError: for CPUs before torch 2.0, whose LayerNorm takes no mixed types.
    """
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if dtype is not None and device.type == "cpu" and int(torch.__version__.split(".")[0]) < 2:
        raise UserError(
            f"precision {precision} on a CPU needs torch 2.0 or later, here is {torch.__version__}: use fp32"
        )
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


GROWTH_INTERVAL = 500


FIRST_SCALE = 1.0

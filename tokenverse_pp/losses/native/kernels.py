"""How a tensor's loss is computed: by the Triton kernels of `losses.triton` or PyTorch, and in which type."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
from contextvars import ContextVar
from typing import Any, Dict, Iterator, Optional

import torch
from torch import Tensor

from tokenverse_pp.base.errors import UserError, one_line

LOG = logging.getLogger(__name__)
_wanted: ContextVar[Optional[str]] = ContextVar("kernels", default=None)
_problems: Dict[str, Optional[str]] = {}  # device -> why the kernels cannot be used on it


@contextlib.contextmanager
def use_kernels(which: Optional[str]) -> Iterator[None]:
    """Within the block, compute losses with ``triton`` or ``torch`` on any device; None: depending on the device.

    Raises:
      UserError: at the first loss, if ``triton`` cannot be used.
    """
    token = _wanted.set(which)
    try:
        yield
    finally:
        _wanted.reset(token)


def triton_kernels(x: Tensor) -> Any:
    """Return the module `losses.triton` if it computes the loss of ``x``, else None.

    It is used for tensors on NVIDIA GPUs where Triton works. Where it does not, a warning gives the reason, once.
    """
    wanted = _wanted.get()
    if wanted == "torch" or (wanted is None and not x.is_cuda):
        return None
    problem = triton_problem(x.device)
    if problem is None:
        return importlib.import_module("tokenverse_pp.losses.triton")
    if wanted == "triton":
        raise UserError(f"loss backend 'triton' cannot be used: {problem}; use 'auto' or 'torch'")
    return None


def triton_problem(device: torch.device) -> Optional[str]:
    """Why the Triton kernels cannot be used on a device, in one line; None if they can. Checked once per device."""
    key = str(device)
    if key not in _problems:
        _problems[key] = _find_problem(device)
        if _problems[key] is not None and device.type == "cuda":
            LOG.warning("loss: the Triton kernels cannot be used (%s); using PyTorch, which is slower", _problems[key])
    return _problems[key]


def _find_problem(device: torch.device) -> Optional[str]:
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"they run on NVIDIA GPUs, not on {device.type!r}"
    if torch.version.hip is not None:
        return "they are not made for ROCm"
    if importlib.util.find_spec("triton") is None:
        return "No module named 'triton'"
    try:
        language = importlib.import_module("triton.language")
        if not hasattr(language, "gather"):
            return "Triton 3.3 or later is needed (torch 2.7)"
        kernels = importlib.import_module("tokenverse_pp.losses.triton")
        arcs, boundary = torch.zeros((1, 2, 2), device=device), torch.tensor([[0, 0, 1, 2]], device=device)
        kernels.dense_scores(arcs[:, :1], arcs, boundary, False)
    except torch.cuda.OutOfMemoryError:  # not a problem of the kernels
        raise
    except Exception as error:  # e.g. a missing compiler or a GPU that is too old: the messages vary
        return one_line(error)
    return None


def autocast_type(kind: str) -> Optional[torch.dtype]:
    """The type in which autocast computes matrix products on a kind of device; None if it is off."""
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4 and later; the functions below are deprecated there
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    if kind == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if kind == "cuda" and torch.is_autocast_enabled() else None

"""Access to the package k2, which is imported only on request, and checks of why it cannot be used."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from types import ModuleType
from typing import Dict, Optional, Set

import torch

from tokenverse_pp.base.errors import UserError, one_line

LOG = logging.getLogger(__name__)
_failed: Dict[str, str] = {}  # file of a k2 that cannot be imported -> why; it is not imported again
_told: Set[str] = set()  # reasons that `use_k2` has logged


def k2_available() -> bool:
    """Whether k2 can be used: it is installed, and its import succeeds."""
    return _place() is not None and k2_problem() is None


def k2_problem(device: Optional[torch.device] = None) -> Optional[str]:
    """The reason why k2 cannot be used (on a device), in one line; None if it can.

    Wheels made for another torch or CUDA fail at import, with OSError, ImportError or RuntimeError and long symbol
    names; those without CUDA would fail at the first tensor on a GPU.
    """
    place = _place()
    if place is None:
        return "No module named 'k2'"
    if place in _failed:
        return _failed[place]
    try:
        module = importlib.import_module("k2")
    except Exception as error:
        _failed[place] = one_line(error)
        return _failed[place]
    if device is not None and device.type == "cuda" and getattr(module, "with_cuda", True) is False:
        return "it was built without CUDA"
    return None


def use_k2(device: torch.device) -> bool:
    """Whether the device is a GPU on which k2 works. A warning is logged once if k2 is installed but fails."""
    if device.type != "cuda" or _place() is None:
        return False
    problem = k2_problem(device)
    if problem is not None and problem not in _told:
        _told.add(problem)
        LOG.warning("loss: k2 is installed, but cannot be used (%s); using the native loss", problem)
    return problem is None


def load_k2(device: Optional[torch.device] = None) -> ModuleType:
    """Return the module `k2`.

    Raises:
      UserError: k2 is not installed, was built for another torch, or cannot be used on the device.
    """
    problem = k2_problem(device)
    if problem is not None:
        raise UserError(
            f"loss backend 'k2' needs the k2 package that matches this torch ({problem}); "
            "install it, or use backend 'native' (the same loss in plain PyTorch)"
        )
    return importlib.import_module("k2")


def _place() -> Optional[str]:
    """The location of the package `k2`, without importing it; None if not installed."""
    if sys.modules.get("k2") is not None:
        return getattr(sys.modules["k2"], "__file__", None) or "k2"
    try:
        spec = importlib.util.find_spec("k2")
    except (ImportError, ValueError):  # an entry of sys.modules that is not a module
        return None
    return None if spec is None else spec.origin  # a folder `k2` that is not a package has none

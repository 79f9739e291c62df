"""The real k2, if it is installed. Imported only when asked for."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from tokenverse_pp.errors import UserError


def k2_available() -> bool:
    """Whether a package `k2` can be found; does not import it."""
    return importlib.util.find_spec("k2") is not None


def load_k2() -> ModuleType:
    """The module `k2`.

    Raises:
      UserError: if k2 is not installed, or was built for another torch.
    """
    try:
        return importlib.import_module("k2")
    except Exception as error:
        # Wheels made for another torch fail with OSError or ImportError and long symbol names.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"loss backend 'k2' needs the k2 package that matches this torch ({reason}); "
            "install it, or use backend 'native' (the same loss in plain PyTorch)"
        ) from error

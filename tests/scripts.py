"""The recipes' scripts as modules (pytest puts this folder on the path, because of its conftest.py)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def build_package(root: Path, folder: Path, name: str) -> None:
    """Pack the files under ``root`` as a Debian package into ``folder``."""
    (root / "DEBIAN").mkdir()
    control = f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: t <t@example.org>\nDescription: test\n"
    (root / "DEBIAN" / "control").write_text(control)
    subprocess.run(["dpkg-deb", "--build", "-Znone", str(root), str(folder)], check=True, capture_output=True)


def load_script(path: Path, name: str) -> ModuleType:
    """Import a script from its file under ``name``; it finds its neighbours, as when Python runs it."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        spec.loader.exec_module(module)
    return module

"""Folders that the processes of a test run share, each made once (pytest puts this folder on the path)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Callable, Dict, Iterator, List

import pytest
from filelock import FileLock


@contextlib.contextmanager
def shared_folder(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """A folder for reading, which ``make(folder)`` fills in the process that asks first; the others wait for it.

    Tests that change files copy them first. Permissions would not stop a user who may write everywhere, so the files
    are compared with those that were made when a process is done with them.
    """
    common = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a folder of its own, beside those of the others
        common = common.parent
    folder, made = common / "shared" / name, common / "shared" / f"{name}.json"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not made.is_file():
            shutil.rmtree(folder, ignore_errors=True)  # what a process left behind that failed to make it
            make(folder)
            made.write_text(json.dumps(_state(folder)))
    yield folder
    before, after = json.loads(made.read_text()), _state(folder)
    changed = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
    assert not changed, f"{folder}: tests share this folder, and one has changed {changed}: copy it first"


def _state(folder: Path) -> Dict[str, List[int]]:
    """Size and time of the last change of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}

"""`tokenverse-pp manifest prepare --engine ray`, on a cluster that the command starts itself."""

import contextlib
import gzip
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mini_runs import MAKERS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: tokenverse_pp[ray]"),
]


def files_of(folder):
    """The content of all files; lhotse puts the time into the header of a .gz."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: gzip.decompress(data) if name.endswith(".gz") else data for name, data in files.items()}


# Calls one by one, so that there are several shards.
ONE_BY_ONE = """
from tokenverse_pp.base.engine import RayEngine
from tokenverse_pp.cli.main import cli

by_eight = RayEngine.map
RayEngine.map = lambda self, work, items, jobs, chunk, *more: by_eight(self, work, items, jobs, 1, *more)
cli()
"""


def test_calls_are_converted_by_workers(tmp_path, monkeypatch):
    """Manifests hold absolute paths, so both runs write to the same folder.

    By a process of its own: Ray reads the token of its clusters once in a process, and it is in HOME.
    """
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    corpus, out = MAKERS["callhome-english"](tmp_path / "corpus"), tmp_path / "out"
    found = []
    for more in ([], ["--engine", "ray", "--num-workers", "2"]):
        words = ["manifest", "prepare", "callhome-english", str(corpus), str(out), *more]
        done = subprocess.run([sys.executable, "-c", ONE_BY_ONE, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(files_of(out))
        os.rename(out, tmp_path / f"out-{len(found)}")
    assert found[0] == found[1] and sum(name.endswith(".flac") for name in found[0]) > 1
    deadline = time.monotonic() + 60
    while (left := processes_of(tmp_path)) and time.monotonic() < deadline:
        pass
    assert not left


def processes_of(home):
    """Processes with this HOME that run: those of Ray too."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if f"HOME={home}".encode() in path.read_bytes().split(b"\0"):
                found.append(path)
    return found

"""`tokenverse-pp manifest prepare --engine ray`, on a cluster that the command starts itself."""

import gzip
import importlib.util
import os
from pathlib import Path

import pytest
from command_lines import run
from mini_runs import MAKERS

from tokenverse_pp.base.engine import RayEngine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: tokenverse_pp[ray]"),
]


def files_of(folder):
    """The content of all files; lhotse puts the time into the header of a .gz."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: gzip.decompress(data) if name.endswith(".gz") else data for name, data in files.items()}


def test_calls_are_converted_by_workers(tmp_path, monkeypatch):
    """Manifests hold absolute paths, so both runs write to the same folder."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps the token of its clusters there
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    by_eight = RayEngine.map
    # Several shards, though there are few calls.
    one_by_one = lambda self, work, items, jobs=1, chunk=1, prepare=bool: by_eight(self, work, items, jobs, 1, prepare)
    monkeypatch.setattr(RayEngine, "map", one_by_one)
    corpus, out = MAKERS["callhome-english"](tmp_path / "corpus"), tmp_path / "out"
    found = []
    for more in ([], ["--engine", "ray", "--num-workers", 2]):
        done = run("manifest", "prepare", "callhome-english", corpus, out, *more)
        assert done.exit_code == 0, (done.stderr, done.exception)
        found.append(files_of(out))
        os.rename(out, tmp_path / f"out-{len(found)}")
    assert found[0] == found[1] and sum(name.endswith(".flac") for name in found[0]) > 1
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    assert not children.exists() or not [pid for pid in children.read_text().split() if is_ray(pid)]


def is_ray(pid):
    """Whether a process is one of Ray's that still runs."""
    try:
        return b"ray" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False

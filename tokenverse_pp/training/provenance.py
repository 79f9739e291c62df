"""Where a checkpoint comes from: the code, the libraries and the corpora."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import lhotse
import torch
import transformers

import tokenverse_pp
from tokenverse_pp.training.sources import Source


def versions() -> Dict[str, str]:
    """Versions of what decides the numbers."""
    return {
        "tokenverse_pp": tokenverse_pp.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "lhotse": lhotse.__version__,
    }


def git_commit() -> Optional[str]:
    """The commit of the checkout that the package runs from, with ``+`` for changes since; None outside of one."""
    folder = Path(tokenverse_pp.__file__).parent
    git = ["git", "-c", "core.fsmonitor=false", "-C", str(folder)]  # a command that a repository may name
    try:
        run = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=30)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", "."], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() + ("+" if changed.stdout.strip() else "")


def fingerprints(sources: Sequence[Source]) -> List[Dict[str, Any]]:
    """Path, bytes and SHA-256 of the manifests of each corpus."""
    return [source.fingerprint() for source in sources]


def changed_corpus(before: Sequence[Dict[str, Any]], now: Sequence[Dict[str, Any]]) -> Optional[str]:
    """What has changed in the corpora, in a few words, or None; a file that was moved has not changed."""
    if len(before) != len(now):
        return f"{len(now)} corpora, {len(before)} at the checkpoint"
    for old, new in zip(before, now):
        if old["sha256"] != new["sha256"]:
            return f"{new['path']} has changed ({old['bytes']} bytes at the checkpoint, {new['bytes']} now)"
    return None

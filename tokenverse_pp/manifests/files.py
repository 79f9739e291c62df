"""Writing manifests so that they appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from lhotse import CutSet

from tokenverse_pp.errors import UserError


def write_cuts(cuts: CutSet, path: Path) -> None:
    """Write a CutSet under a temporary name, then rename it.

    Raises:
        UserError: where the path cannot be written, or is not named ``.jsonl`` or ``.jsonl.gz``.
    """
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(f"{path}: a CutSet file is named .jsonl or .jsonl.gz")
    # lhotse goes by the ending, so the temporary name keeps it.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        cuts.to_file(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)

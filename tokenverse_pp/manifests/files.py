"""Writing manifests so that they appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

from lhotse import CutSet

from tokenverse_pp.errors import UserError
from tokenverse_pp.files import replacing


def write_cuts(cuts: CutSet, path: Path) -> None:
    """Write a CutSet under a temporary name, then rename it.

    Raises:
        UserError: where the path cannot be written, or is not named ``.jsonl`` or ``.jsonl.gz``.
    """
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(f"{path}: a CutSet file is named .jsonl or .jsonl.gz")
    try:
        with replacing(path) as temporary:
            cuts.to_file(temporary)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None

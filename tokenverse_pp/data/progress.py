"""A progress bar over the bytes of the files that are read: the number of cuts is not known before the end."""

from __future__ import annotations

import os
from typing import Any, Sequence

from tqdm import tqdm

from tokenverse_pp.base.files import PathLike


def reading_bar(paths: Sequence[PathLike], what: str, passes: int = 1) -> Any:
    """A bar on stderr for reading ``paths`` so many times; it shows nothing where stderr is no terminal."""
    total = passes * sum(os.path.getsize(path) for path in paths if os.path.isfile(path))
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None, leave=False)

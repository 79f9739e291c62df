"""The folder for audio that an import has to write itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Optional

from tokenverse_pp.errors import UserError


class AudioOut:
    """A folder that is made when something is to be written, and can be taken back.

    Args:
        path: must not be there yet.
    """

    def __init__(self, path: Path):
        self.path = Path(os.path.abspath(path))
        self._made = False

    def folder(self) -> Path:
        """The folder, made if need be.

        Raises:
            UserError: where something of that name was there before.
        """
        if not self._made:
            if os.path.lexists(self.path):
                raise UserError(f"--audio-out: {self.path} is there already; expected the name of a folder to make")
            self.path.mkdir(parents=True)
            self._made = True
        return self.path

    @property
    def made(self) -> Optional[Path]:
        """The folder, if it was made."""
        return self.path if self._made else None

    def remove(self) -> None:
        """Take back what an import that failed had written."""
        if self._made:
            shutil.rmtree(self.path, ignore_errors=True)

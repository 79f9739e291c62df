"""Counting what is read, kept and rejected, so that nothing gets lost without a word."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Callable, List, Optional

from tokenverse_pp.errors import UserError
from tokenverse_pp.files import replacing
from tokenverse_pp.manifests.importing.rows import Rejected
from tokenverse_pp.manifests.reading import shortened

SHOWN = 20  # rejected rows in a message; the list in the file has them all


class Ledger:
    """Rows read = rows kept + rows rejected. The list of the rejected is on disk, not in memory.

    ``bad`` counts the rejected rows that the options do not ask to leave out.
    """

    def __init__(self) -> None:
        self.read = 0
        self.kept = 0
        self.rejected = 0
        self.bad = 0
        self.first: List[Rejected] = []
        self.first_expected: Optional[Rejected] = None
        self.repeated_words = 0
        self.cuts = 0
        self.cuts_by_task: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()  # what an option changed without rejecting a row
        self._list = tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace")
        print("file", "line", "reason", sep="\t", file=self._list)

    def reject(self, item: Rejected) -> None:
        """Note a row that is not kept."""
        self.rejected += 1
        self.bad += not item.expected
        if item.expected and self.first_expected is None:
            self.first_expected = item
        if len(self.first) < SHOWN and not item.follows and not item.expected:
            self.first.append(item)
        cells = (item.place.file, str(item.place.line), shortened(item.reason))
        print(*(" ".join(cell.split()) for cell in cells), sep="\t", file=self._list)

    def write_rejected(self, path: Path) -> None:
        """Write the rejected rows as a table of file, line and reason."""
        self._list.seek(0)
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            shutil.copyfileobj(self._list, file)

    def refusal(self, source: Path) -> UserError:
        """What to say where rows were rejected and none may be, or none are left."""
        if not self.read:
            return UserError(f"{source}: holds no rows; nothing was written")
        if not self.bad:
            return UserError(f"{source}: no row is left of {self.read}; nothing was written")
        more = self.bad - len(self.first)
        hint = f" ({more} more: --rejected FILE lists all)" if more > 0 else ""
        way = " (--skip-bad leaves them out)" if self.rejected < self.read else ""
        summary = f"{self.bad} of {self.read} rows cannot be mapped{hint}; nothing was written{way}"
        return UserError("\n".join([*map(str, self.first), summary]))

    def report(self, output: Path, say: Callable[[str], None]) -> None:
        """Print the counts of an import that was written."""
        for item in self.first:
            say(f"left out: {item}")
        if self.bad > len(self.first):
            say(f"left out: {self.bad - len(self.first)} more (--rejected FILE lists all)")
        if self.first_expected is not None:
            line = f"left out, as the options ask: {self.rejected - self.bad} (--rejected FILE lists them)"
            say(f"{line}, the first: {self.first_expected}")
        if self.repeated_words:
            say(f"left out: {self.repeated_words} words that captions repeat (--repeated-captions keep keeps them)")
        say(f"rows: {self.read} read = {self.kept} kept + {self.rejected} left out")
        for note, count in sorted(self.notes.items()):
            say(f"{note}: {count}")
        tasks = ", ".join(f"{name} {count}" for name, count in self.cuts_by_task.items())
        say(f"cuts: {self.cuts}, labelled for {tasks}: {output}")

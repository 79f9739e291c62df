"""Rows by recording, through a temporary SQLite file: a table need not be sorted, nor fit into memory."""

from __future__ import annotations

import pickle
import sqlite3
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Iterable, Iterator, List, Tuple

from tokenverse_pp.manifests.importing.rows import RowOrRejected


def by_recording(items: Iterable[Tuple[str, float, RowOrRejected]]) -> Iterator[List[RowOrRejected]]:
    """Groups of items with one key, in the order of the keys' first items; a group is in order of its times.

    Args:
        items: (key, seconds, row).
    """
    with tempfile.TemporaryDirectory(prefix="tokenverse_pp-") as folder:
        base = sqlite3.connect(Path(folder) / "rows.db")
        try:
            base.execute("PRAGMA journal_mode = OFF")
            base.execute("CREATE TABLE firsts (key BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")
            base.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, key BLOB, start REAL, item BLOB)")
            for number, (key, start, item) in enumerate(items):
                base.execute("INSERT OR IGNORE INTO firsts VALUES (?, ?)", (_bytes(key), number))
                base.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", (number, _bytes(key), start, pickle.dumps(item)))
            found = base.execute(
                "SELECT firsts.number, item FROM rows JOIN firsts USING (key) "
                "ORDER BY firsts.number, start, rows.number"
            )
            for _, group in groupby(found, key=lambda pair: pair[0]):
                yield [pickle.loads(item) for _, item in group]  # our own pickles, in our own folder
        finally:
            base.close()


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")

#!/usr/bin/env python3
"""Put tables that benchmarks wrote into a document: python benchmarks/include.py docs/scaling.md

Behind each line ``<!-- include: FILE -->`` the document gets the text of the file, up to a line ``<!-- end -->``; where
that is missing it is added. FILE is named from the root of the checkout.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Iterable, List, Mapping, Tuple

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_text

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(r"<!-- include: (\S+) -->\n(?:(?:(?!<!--).*\n)*<!-- end -->\n)?")


def filled(text: str) -> str:
    """The document with all tables as they are today."""

    def table(match: re.Match) -> str:
        content = (ROOT / match[1]).read_text(encoding="utf-8").strip()
        return f"<!-- include: {match[1]} -->\n\n{content}\n\n<!-- end -->\n"

    return MARK.sub(table, text)


def markdown_table(columns: Mapping[str, str], records: Iterable[Mapping[str, Any]]) -> List[str]:
    """The lines of a Markdown table: a row a record, a column a heading and the format string of its cells."""
    rows = [" | ".join(text.format(**record) for text in columns.values()) for record in records]
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {row} |" for row in rows)]


def fill(path: Path, marks: Tuple[str, str], text: str) -> None:
    """Put a text between two marks of a file, for the option --fill (raises UserError where it has none)."""
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise UserError(f"--fill {path}: expected a file with {marks[0]} and {marks[1]}")
    write_text(path, f"{before}{begin}\n{text}{end}{after}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    document = Path(sys.argv[1])
    document.write_text(filled(document.read_text(encoding="utf-8")), encoding="utf-8")

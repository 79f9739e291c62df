#!/usr/bin/env python3
"""Put tables that benchmarks wrote into a document: python benchmarks/include.py docs/scaling.md

Behind each line ``<!-- include: FILE -->`` the document gets the text of the file, up to a line ``<!-- end -->``; where
that is missing it is added. FILE is named from the root of the checkout.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(r"<!-- include: (\S+) -->\n(?:(?:(?!<!--).*\n)*<!-- end -->\n)?")


def filled(text: str) -> str:
    """The document with all tables as they are today."""

    def table(match: re.Match) -> str:
        content = (ROOT / match[1]).read_text(encoding="utf-8").strip()
        return f"<!-- include: {match[1]} -->\n\n{content}\n\n<!-- end -->\n"

    return MARK.sub(table, text)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    document = Path(sys.argv[1])
    document.write_text(filled(document.read_text(encoding="utf-8")), encoding="utf-8")

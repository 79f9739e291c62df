"""Plain-text tables.

Not with `tabulate`: it strips the spaces that pad a cell (`manifest show` has such cells) unless a setting of its
module is changed for all of its users (0.9), its widths depend on whether wcwidth is installed, and escaping, alignment
of each column, no parsing of numbers and no trailing spaces would all still have to be asked for here.
"""

from __future__ import annotations

from typing import Sequence

from tokenverse_pp.base.errors import printable


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of equal length with aligned columns: the first ``left`` to the left, the others to the right.

    >>> print(aligned([["language", "cuts"], ["fr", "12"]]))
    language  cuts
    fr          12
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)

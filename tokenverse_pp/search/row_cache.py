"""Rows of a table over the vocabulary that is too large to hold, made when a search meets their state."""

from __future__ import annotations

from typing import Callable, Dict, Sequence

import torch
from torch import Tensor

ROWS_KEPT = 4096


class RowCache:
    """At most `ROWS_KEPT` rows, on the device that asked last.

    Args:
        make: state -> row (V,), float32.
        vocab_size: V.
    """

    def __init__(self, make: Callable[[int], Tensor], vocab_size: int):
        self.make, self.vocab_size = make, vocab_size
        self._row_of: Dict[int, int] = {}
        self._rows = torch.empty(0, vocab_size)

    def look_up(self, states: Sequence[int], device: torch.device) -> Tensor:
        """The rows of M states, (M, V) float32."""
        if len(self._row_of) + len(states) > ROWS_KEPT or self._rows.device != device:
            self._row_of.clear()
            self._rows = torch.empty(0, self.vocab_size, device=device)
        missing = [state for state in dict.fromkeys(states) if state not in self._row_of]
        first, end = len(self._row_of), len(self._row_of) + len(missing)
        if end > len(self._rows):
            larger = self._rows.new_empty(max(end, min(2 * end, ROWS_KEPT)), self.vocab_size)
            larger[:first] = self._rows[:first]
            self._rows = larger
        for row, state in enumerate(missing, start=first):
            self._rows[row] = self.make(state).to(device)
            self._row_of[state] = row
        rows = torch.tensor([self._row_of[state] for state in states], dtype=torch.int64, device=device)
        return self._rows.index_select(0, rows)

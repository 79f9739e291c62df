"""Rules on what may be written next, as finite automata compiled into two NumPy tables.

A `Filter` is one rule: a start state, which symbols a state allows, and the state after a symbol. Filters compose:
`compile_tables` walks the states that all of them reach together and writes down, for each, a row of log-weights (0 or
-inf) over the vocabulary and a row of next states. In the search a hypothesis then carries one integer, and applying
every rule to a whole batch costs one table look-up a frame.

Nothing here needs torch: the search of `tokenverse_pp.runtime` works by the same tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Dict, Hashable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

NEG_INF = -float("inf")


class Filter(ABC):
    """One rule. A symbol is a special token's surface such as ``[SCD]``, or None for any ordinary piece."""

    start: Hashable = None

    @abstractmethod
    def allows(self, state: Any, symbol: Optional[str]) -> bool:
        """Whether ``symbol`` may come next."""

    def advance(self, state: Any, symbol: Optional[str]) -> Any:
        """The state after ``symbol``, which may be barred by another rule only."""
        return state


@dataclass(frozen=True)
class RuleTables:
    """Compiled rules: ``weights`` (S, V) float32, 0 or -inf; ``following`` (S, V) int64. State 0 is the start."""

    weights: np.ndarray
    following: np.ndarray


def compile_tables(
    filters: Sequence[Filter], symbol_ids: Mapping[str, int], vocab_size: int, blank_id: int = 0
) -> RuleTables:
    """Compose filters.

    Args:
        filters: all must allow a symbol.
        symbol_ids: the special tokens and their ids; every other id but the blank is an ordinary piece.
        vocab_size: V, blank included.
        blank_id: always allowed, never changes a state.
    """
    rows = _walk(filters, symbol_ids)
    weights = np.zeros((len(rows), vocab_size), dtype=np.float32)
    following = np.repeat(np.arange(len(rows), dtype=np.int64)[:, None], vocab_size, axis=1)
    special = set(symbol_ids.values())
    ordinary = [i for i in range(vocab_size) if i != blank_id and i not in special]
    for i, row in enumerate(rows):
        for symbol, state_after in row.items():
            ids = ordinary if symbol is None else [symbol_ids[symbol]]
            if state_after is None:
                weights[i, ids] = NEG_INF
            else:
                following[i, ids] = state_after
    return RuleTables(weights, following)


def _walk(filters: Sequence[Filter], symbols: Mapping[str, int]) -> List[Dict[Optional[str], Optional[int]]]:
    """For each state that can be reached, the number of the state after each symbol, None where it is barred."""
    start = tuple(f.start for f in filters)
    number: Dict[Tuple[Hashable, ...], int] = {start: 0}
    pending = [start]
    rows: List[Dict[Optional[str], Optional[int]]] = []
    while pending:
        state = pending.pop(0)
        row: Dict[Optional[str], Optional[int]] = {}
        for symbol in (None, *symbols):
            row[symbol] = None
            if all(f.allows(s, symbol) for f, s in zip(filters, state)):
                after = tuple(f.advance(s, symbol) for f, s in zip(filters, state))
                if after not in number:
                    number[after] = len(number)
                    pending.append(after)
                row[symbol] = number[after]
        rows.append(row)
    return rows

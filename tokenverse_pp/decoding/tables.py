"""Tables on the device of a search: the constraints of a batch, and rows that are computed when first needed."""

from __future__ import annotations

from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from tokenverse_pp.decoding.constraints import NEG_INF, Constraints


class BatchConstraints(NamedTuple):
    """The constraints of a batch: log-weights (S, V), next states (S * V,), first state of each utterance (N, 1)."""

    weights: Tensor
    following: Tensor
    start: Tensor


class ConstraintTable:
    """Several `Constraints` in one table, so that utterances with different constraints are searched as one batch.

    A state of the search is a row of the table. Rows are only appended, so states of streams stay valid.
    """

    def __init__(self, vocab_size: int, device: torch.device):
        self.weights = torch.zeros(0, vocab_size, device=device)
        self.following = torch.zeros(0, vocab_size, dtype=torch.int64, device=device)
        self.known: List[Constraints] = []  # kept alive, so that their ids stay unique
        self.first: Dict[int, int] = {}
        self.translations: Dict[Tuple[int, int], List[int]] = {}

    def batch(self, each: Sequence[Constraints]) -> BatchConstraints:
        """Return the table and the first state of each utterance's constraints; new constraints are appended."""
        added = [item for item in {id(item): item for item in each}.values() if id(item) not in self.first]
        if added:
            rows = np.cumsum([len(self.weights)] + [len(item.weights) for item in added]).tolist()
            following = [item.following + row for item, row in zip(added, rows)]
            self.known.extend(added)
            self.first.update((id(item), row) for item, row in zip(added, rows))
            device = self.weights.device
            weights = torch.from_numpy(np.concatenate([item.weights for item in added]))
            self.weights = torch.cat([self.weights, weights.to(device)])
            self.following = torch.cat([self.following, torch.from_numpy(np.concatenate(following)).to(device)])
        start = torch.tensor([self.first[id(item)] for item in each], device=self.weights.device)[:, None]
        return BatchConstraints(self.weights, self.following.flatten(), start)

    def add(self, constraints: Constraints) -> int:
        """Return the first state of these constraints; they are appended if they are new."""
        if id(constraints) not in self.first:
            self.batch([constraints])
        return self.first[id(constraints)]

    def translate(self, state: int, old: Constraints, new: Constraints) -> int:
        """Return the state of ``new`` that corresponds to ``state`` of ``old``.

        It is the state after the shortest text that leads to ``state``, without the symbols that ``new`` suppresses. So
        an open span is given up if ``new`` suppresses its task, and stays open otherwise. A text that has begun
        without the language token that ``new`` expects first goes on without one: it is too late for a language, and
        to wait for one would forbid all words.
        """
        key = (id(old), id(new))
        first, other = self.add(old), self.add(new)
        if key not in self.translations:
            self.translations[key] = [_state_after_allowed(new, text) for text in _shortest_texts(old)]
        return other + self.translations[key][state - first]


def _shortest_texts(constraints: Constraints) -> List[List[int]]:
    """Find for each state a shortest sequence of symbols that leads to it, breadth first."""
    texts: Dict[int, List[int]] = {0: []}
    queue = [0]
    for state in queue:
        for symbol in np.flatnonzero(constraints.weights[state] > NEG_INF).tolist():
            after = int(constraints.following[state, symbol])
            if after not in texts:
                texts[after] = [*texts[state], symbol]
                queue.append(after)
    return [texts[state] for state in range(len(constraints.weights))]


def _state_after_allowed(constraints: Constraints, symbols: Sequence[int]) -> int:
    """Return the state after the symbols, skipping those not allowed. They may lack the token that must come first."""
    state = 0
    for symbol in symbols:
        after = constraints.after([symbol], state)
        if after is None and state == 0:
            after = constraints.after([symbol], constraints.begun)
        state = state if after is None else after
    return state


class RowCache:
    """A bounded cache of rows, computed when first needed, on the device of the last call.

    Args:
        make: computes M rows from their numbers, (M, width) float32.
        capacity: most rows kept; if one call needs more, all of its rows are kept.
    """

    def __init__(self, make: Callable[[Sequence[int]], Tensor], width: int, capacity: int):
        self.make, self.width, self.capacity = make, width, capacity
        self._row_of: Dict[int, int] = {}
        self._rows = torch.empty(0, width)

    def look_up(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        """Return M rows by their numbers, (M, width)."""
        if len(self._row_of) + len(numbers) > self.capacity or self._rows.device != device:
            self._row_of.clear()  # rows still needed are computed again
            self._rows = torch.empty(0, self.width, device=device)
        missing = [number for number in dict.fromkeys(numbers) if number not in self._row_of]
        if missing:
            first, end = len(self._row_of), len(self._row_of) + len(missing)
            if end > len(self._rows):
                larger = self._rows.new_empty(max(end, min(max(2 * end, 64), self.capacity)), self.width)
                larger[:first] = self._rows[:first]
                self._rows = larger
            self._rows[first:end] = self.make(missing)
            self._row_of.update(zip(missing, range(first, end)))
        rows = torch.tensor([self._row_of[number] for number in numbers], dtype=torch.int64, device=device)
        return self._rows.index_select(0, rows)

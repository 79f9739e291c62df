"""A back-off n-gram model over token ids, in a handful of arrays, and the states that a hypothesis walks through.

``log P(token | context)`` is the n-gram's own where the model holds it, else the context's back-off weight plus the
same question to the context without its first token (Katz 1987; the rule of every ARPA file).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence

import numpy as np


@dataclass(frozen=True)
class Level:
    """All n-grams of one length m, sorted by their context and then by their last token, (K,) each.

    context: the row of the first m - 1 tokens among those one shorter (0 for single tokens). token: the last one.
    log_prob: of it, in nats; -inf for ``<s>``, which is never predicted. back_off: of the n-gram as a context, in nats.
    suffix: the row of its longest proper suffix that the model holds, as a *state* (see `Ngrams`).
    """

    context: np.ndarray
    token: np.ndarray
    log_prob: np.ndarray
    back_off: np.ndarray
    suffix: np.ndarray


class Ngrams:
    """The model. A state is a context: 0 the empty one, the others numbered through the levels from 1 on.

    Args:
        levels: single tokens first. Every n-gram's first m - 1 tokens are an n-gram too.
        size: tokens that there are, ``<s>`` and ``</s>`` among them as the last two.
    """

    def __init__(self, levels: Sequence[Level], size: int):
        self.size, self.begin, self.end = size, size - 2, size - 1
        starts = np.cumsum([1] + [len(level.token) for level in levels])
        self.suffix = np.concatenate([[0], *(level.suffix for level in levels)])
        self.back_off = np.concatenate([[0.0], *(level.back_off for level in levels)])
        # The n-grams that go on from a state are rows first[state] to first[state + 1] of these, each a state itself.
        parent = np.concatenate(
            [np.zeros(len(levels[0].token), dtype=np.int64)]
            + [before + level.context for before, level in zip(starts, levels[1:])]
        )
        self.token = np.concatenate([level.token for level in levels])
        self.log_prob = np.concatenate([level.log_prob for level in levels])
        self.first = np.searchsorted(parent, np.arange(starts[-1] + 1))
        self.lowest = float(self.log_prob[np.isfinite(self.log_prob)].min())
        self.start = self.advance(0, self.begin)

    def __len__(self) -> int:
        """The number of n-grams."""
        return len(self.token)

    @property
    def states(self) -> int:
        """The number of states."""
        return len(self.suffix)

    def advance(self, state: int, token: int) -> int:
        """The longest context that is a suffix of a state's tokens and one more."""
        while True:
            low, high = self.first[state], self.first[state + 1]
            at = low + int(np.searchsorted(self.token[low:high], token))
            if at < high and self.token[at] == token:
                return self._useful(at + 1)
            if state == 0:
                return 0
            state = int(self.suffix[state])

    def _useful(self, state: int) -> int:
        """The state; where nothing follows it and backing off costs nothing, the longest suffix that says as much."""
        while state and self.first[state] == self.first[state + 1] and self.back_off[state] == 0:
            state = int(self.suffix[state])
        return state

    def row(self, state: int) -> np.ndarray:
        """log P(token | state) of every token, (size,) float64; what the model lacks is as rare as the rarest."""
        chain: List[int] = []
        while state:
            chain.append(state)
            state = int(self.suffix[state])
        row = np.full(self.size, self.lowest)
        for context in (0, *reversed(chain)):
            if context:
                row += self.back_off[context]
            inside = slice(self.first[context], self.first[context + 1])
            row[self.token[inside]] = self.log_prob[inside]
        row[self.begin] = -np.inf
        return row

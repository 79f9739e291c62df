"""Greedy search that is carried on: what was written is final at once."""

from __future__ import annotations

from typing import Callable, List, NamedTuple, Optional, Sequence

import numpy as np

from tokenverse_pp.search.automaton import Rules
from tokenverse_pp.search.greedy import GreedySearch
from tokenverse_pp.search.scorer import Scorer
from tokenverse_pp.streaming.search_parts import Ran, Token


class GreedyMemory(NamedTuple):
    """The tokens written last (context size,), and the state of the rules."""

    last: np.ndarray
    state: int


class GreedyMethod:
    """See `Method`.

    Args:
        endpoint: the token after which the search starts anew, if there is one.
    """

    def __init__(self, endpoint: Optional[int] = None):
        self.endpoint = endpoint

    def start(self, scorer: Scorer, state: int) -> GreedyMemory:
        """See `Method`."""
        return GreedyMemory(np.full(scorer.contexts.size, scorer.blank_id, dtype=np.int64), state)

    def run(
        self,
        scorer: Scorer,
        lengths: Sequence[int],
        rules: Rules,
        memories: Sequence[GreedyMemory],
        first: Sequence[int],
    ) -> List[Ran]:
        """See `Method`."""
        search = GreedySearch(scorer, lengths, rules)
        search.last = np.stack([memory.last for memory in memories])
        search.state = np.array([memory.state for memory in memories])
        search.run()
        starts = rules.start.flatten().tolist()
        done = []
        for i, length in enumerate(lengths):
            memory, used = GreedyMemory(search.last[i], int(search.state[i])), length
            ends = np.flatnonzero(search.tokens[i, :length] == self.endpoint)
            if len(ends):
                memory, used = self.start(scorer, starts[i]), int(ends[0]) + 1
            at = np.flatnonzero(search.tokens[i, :used] != scorer.blank_id)
            columns = (search.tokens[i, at].tolist(), (at + first[i]).tolist(), search.log_probs[i, at].tolist())
            done.append(Ran(memory, [Token(*token) for token in zip(*columns)], used))
        return done

    def open(self, memory: GreedyMemory) -> List[Token]:
        """See `Method`."""
        return []

    def translate(self, memory: GreedyMemory, translation: Callable[[int], int]) -> GreedyMemory:
        """See `Method`."""
        return memory._replace(state=translation(memory.state))

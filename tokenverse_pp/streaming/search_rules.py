"""The search's rules for streams that decode different tasks, and what becomes of a rule's state when tasks change."""

from __future__ import annotations

from typing import Dict, List, Tuple

import torch

from tokenverse_pp.search.automaton import NEG_INF, Constraints, Rules


class RuleBook:
    """Several `Constraints` in one table, so that streams with different ones are searched as one batch.

    The state of a stream is a row of that table. Rows are only ever added behind the others, hence states stay valid.
    """

    def __init__(self, vocab_size: int, device: torch.device):
        self.weights = torch.zeros(0, vocab_size, device=device)
        self.following = torch.zeros(0, vocab_size, dtype=torch.int64, device=device)
        self.known: List[Constraints] = []
        self.first: Dict[int, int] = {}
        self.translations: Dict[Tuple[int, int], List[int]] = {}

    def add(self, constraints: Constraints) -> int:
        """The first state of these constraints, which are added if they are not known."""
        key = id(constraints)
        if key not in self.first:
            self.known.append(constraints)  # kept, so that no other object gets its id
            self.first[key] = len(self.weights)
            device, before = self.weights.device, len(self.weights)
            self.weights = torch.cat([self.weights, constraints.weights.to(device)])
            self.following = torch.cat([self.following, constraints.following.to(device) + before])
        return self.first[key]

    def rules(self, starts: List[int]) -> Rules:
        """The table for a batch of streams with these first states."""
        start = torch.tensor(starts, device=self.weights.device)[:, None]
        return Rules(self.weights, self.following.flatten(), start)

    def translate(self, state: int, old: Constraints, new: Constraints) -> int:
        """The state of ``new`` that fits what was written under ``old``.

        It is the state after the shortest text that leads to ``state``, without the symbols that ``new`` bars: so a
        span that was open is given up with its task, and one that is known to both stays open.
        """
        key = (id(old), id(new))
        first, other = self.add(old), self.add(new)
        if key not in self.translations:
            self.translations[key] = [_walk(new, text) for text in _shortest_texts(old)]
        return other + self.translations[key][state - first]


def _shortest_texts(constraints: Constraints) -> List[List[int]]:
    """For each state a shortest sequence of symbols that leads to it, breadth first."""
    texts: Dict[int, List[int]] = {0: []}
    queue = [0]
    for state in queue:
        after = constraints.following[state]
        for symbol in (constraints.weights[state] > NEG_INF).nonzero().flatten().tolist():
            if int(after[symbol]) not in texts:
                texts[int(after[symbol])] = [*texts[state], symbol]
                queue.append(int(after[symbol]))
    return [texts[state] for state in range(len(constraints.weights))]


def _walk(constraints: Constraints, symbols: List[int]) -> int:
    """The state after those of the symbols that are allowed."""
    state = 0
    for symbol in symbols:
        if constraints.weights[state, symbol] > NEG_INF:
            state = int(constraints.following[state, symbol])
    return state

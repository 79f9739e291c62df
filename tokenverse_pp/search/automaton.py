"""Rules on what may be written next, as finite automata compiled into two tables.

A `Filter` is one rule: a start state, which symbols a state allows, and the state after a symbol. Filters compose:
`compile_filters` walks the states that all of them reach together and writes down, for each, a row of log-weights (0 or
-inf) over the vocabulary and a row of next states. In the search a hypothesis then carries one integer, and applying
every rule to a whole batch costs one table look-up a frame.

The weights are added *after* the softmax, and scores are not normalised again. So the log-probability of a hypothesis
is that of the model whatever is barred (without filters, exactly icefall's), and ranking the hypotheses that are
allowed is ranking by the model's distribution conditioned on being allowed. Normalising at each frame instead would
reward prefixes after which most of the probability is barred (label bias). The blank is always allowed, hence there is
always a way on and filters never empty a beam.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Dict, Hashable, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

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
class Constraints:
    """Compiled rules: ``weights`` (S, V) float32, 0 or -inf; ``following`` (S, V) int64. State 0 is the start."""

    weights: Tensor
    following: Tensor

    @staticmethod
    def join(each: Sequence[Constraints]) -> Tuple[Constraints, List[int]]:
        """The constraints of several utterances as one, and the start state of each utterance."""
        first_state: Dict[int, int] = {}
        distinct: List[Constraints] = []
        total = 0
        for item in each:
            if id(item) not in first_state:
                first_state[id(item)] = total
                distinct.append(item)
                total += len(item.weights)
        weights = torch.cat([item.weights for item in distinct])
        following = torch.cat([item.following + first_state[id(item)] for item in distinct])
        return Constraints(weights, following), [first_state[id(item)] for item in each]

    def allows(self, tokens: Sequence[int]) -> bool:
        """Whether a sequence of vocabulary ids is allowed."""
        state = 0
        for token in tokens:
            if self.weights[state, token] == NEG_INF:
                return False
            state = int(self.following[state, token])
        return True


@dataclass
class Rules:
    """The constraints of a batch: log-weights (S, V), next states (S * V,), first state of each utterance (N, 1)."""

    weights: Tensor
    following: Tensor
    start: Tensor

    @classmethod
    def arrange(
        cls, constraints: Union[Constraints, Sequence[Constraints]], order: Sequence[int], device: torch.device
    ) -> Rules:
        """Put the same constraints for all utterances, or those of each, on a device and in an order."""
        every = [constraints] * len(order) if isinstance(constraints, Constraints) else constraints
        joined, starts = Constraints.join([every[i] for i in order])
        start = torch.tensor(starts, device=device)[:, None]
        return cls(joined.weights.to(device), joined.following.flatten().to(device), start)


def compile_filters(
    filters: Sequence[Filter], symbol_ids: Mapping[str, int], vocab_size: int, blank_id: int = 0
) -> Constraints:
    """Compose filters.

    Args:
        filters: all must allow a symbol.
        symbol_ids: the special tokens and their ids; every other id but the blank is an ordinary piece.
        vocab_size: V, blank included.
        blank_id: always allowed, never changes a state.
    """
    start = tuple(f.start for f in filters)
    number: Dict[Tuple[Hashable, ...], int] = {start: 0}
    pending = [start]
    rows: List[Dict[Optional[str], Optional[int]]] = []
    while pending:
        state = pending.pop(0)
        row: Dict[Optional[str], Optional[int]] = {}
        for symbol in (None, *symbol_ids):
            row[symbol] = None
            if all(f.allows(s, symbol) for f, s in zip(filters, state)):
                after = tuple(f.advance(s, symbol) for f, s in zip(filters, state))
                if after not in number:
                    number[after] = len(number)
                    pending.append(after)
                row[symbol] = number[after]
        rows.append(row)
    weights = torch.zeros(len(rows), vocab_size)
    following = torch.arange(len(rows))[:, None].repeat(1, vocab_size)
    special = set(symbol_ids.values())
    ordinary = [i for i in range(vocab_size) if i != blank_id and i not in special]
    for i, row in enumerate(rows):
        for symbol, state_after in row.items():
            ids = ordinary if symbol is None else [symbol_ids[symbol]]
            if state_after is None:
                weights[i, ids] = NEG_INF
            else:
                following[i, ids] = state_after
    return Constraints(weights, following)

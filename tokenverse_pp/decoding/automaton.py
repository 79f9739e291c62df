"""Rules on what may be written next, as the tables of `tokenverse_pp.decoding.constraints` in torch.

The weights are added *after* the softmax, and scores are not normalised again. So the log-probability of a hypothesis
is that of the model whatever is barred (without filters, exactly icefall's), and ranking the hypotheses that are
allowed is ranking by the model's distribution conditioned on being allowed. Normalising at each frame instead would
reward prefixes after which most of the probability is barred (label bias). The blank is always allowed, hence there is
always a way on and filters never empty a beam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Mapping, Sequence, Tuple, Union

import torch
from torch import Tensor

from tokenverse_pp.decoding.constraints import NEG_INF, Filter, RuleTables, compile_tables

__all__ = ["NEG_INF", "Constraints", "Filter", "Rules", "compile_filters"]


@dataclass(frozen=True)
class Constraints:
    """Compiled rules: ``weights`` (S, V) float32, 0 or -inf; ``following`` (S, V) int64. State 0 is the start."""

    weights: Tensor
    following: Tensor

    @classmethod
    def of(cls, tables: RuleTables) -> Constraints:
        """The same numbers as tensors."""
        return cls(torch.from_numpy(tables.weights), torch.from_numpy(tables.following))

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
    """`compile_tables` of the same arguments, as tensors."""
    return Constraints.of(compile_tables(filters, symbol_ids, vocab_size, blank_id))

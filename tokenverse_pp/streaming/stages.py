"""What the stages of a streaming encoder have in common: state by name, of one stream or of a batch of streams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Dict, List, NamedTuple, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

State = Dict[str, Tensor]


class Place(NamedTuple):
    """Where the streams of a batch are; the same for all of them, but for the tasks."""

    first: bool  # this is each stream's first chunk
    last: bool  # and this its last
    active: Tensor  # (N, K + 1)


class Stage(ABC):
    """One stage of the encoder, for batches of streams whose chunks have the same number of frames."""

    @abstractmethod
    def start(self) -> State:
        """The state of one new stream."""

    @abstractmethod
    def step(self, x: Tensor, state: State, place: Place) -> Tensor:
        """Take the next input of N streams (N, ..), and give what can be said now.

        ``state`` is that of the batch: the entries of `start` with N in front. The stage replaces its own entries.
        """


def batch_states(states: Sequence[State]) -> State:
    """States of streams -> state of the batch; windows that grow are filled up on the left (last but one axis)."""
    batched = {}
    for key, tensor in states[0].items():
        tensors = [state[key] for state in states]
        if len(states) == 1:
            batched[key] = tensor.unsqueeze(0)
            continue
        longest = max(t.shape[-2] if t.dim() > 1 else 0 for t in tensors)
        if any(t.shape != tensor.shape for t in tensors):
            tensors = [F.pad(t, (0, 0, longest - t.shape[-2], 0)) for t in tensors]
        batched[key] = torch.stack(tensors)
    return batched


def split_state(state: State, count: int) -> List[State]:
    """State of a batch -> states of its streams, none of which holds on to the memory of the others."""
    if count == 1:
        return [{key: tensor[0] for key, tensor in state.items()}]
    return [{key: tensor[row].clone() for key, tensor in state.items()} for row in range(count)]

"""The joiner: logits = Linear(tanh(W_e enc + W_d dec)), as in icefall."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Joiner(nn.Module):
    """Joins encoder frames (C) and predictor states (D) in a space of dimension J.

    The projections are methods of their own, because the pruned loss and the search each project once and join often.
    """

    def __init__(self, encoder_dim: int, predictor_dim: int, joiner_dim: int, vocab_size: int):
        super().__init__()
        self.encoder_proj = nn.Linear(encoder_dim, joiner_dim)
        self.predictor_proj = nn.Linear(predictor_dim, joiner_dim)
        self.output = nn.Linear(joiner_dim, vocab_size)

    def forward(self, am: Tensor, lm: Tensor) -> Tensor:
        """am and lm (..., J), already projected and broadcastable -> logits (..., V)."""
        return self.output(torch.tanh(am + lm))

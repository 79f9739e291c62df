"""The stateless predictor (Ghodsi et al., 2020; as in icefall's decoder.py): an embedding and one Conv1d."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StatelessPredictor(nn.Module):
    """Sees only the last ``context_size`` tokens.

    Args:
        vocab_size: V, blank included.
        dim: D, the dimension of embedding and output.
        context_size: tokens of history, at least 1.
        blank_id: the blank; it fills the history before the first token, and embeds to zero.
        dropout: on the embedding, while training.
    """

    def __init__(self, vocab_size: int, dim: int, context_size: int = 2, blank_id: int = 0, dropout: float = 0.0):
        super().__init__()
        if context_size < 1:
            raise ValueError(f"context_size must be at least 1, got {context_size}")
        self.context_size = context_size
        self.blank_id = blank_id
        self.dim = dim
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=blank_id)
        self.dropout = nn.Dropout(dropout)
        groups = dim // 4 if dim % 4 == 0 else 1  # groups of four channels, as icefall's
        self.conv = nn.Conv1d(dim, dim, context_size, groups=groups, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (N, U) int64 without blanks -> (N, U + 1, D): the state before each token, and after the last."""
        return self._run(F.pad(tokens, (self.context_size, 0), value=self.blank_id))

    def step(self, history: Tensor) -> Tensor:
        """history (N, context_size), the newest token last -> (N, D)."""
        return self._run(history).squeeze(1)

    def _run(self, history: Tensor) -> Tensor:
        """(N, U + context_size) -> (N, U + 1, D), or (N, 1, D) for a history of exactly context_size."""
        embedded = self.dropout(self.embedding(history))
        return torch.relu(self.conv(embedded.transpose(1, 2)).transpose(1, 2))

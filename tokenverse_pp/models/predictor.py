"""Predictors of the transducer: stateless (the last tokens) and LSTM (all tokens)."""

from __future__ import annotations

from typing import Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenverse_pp.base.config import ModelConfig
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.tokenizer import BLANK_ID


class StatelessPredictor(nn.Module):
    """Embeds the last ``context_size`` tokens with one Conv1d (Ghodsi et al., 2020; as in icefall's decoder.py).

    Args:
        vocab_size: V, blank included.
        dim: D, the dimension of embedding and output.
        context_size: tokens of history, at least 1.

    Raises:
        UserError: a search could not number the contexts with 64 bits (`decoding.scorer.PredictorTable`).
    """

    blank_id = BLANK_ID  # fills the history before the first token; embeds to zero
    symbols_per_frame = 1  # of greedy search

    def __init__(self, vocab_size: int, dim: int, context_size: int = 2, dropout: float = 0.0):
        super().__init__()
        if context_size < 1:
            raise ValueError(f"context_size must be at least 1, got {context_size}")
        most = next((size for size in range(63) if vocab_size ** (size + 1) >= 2**63), context_size)
        if context_size > most:
            raise UserError(f"--model.context_size={context_size}: with {vocab_size} tokens, expected at most {most}")
        self.context_size = context_size
        self.dim = dim
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=self.blank_id)
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
        if embedded.is_cuda and self.conv.groups > 1:
            return torch.relu(grouped_by_product(embedded, self.conv))
        return torch.relu(self.conv(embedded.transpose(1, 2)).transpose(1, 2))


def grouped_by_product(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """A convolution without bias and padding as one batched product, (N, T, C) -> (N, T', C').

    cuDNN runs each group separately: three launches for every four channels of a predictor.
    """
    windows = x.unfold(1, conv.kernel_size[0], 1).unflatten(2, (conv.groups, -1))  # (N, T', G, I, taps)
    return torch.einsum("ntgik,goik->ntgo", windows, conv.weight.unflatten(0, (conv.groups, -1))).flatten(2)


class LstmPredictor(nn.Module):
    """An embedding and LSTM layers, like the decoder of Parakeet's and Nemotron's RNN-T in transformers.

    The projection of their decoder is part of the joiner here. ``dim``: D, the dimension of embedding and output.
    """

    blank_id = BLANK_ID  # read before the first token

    context_size = 1  # added to the number of tokens in length normalisation (`SearchOptions.length_norm`)
    symbols_per_frame = 1  # of greedy search

    def __init__(self, vocab_size: int, dim: int, layers: int, dropout: float = 0.0):
        super().__init__()
        self.dim = dim
        self.embedding = nn.Embedding(vocab_size, dim)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(dim, dim, layers, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (N, U) int64 without blanks -> (N, U + 1, D): the state before each token, and after the last."""
        return self.lstm(self.dropout(self.embedding(F.pad(tokens, (1, 0), value=self.blank_id))))[0]

    def step(self, tokens: Tensor, state: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """Read one token per row (N,) after a state (2, layers, N, D) -> output (N, D) and the next state.

        Without a state (at the start), the tokens must be blanks.
        """
        before = None if state is None else (state[0].contiguous(), state[1].contiguous())
        out, (hidden, cell) = self.lstm(self.embedding(tokens).unsqueeze(1), before)
        return out.squeeze(1), torch.stack([hidden, cell])


Predictor = Union[StatelessPredictor, LstmPredictor]


def make_predictor(config: ModelConfig, vocab_size: int) -> Predictor:
    """Build the predictor of a configuration."""
    predictor: Predictor
    dim, dropout = config.predictor_dim, config.predictor_dropout
    if config.predictor_layers:
        predictor = LstmPredictor(vocab_size, dim, config.predictor_layers, dropout)
    else:
        predictor = StatelessPredictor(vocab_size, dim, config.context_size, dropout)
    predictor.symbols_per_frame = config.symbols_per_frame
    return predictor

"""Random inputs for the loss: ragged batches, empty references, small vocabularies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

RNNT_TYPES = ("regular", "modified", "constrained")


class Case(NamedTuple):
    am_simple: Tensor
    lm_simple: Tensor
    am: Tensor
    lm: Tensor
    weight: Tensor
    bias: Tensor
    symbols: Tensor
    boundary: Tensor
    rnnt_type: str
    delay_penalty: float
    prune_range: int
    lm_scale: float
    am_scale: float

    @property
    def inputs(self) -> tuple:
        return self[:6]

    def linear(self) -> torch.nn.Linear:
        layer = torch.nn.Linear(self.weight.shape[1], self.weight.shape[0], dtype=self.weight.dtype)
        layer.weight.data.copy_(self.weight)
        layer.bias.data.copy_(self.bias)
        return layer


def make_case(
    seed: int,
    batch: int,
    frames: int,
    symbols: int,
    vocab: int = 7,
    joiner_dim: int = 5,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    prune_range: int = 3,
    lm_scale: float = 0.25,
    am_scale: float = 0.1,
    scale: float = 2.0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """Lengths are drawn so that each utterance has at least as many frames as symbols; the first is full."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale).to(dtype)

    boundary = torch.zeros(batch, 4, dtype=torch.int64)
    for b in range(batch):
        t = frames if b == 0 else int(torch.randint(1, frames + 1, (1,), generator=g))
        top = min(symbols, t)
        boundary[b, 2] = top if b == 0 else int(torch.randint(0, top + 1, (1,), generator=g))
        boundary[b, 3] = t
    return Case(
        normal(batch, frames, vocab),
        normal(batch, symbols + 1, vocab),
        normal(batch, frames, joiner_dim),
        normal(batch, symbols + 1, joiner_dim),
        normal(vocab, joiner_dim),
        normal(vocab),
        torch.randint(1, vocab, (batch, symbols), generator=g),
        boundary,
        rnnt_type,
        delay_penalty,
        prune_range,
        lm_scale,
        am_scale,
    )


@st.composite
def cases(draw: st.DrawFn, min_symbols: int = 0) -> Case:
    """Batches of 1 to 4; with `min_symbols` 1 they suit k2, which refuses a batch of only empty references."""
    symbols = draw(st.integers(min_symbols, 7))
    return make_case(
        seed=draw(st.integers(0, 2**31 - 1)),
        batch=draw(st.integers(1, 4)),
        frames=draw(st.integers(max(symbols, 1), 13)),
        symbols=symbols,
        vocab=draw(st.integers(2, 9)),
        rnnt_type=draw(st.sampled_from(RNNT_TYPES)),
        delay_penalty=draw(st.sampled_from([0.0, 0.125])),
        prune_range=draw(st.integers(2, 6)),
        lm_scale=draw(st.sampled_from([0.0, 0.25])),
        am_scale=draw(st.sampled_from([0.0, 0.1])),
    )

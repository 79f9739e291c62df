"""A `LanguageModel` as arrays on a device, and the Triton functions that read them: gains of tokens, next states.

States are those of `LanguageModel`. The n-grams that continue a state are contiguous and sorted by token, so they are
found by bisection, from the longest context to the empty one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenverse_pp.decoding.language_models import LanguageModel
from tokenverse_pp.decoding.ngram import Ngrams


class NgramTables(NamedTuple):
    """G states (0: the language is not known yet), K n-grams, M models, V tokens.

    contexts: (G, 5) int64 for each state: its first n-gram, the one after its last, its suffix, its model, and whether
        it is an empty context.
    back_off, over: (G,) float64 for each state: its back-off weight, and log P(end).
    token, log_prob: (K,) int32 and float64 for each n-gram. target: (K,) int64, the state after it.
    models: (M, 2) int64, the start of each, and whether it is a model of words. lowest: (M,) float64.
    first_row: (M, V) float64, log-probabilities at a word's start.
    kinds: (V, 3) int64 for each token: whether it is idle, whether it begins a word, the state that it enters.
    """

    contexts: Tensor
    back_off: Tensor
    over: Tensor
    token: Tensor
    log_prob: Tensor
    target: Tensor
    models: Tensor
    lowest: Tensor
    first_row: Tensor
    kinds: Tensor
    start: int
    scale: float
    bonus: float
    depth: int  # contexts on the way from the longest to the empty one
    bisections: int

    @classmethod
    def of(cls, model: LanguageModel, device: torch.device) -> NgramTables:
        """Build the arrays of a model."""
        size = model.vocab_size
        contexts, back_off, over = [np.zeros((1, 5), dtype=np.int64)], [np.zeros(1)], [np.zeros(1)]
        token, log_prob, target, heads, rows = [], [], [], [], []
        ngrams = 0
        for number, ((ngram, words), first) in enumerate(zip(model.models, model.first)):
            own = np.arange(ngram.states)
            columns = (ngrams + ngram.first[:-1], ngrams + ngram.first[1:], 1 + first + ngram.suffix)
            contexts.append(np.stack([*columns, np.full(ngram.states, number), own == 0], axis=1))
            back_off.append(ngram.back_off)
            over.append(_end_of(ngram))
            token.append(ngram.token)
            log_prob.append(ngram.log_prob)
            target.append(1 + first + ngram.useful[1:])
            heads.append((1 + first + ngram.start, int(words)))
            rows.append(ngram.row(ngram.start)[:size])
            ngrams += len(ngram.token)
        entry = np.zeros(size, dtype=np.int64)
        entry[list(model.entry)] = list(model.entry.values())
        joined = np.concatenate(contexts)
        arrays = (
            joined, np.concatenate(back_off), np.concatenate(over), np.concatenate(token).astype(np.int32),
            np.concatenate(log_prob), np.concatenate(target), np.array(heads, dtype=np.int64),
            np.array([ngram.lowest for ngram, _ in model.models]), np.stack(rows),
            np.stack([model.idle, model.begins, entry], axis=1).astype(np.int64),
        )  # fmt: skip
        most = int((joined[:, 1] - joined[:, 0]).max())
        depth = max(_depth(ngram) for ngram, _ in model.models)
        tensors = tuple(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)
        return cls._make((*tensors, int(model.start), model.scale, model.bonus, depth, most.bit_length()))


def _end_of(ngram: Ngrams) -> np.ndarray:
    """log P(end) in each state."""
    value = np.full(ngram.states, np.nan)
    parent = np.repeat(np.arange(ngram.states), np.diff(ngram.first))
    ends = ngram.token == ngram.end
    value[parent[ends]] = ngram.log_prob[ends]
    if np.isnan(value[0]):
        value[0] = ngram.lowest
    while np.isnan(value).any():  # suffixes are shorter, so known after some rounds
        missing = np.flatnonzero(np.isnan(value))
        value[missing] = ngram.back_off[missing] + value[ngram.suffix[missing]]
    return value


def _depth(ngram: Ngrams) -> int:
    """The most contexts from a state to the empty one, both included."""
    state, depth = np.arange(ngram.states), 1
    while state.any():
        state, depth = ngram.suffix[state], depth + 1
    return depth


@triton.jit
def _find(tokens, low, high, token, BISECTIONS: tl.constexpr):
    """Find a token among n-grams [low, high): its index, and whether it is there; arguments of one shape."""
    end = high
    for _ in tl.static_range(BISECTIONS):
        middle = (low + high) // 2
        open_ = low < high
        below = tl.load(tokens + middle, mask=open_, other=0) < token
        low = tl.where(open_ & below, middle + 1, low)
        high = tl.where(open_ & (below == 0), middle, high)
    there = low < end
    return low, there & (tl.load(tokens + low, mask=there, other=-1) == token)


@triton.jit
def ngram_after(
    states, token, tokens, target, contexts, models, kinds, start, DEPTH: tl.constexpr, BISECTIONS: tl.constexpr
):
    """The states (S,) int64 after tokens (S,): `LanguageModel.advance`."""
    idle = tl.load(kinds + 3 * token)
    begins = tl.load(kinds + 3 * token + 1)
    entry = tl.load(kinds + 3 * token + 2)
    state = tl.where(states == 0, start, states)
    known = state != 0
    model = tl.load(contexts + 5 * state + 3)
    words = tl.load(models + 2 * model + 1)
    context = tl.where((words != 0) & (begins != 0), tl.load(models + 2 * model), state)
    after = context
    found = context < 0  # all False
    for _ in tl.static_range(DEPTH):
        low, high = tl.load(contexts + 5 * context), tl.load(contexts + 5 * context + 1)
        at, hit = _find(tokens, low, high, token, BISECTIONS)
        hit = hit & (found == 0)
        after = tl.where(hit, tl.load(target + at, mask=hit, other=0), after)
        # If nothing is found, the state is the empty context, where the suffixes end.
        context = tl.load(contexts + 5 * context + 2)
        after = tl.where(found | hit, after, context)
        found = found | hit
    unknown = tl.where((idle != 0) & (entry != 0), entry, states)
    return tl.where(known, tl.where(idle != 0, states, after), unknown)


@triton.jit(do_not_specialize=["offset", "slots"])
def ngram_gains_kernel(
    states, gains, clock, offset, slots, vocab, start, contexts, back_off, over, tokens, log_prob, models, lowest,
    first_row, kinds, SCALE: tl.constexpr, BONUS: tl.constexpr, DEPTH: tl.constexpr, BISECTIONS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """`LanguageModel.row` of one hypothesis."""
    slot = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocab
    state = tl.load(states + ((tl.load(clock) + offset) % 2) * slots + slot)
    state = tl.where(state == 0, start, state)
    model = tl.load(contexts + 5 * state + 3)
    value = tl.zeros((BLOCK,), tl.float64) + tl.load(lowest + model)
    passed = tl.zeros((), tl.float64)  # back-off weights of the longer contexts
    found = token < 0  # all False
    context = state
    for _ in tl.static_range(DEPTH):
        low, high = tl.load(contexts + 5 * context), tl.load(contexts + 5 * context + 1)
        none = tl.zeros((BLOCK,), tl.int64)
        at, hit = _find(tokens, none + low, none + high, token, BISECTIONS)
        hit = hit & (found == 0)
        value = tl.where(hit, passed + tl.load(log_prob + at, mask=hit, other=0.0), value)
        found = found | hit
        empty = tl.load(contexts + 5 * context + 4) != 0
        passed += tl.where(empty, 0.0, tl.load(back_off + context))
        context = tl.load(contexts + 5 * context + 2)
    value = tl.where(found, value, value + passed)
    words, first = tl.load(models + 2 * model + 1) != 0, tl.load(models + 2 * model)
    idle = tl.load(kinds + 3 * token, mask=inside, other=1) != 0
    begins = tl.load(kinds + 3 * token + 1, mask=inside, other=0) != 0
    fresh = tl.load(over + state) + tl.load(first_row + model * vocab + token, mask=inside, other=0.0)
    value = tl.where(begins & words & (state != first), fresh, value)
    gain = tl.where(idle | (state == 0), 0.0, SCALE * value + BONUS)
    tl.store(gains + slot * vocab + token, gain.to(tl.float32), mask=inside)

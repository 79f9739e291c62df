"""Greedy search on a GPU: one kernel, whose programs each decode one utterance from its first frame to its last.

The contexts of the next frames are known until the next token. So the program scores a block of frames as if the block
had no tokens, keeps the frames up to the first one that has a token, and continues after it. Nothing is exchanged
between programs and nothing is read back before the end: a search is one launch for any number of frames. It reads the
joiner's weights once per token, not once per frame. `decoding.greedy` does the same on a CPU with all utterances.

Equal scores are ordered by symbol, as on a CPU.
"""

from __future__ import annotations

from typing import Any, Optional, Sequence, Tuple

import numpy as np
import torch
import triton
import triton.language as tl

from tokenverse_pp.decoding.scorer import LARGEST_EXPONENT, BatchConstraints, Scorer
from tokenverse_pp.decoding.search_kernels import block_of, dot

FRAMES = 16  # of a block: the fewest rows of a matrix product on tensor cores
# Of the joiner's last layer. One processor reads all of it for each token; above this, the processors of a GPU together
# are faster (`triton_search` with a beam of 1).
LARGEST_LAYER = 4 * 2**20  # bytes


@triton.jit(do_not_specialize=["num_frames", "utterances"])
def greedy_kernel(
    frames, taps, weight, bias, out_weight, out_bias, constraint_weights, following, contexts, states, lengths, powers,
    hidden, tokens, log_probs, num_frames, utterances, vocab, depth, size, modulus, blank,
    CONTEXT: tl.constexpr, LARGEST: tl.constexpr, HALF: tl.constexpr, PENALTY: tl.constexpr, TEMPERATURE: tl.constexpr,
    CONSTRAINED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TERMS: tl.constexpr, WIDTH: tl.constexpr,
    DEPTH: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Decode one utterance. ``powers`` (N, J) and ``hidden`` (N, ROWS, J) are memory of its program."""
    n = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + n)
    context, state = tl.load(contexts + n), tl.load(states + n)
    slot, term = tl.arange(0, ROWS), tl.arange(0, DEPTH)
    t = tl.full((), 0, tl.int32)
    changed = length > 0
    while t < length:
        tl.debug_barrier()  # the last block's numbers have been read
        if changed:
            # exp(2b), b: the projection of the predictor's output, which is the relu of a convolution over tokens
            predicted = tl.zeros((DEPTH,), tl.float32)
            rest = context
            for i in tl.static_range(CONTEXT):  # the last token is the last digit
                tap = ((CONTEXT - 1 - i) * vocab + rest % vocab) * depth
                rest = rest // vocab
                predicted += tl.load(taps + tap + term, mask=term < depth, other=0.0).to(tl.float32)
            predicted = tl.maximum(predicted, 0.0).to(weight.dtype.element_ty).to(tl.float32)
            for first in range(0, size, OUTPUTS):
                column = first + tl.arange(0, OUTPUTS)
                some = (column < size)[:, None] & (term < depth)[None, :]
                w = tl.load(weight + column[:, None] * depth + term[None, :], mask=some, other=0.0)
                b = tl.sum(w.to(tl.float32) * predicted[None, :], 1)
                b += tl.load(bias + column, mask=column < size, other=0.0).to(tl.float32)
                b = b.to(bias.dtype.element_ty).to(tl.float32)
                power = tl.exp(tl.minimum(tl.maximum(b, -LARGEST), LARGEST))
                tl.store(powers + n * size + column, power, mask=column < size)
            tl.debug_barrier()
        row = t + slot
        real = row < length
        for first in range(0, size, WIDTH):
            at = first + tl.arange(0, WIDTH)
            some = real[:, None] & (at < size)[None, :]
            place = (row.to(tl.int64) * utterances + n)[:, None] * size + at[None, :]
            a = tl.load(frames + place, mask=some, other=0.0)
            r = 1.0 / (1.0 + a * tl.load(powers + n * size + at, mask=at < size, other=0.0)[None, :])
            if HALF:
                r = 0.5 - r
            place = (n * ROWS + slot)[:, None] * size + at[None, :]
            tl.store(hidden + place, r.to(hidden.dtype.element_ty), mask=some)
        tl.debug_barrier()
        # The joiner's last layer, and the best symbol and the sum of the softmax so far
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        summed = tl.zeros((ROWS,), tl.float32)
        best = tl.full((ROWS,), float("-inf"), tl.float32)
        symbol = tl.zeros((ROWS,), tl.int32)
        for first in range(0, vocab, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            inside = column < vocab
            x = tl.zeros((ROWS, COLUMNS), tl.float32)
            for start in range(0, size, TERMS):
                at = start + tl.arange(0, TERMS)
                place = (n * ROWS + slot)[:, None] * size + at[None, :]
                r = tl.load(hidden + place, mask=(at < size)[None, :] & real[:, None], other=0.0)
                some = (at < size)[:, None] & inside[None, :]
                w = tl.load(out_weight + column[None, :] * size + at[:, None], mask=some, other=0.0)
                x = dot(r, w, x)
            x += tl.load(out_bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
            x = x.to(out_weight.dtype.element_ty).to(tl.float32)
            x = (x - tl.where(column == blank, PENALTY, 0.0)[None, :]) / TEMPERATURE
            x = tl.where(inside[None, :], x, float("-inf"))
            higher = tl.maximum(top, tl.max(x, 1))
            summed = summed * tl.exp(top - higher) + tl.sum(tl.exp(x - higher[:, None]), 1)
            top = higher
            if CONSTRAINED:
                added = tl.load(constraint_weights + state * vocab + column, mask=inside, other=0.0)
                x += added[None, :]
            value, which = tl.max(x, 1, return_indices=True, return_indices_tie_break_left=True)
            better = value > best
            symbol = tl.where(better, first + which, symbol)
            best = tl.where(better, value, best)
        # Frames are kept up to the first one with a token.
        token_at = tl.min(tl.where(real & (symbol != blank), slot, ROWS), 0)
        keep = real & (slot <= token_at)
        out = n * num_frames + row
        tl.store(tokens + out, symbol, mask=keep)
        tl.store(log_probs + out, best - top - tl.log(summed), mask=keep)
        changed = token_at < ROWS
        token = tl.sum(tl.where(slot == token_at, symbol, 0), 0).to(tl.int64)
        context = tl.where(changed, context % (modulus // vocab) * vocab + token, context)
        if CONSTRAINED:
            state = tl.where(changed, tl.load(following + state * vocab + token), state)
        t += tl.minimum(token_at + 1, ROWS)
    tl.store(contexts + n, context)
    tl.store(states + n, state)


def fits(scorer: Scorer) -> bool:
    """Whether this kernel is the faster one for the size of the joiner's last layer."""
    return scorer.weight.numel() * scorer.weight.element_size() <= LARGEST_LAYER


def greedy_on_device(
    scorer: Scorer,
    lengths: Sequence[int],
    contexts: np.ndarray,
    states: np.ndarray,
    constraints: Optional[BatchConstraints],
) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Decode the scorer's frames (T, N, J) on their device.

    Args:
        contexts, states: of predictor and constraints before the first frame, (N,) int64 each.

    Returns:
        The symbols (N, T) and their log-probabilities (N, T), blanks of log-probability 0 after the end of an
        utterance, and the final contexts and states.
    """
    table: Any = scorer.contexts  # a `PredictorTable`
    frames = scorer.frames.contiguous()
    (num_frames, utterances, size), device = frames.shape, frames.device
    taps = torch.stack(table.taps)  # (C, V, D)
    tokens = torch.full((utterances, num_frames), scorer.blank_id, dtype=torch.int32, device=device)
    log_probs = torch.zeros((utterances, num_frames), dtype=torch.float32, device=device)
    context, state = (torch.from_numpy(np.array(x, dtype=np.int64)).to(device) for x in (contexts, states))
    powers = torch.empty((utterances, size), dtype=torch.float32, device=device)
    hidden = torch.empty((utterances, FRAMES, size), dtype=scorer.reduced or torch.float32, device=device)
    # Placeholders for unused arguments, which are not read.
    weights, following = constraints[:2] if constraints is not None else (powers, tokens)
    depth = taps.shape[2]
    # A program has a processor to itself. Its registers hold 64 KiB of the predictor's projection, then 16 KiB of the
    # encoder's frames. Of the last layer, 128 bytes of each of 128 rows are loaded at once, several steps ahead.
    terms, whole = 128 // scorer.weight.element_size(), triton.next_power_of_2(depth)
    with torch.cuda.device_of(frames):
        greedy_kernel[(utterances,)](
            frames, taps, table.weight, table.bias, scorer.weight, scorer.bias, weights, following, context, state,
            torch.tensor(lengths, dtype=torch.int32, device=device), powers, hidden, tokens, log_probs, num_frames,
            utterances, scorer.vocab_size, depth, size, table.modulus, scorer.blank_id, CONTEXT=table.size,
            LARGEST=LARGEST_EXPONENT, HALF=scorer.reduced is not None, PENALTY=scorer.options.blank_penalty,
            TEMPERATURE=scorer.options.temperature, CONSTRAINED=constraints is not None, ROWS=FRAMES,
            COLUMNS=block_of(scorer.vocab_size, 128), TERMS=block_of(size, terms), WIDTH=block_of(size, 256),
            DEPTH=whole, OUTPUTS=max(2**14 // whole, 1), num_warps=8, num_stages=5, maxnreg=240,
        )  # fmt: skip
    return tuple(x.cpu().numpy() for x in (tokens, log_probs, context, state))  # type: ignore[return-value]

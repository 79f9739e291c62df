"""The kernels of `triton_search`, which describes what each does at a frame.

``clock`` is the number of frames before the first one of a CUDA graph; each kernel adds its frame's ``offset`` to it.
The state of the hypotheses is stored twice: an even frame reads the first copy and writes the second, an odd frame does
the opposite.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tokenverse_pp.decoding.ngram_tables import ngram_after


def block_of(size: int, most: int) -> int:
    """Return how much of an axis of this size a program of a matrix product loads at once: a power of two."""
    return min(max(triton.next_power_of_2(size), 16), most)


@triton.jit
def dot(a, b, total):
    """``total + a @ b``; float32 by three TF32 products, which are as exact as one in float32."""
    if a.dtype == tl.float32:
        return tl.dot(a, b, total, input_precision="tf32x3")
    return tl.dot(a, b, total)


@triton.jit(do_not_specialize=["offset", "slots", "num_frames", "utterances"])
def hidden_kernel(
    contexts, taps, weight, bias, frames, hidden, clock, offset, slots, num_frames, utterances, beam, vocab, depth,
    size, CONTEXT: tl.constexpr, LARGEST: tl.constexpr, HALF: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """1 / (1 + exp(2a) exp(2b)) of hypotheses (see `Scorer`), or 1/2 minus that.

    b is the projection of the predictor's output, which is the relu of a convolution over the last tokens.
    """
    slot = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real, inside = slot < slots, column < size
    t = tl.load(clock) + offset
    context = tl.load(contexts + (t % 2) * slots + slot, mask=real, other=0)
    b = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, depth, DEPTH):
        at = first + tl.arange(0, DEPTH)
        predicted = tl.zeros((ROWS, DEPTH), tl.float32)
        rest = context
        for i in tl.static_range(CONTEXT):  # the last token is the last digit
            row = ((CONTEXT - 1 - i) * vocab + rest % vocab) * depth
            rest = rest // vocab
            some = real[:, None] & (at < depth)[None, :]
            predicted += tl.load(taps + row[:, None] + at[None, :], mask=some, other=0.0).to(tl.float32)
        some = (at < depth)[:, None] & inside[None, :]
        w = tl.load(weight + column[None, :] * depth + at[:, None], mask=some, other=0.0)
        b = dot(tl.maximum(predicted, 0.0).to(w.dtype), w, b)
    b += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    b = b.to(bias.dtype.element_ty).to(tl.float32)
    row = tl.minimum(t, num_frames - 1).to(tl.int64) * utterances + slot // beam
    some = real[:, None] & inside[None, :]
    a = tl.load(frames + row[:, None] * size + column[None, :], mask=some, other=0.0)
    r = 1.0 / (1.0 + a * tl.exp(tl.minimum(tl.maximum(b, -LARGEST), LARGEST)))
    if HALF:
        r = 0.5 - r
    tl.store(hidden + slot[:, None] * size + column[None, :], r.to(hidden.dtype.element_ty), mask=some)


@triton.jit(do_not_specialize=["slots"])
def logits_kernel(
    hidden, weight, bias, logits, slots, vocab, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr
):
    """The joiner's last layer."""
    slot = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real, inside = slot < slots, column < vocab
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, size, DEPTH):
        at = first + tl.arange(0, DEPTH)
        some = real[:, None] & (at < size)[None, :]
        r = tl.load(hidden + slot[:, None] * size + at[None, :], mask=some, other=0.0)
        some = (at < size)[:, None] & inside[None, :]
        w = tl.load(weight + column[None, :].to(tl.int64) * size + at[:, None], mask=some, other=0.0)
        total = dot(r, w, total)
    total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    some = real[:, None] & inside[None, :]
    tl.store(logits + slot[:, None] * vocab + column[None, :], total.to(logits.dtype.element_ty), mask=some)


@triton.jit(do_not_specialize=["offset", "slots"])
def candidates_kernel(
    logits, states, weights, phrases, gains, ngram_gains, values, symbols, clock, offset, slots, vocab, blank,
    PENALTY: tl.constexpr, TEMPERATURE: tl.constexpr, CONSTRAINED: tl.constexpr, PHRASES: tl.constexpr,
    NGRAMS: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The COUNT best symbols after one hypothesis, with their log-probabilities."""
    slot = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < vocab
    parity = (tl.load(clock) + offset) % 2
    x = tl.load(logits + slot * vocab + column, mask=inside, other=float("-inf")).to(tl.float32)
    x -= tl.where(column == blank, PENALTY, 0.0)
    x /= TEMPERATURE
    x -= tl.max(x, 0)
    x -= tl.log(tl.sum(tl.exp(x), 0))
    if CONSTRAINED:
        state = tl.load(states + parity * slots + slot)
        x += tl.load(weights + state * vocab + column, mask=inside, other=0.0)
    if PHRASES:
        phrase = tl.load(phrases + parity * slots + slot)
        x += tl.load(gains + phrase * vocab + column, mask=inside, other=0.0)
    if NGRAMS:
        x += tl.load(ngram_gains + slot * vocab + column, mask=inside, other=0.0)
    taken = column >= vocab
    for k in tl.static_range(COUNT):
        # Taken symbols rank below those of probability 0, since fewer than COUNT may have a higher one.
        rank = tl.where(taken, -2.0e38, tl.maximum(x, -1.0e38))
        _, symbol = tl.max(rank, 0, return_indices=True, return_indices_tie_break_left=True)
        here = column == symbol
        tl.store(values + slot * COUNT + k, tl.max(tl.where(here, x, float("-inf")), 0))
        tl.store(symbols + slot * COUNT + k, symbol)
        taken = taken | here


@triton.jit(do_not_specialize=["offset", "num_frames", "utterances"])
def advance_kernel(
    values, symbols, scores, contexts, states, following, phrases, phrase_after, ngrams, ngram_tokens, ngram_target,
    ngram_contexts, ngram_models, ngram_kinds, keys, symbol_keys_, paths, lengths, clock, offset, trace_index,
    trace_value, trace_score, num_frames, utterances, vocab, modulus, blank, ngram_start,
    FACTOR: tl.constexpr, CONSTRAINED: tl.constexpr, PHRASES: tl.constexpr, NGRAMS: tl.constexpr,
    DEPTH: tl.constexpr, BISECTIONS: tl.constexpr, BEAM: tl.constexpr, COUNT: tl.constexpr,
    SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keep the best extensions of one utterance's hypotheses, and merge those with the same tokens."""
    n = tl.program_id(0).to(tl.int64)
    t = (tl.load(clock) + offset).to(tl.int64)
    slots = utterances * BEAM
    old = (t % 2) * slots + n * BEAM
    new = ((t + 1) % 2) * slots + n * BEAM
    slot = tl.arange(0, SLOTS)
    real = slot < BEAM
    going = t < tl.load(lengths + n)
    # Each candidate, (slot, rank), with the score of the hypothesis that it extends.
    at = tl.arange(0, BLOCK)
    some = at < BEAM * COUNT
    before = tl.load(scores + old + at // COUNT, mask=some, other=float("-inf"))
    extended = before + tl.load(values + n * BEAM * COUNT + at, mask=some, other=float("-inf")).to(tl.float64)
    rank = tl.where(some, tl.maximum(extended, -1.0e300), -2.0e300)
    value = tl.full((SLOTS,), float("-inf"), tl.float64)
    choice = tl.zeros((SLOTS,), tl.int32)
    for k in tl.static_range(BEAM):
        _, best = tl.max(rank, 0, return_indices=True, return_indices_tie_break_left=True)
        here = at == best
        score = tl.max(tl.where(here, extended, float("-inf")), 0)
        value = tl.where(slot == k, score, value)
        choice = tl.where(slot == k, best, choice)
        rank = tl.where(here, -2.0e300, rank)
    parent = choice // COUNT
    token = tl.load(symbols + n * BEAM * COUNT + choice, mask=real, other=0).to(tl.int64)
    # After the end of an utterance nothing changes.
    parent = tl.where(going, parent, slot)
    token = tl.where(going, token, blank)
    written = token != blank
    context = tl.load(contexts + old + parent, mask=real, other=0)
    context = tl.where(written, context % (modulus // vocab) * vocab + token, context)
    tl.store(contexts + new + slot, context, mask=real)
    if CONSTRAINED:
        state = tl.load(states + old + parent, mask=real, other=0)
        after = tl.load(following + state * vocab + token, mask=real, other=0)
        tl.store(states + new + slot, tl.where(going, after, state), mask=real)
    if PHRASES:
        phrase = tl.load(phrases + old + parent, mask=real, other=0)
        after = tl.load(phrase_after + phrase * vocab + token, mask=real, other=0).to(tl.int64)
        tl.store(phrases + new + slot, tl.where(going, after, phrase), mask=real)
    if NGRAMS:
        ngram = tl.load(ngrams + old + parent, mask=real, other=0)
        after = ngram_after(
            ngram, token, ngram_tokens, ngram_target, ngram_contexts, ngram_models, ngram_kinds, ngram_start, DEPTH,
            BISECTIONS,
        )  # fmt: skip
        tl.store(ngrams + new + slot, tl.where(going, after, ngram), mask=real)
    key = tl.load(keys + old + parent, mask=real, other=0)
    longer = (key ^ (key >> 29)) * FACTOR + tl.load(symbol_keys_ + token, mask=real, other=0)
    key = tl.where(written, longer, key)
    tl.store(keys + new + slot, key, mask=real)
    kept = tl.load(scores + old + slot, mask=real, other=float("-inf"))
    index = parent * vocab + token
    value = tl.where(going, value, 0.0)
    path = tl.load(paths + old + parent, mask=real, other=0.0)
    added = tl.load(values + n * BEAM * COUNT + choice, mask=real, other=0.0).to(tl.float64)
    path = tl.where(going, path + added, path)
    merged = value
    if BEAM > 1:
        # At most two have the same tokens (`BeamSearch._merge`). Rows are the better ones, columns the worse.
        better = (slot[:, None] < slot[None, :]) & (slot[None, :] < BEAM)
        same = (key[:, None] == key[None, :]) & better & (value > float("-inf"))[None, :] & going
        twin = tl.max(tl.where(same, value[None, :], float("-inf")), 1)
        worse = tl.max(tl.where(same, 1, 0), 0) > 0
        top = tl.maximum(value, twin)
        gap = tl.abs(value - twin)
        summed = tl.where(top == float("-inf"), top, top + tl.log(1.0 + tl.exp(-gap)))
        merged = tl.where(worse, float("-inf"), tl.where(twin == float("-inf"), value, summed))
        # The alignment of the more probable path is kept.
        twin_path = tl.max(tl.where(same, path[None, :], float("-inf")), 1)
        twin_index = tl.max(tl.where(same, index[None, :], 0), 1)
        takes = twin_path > path
        index = tl.where(takes, twin_index, index)
        value = tl.where(takes, twin, value)
        path = tl.where(takes, twin_path, path)
    tl.store(paths + new + slot, path, mask=real)
    merged = tl.where(going, merged, kept)
    tl.store(scores + new + slot, merged, mask=real)
    out = (t * utterances + n) * BEAM + slot
    write = real & (slot < tl.where(t < num_frames, BEAM, 0))
    tl.store(trace_index + out, index, mask=write)
    tl.store(trace_value + out, value, mask=write)
    tl.store(trace_score + out, tl.where(going, merged, 0.0), mask=write)


@triton.jit(do_not_specialize=["num_frames", "utterances"])
def follow_kernel(
    index, value, score, before, tokens, added, first, num_frames, utterances, vocab, BEAM: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """`BeamTrace.follow` for one utterance."""
    n = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    real = slot < BEAM
    at = slot.to(tl.int64)
    for back in range(num_frames):
        t = (num_frames - 1 - back).to(tl.int64)
        row = (t * utterances + n) * BEAM
        extension = tl.load(index + row + at, mask=real, other=0)
        reached = tl.load(value + row + at, mask=real, other=0.0)
        at = extension // vocab
        parents = score + row - utterances * BEAM
        if t == 0:
            parents = before + n * BEAM
        parent = tl.load(parents + at, mask=real, other=0.0)
        tl.store(tokens + row + slot, (extension % vocab).to(tl.int32), mask=real)
        tl.store(added + row + slot, (reached - parent).to(tl.float32), mask=real)
    tl.store(first + n * BEAM + slot, at, mask=real)

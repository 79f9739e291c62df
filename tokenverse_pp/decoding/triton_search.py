"""Greedy and modified beam search on a GPU: the algorithm of `decoding.beam`, with all state on the device.

A frame is four kernels (five with n-grams) for any batch: the two matrix products, the best symbols of each hypothesis,
and the best extensions of each utterance. Nothing is read back before the last frame: which utterances still have frames,
what hypotheses remember, and what is written down for each frame all stay on the device, and one more kernel follows the
hypotheses back to their first frames.
On a GPU a few frames are captured as a CUDA graph and replayed, so that the host does not have to keep up. ``clock`` is
the number of frames before the graph's first one, and each kernel adds its frame's ``offset`` to it.

Where scores are equal, the order is that of slots, and of symbols within a slot, as on a CPU.
"""

from __future__ import annotations

import logging
import threading
from typing import Dict, NamedTuple, Optional, Sequence, Tuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenverse_pp.base.errors import one_line
from tokenverse_pp.decoding.beam import HASH_FACTOR, BeamMemory, BeamTrace, symbol_keys
from tokenverse_pp.decoding.constraint_table import BatchConstraints
from tokenverse_pp.decoding.context_graph import ContextGraph, FusedScorers, FusionScorer
from tokenverse_pp.decoding.language_models import LanguageModel
from tokenverse_pp.decoding.ngram_tables import NgramTables, ngram_after, ngram_gains_kernel
from tokenverse_pp.decoding.scorer import LARGEST_EXPONENT, Scorer

LOG = logging.getLogger(__name__)
FRAMES_OF_A_GRAPH = 8


@triton.jit
def _dot(a, b, total):
    """``total + a @ b``; float32 by three products of TF32, which are as exact as one of float32."""
    if a.dtype == tl.float32:
        return tl.dot(a, b, total, input_precision="tf32x3")
    return tl.dot(a, b, total)


@triton.jit(do_not_specialize=["offset", "slots", "num_frames", "utterances"])
def _hidden_kernel(
    contexts, taps, weight, bias, frames, hidden, clock, offset, slots, num_frames, utterances, beam, vocab, depth, size,
    CONTEXT: tl.constexpr, LARGEST: tl.constexpr, HALF: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """1 / (1 + exp(2a) exp(2b)) of hypotheses (see `Scorer`), or 1/2 less that.

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
        b = _dot(tl.maximum(predicted, 0.0).to(w.dtype), w, b)
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
def _logits_kernel(
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
        total = _dot(r, w, total)
    total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    some = real[:, None] & inside[None, :]
    tl.store(logits + slot[:, None] * vocab + column[None, :], total.to(logits.dtype.element_ty), mask=some)


@triton.jit(do_not_specialize=["offset", "slots"])
def _candidates_kernel(
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
        # Symbols that are taken lie below those of probability 0, of which there may be fewer than asked for.
        rank = tl.where(taken, -2.0e38, tl.maximum(x, -1.0e38))
        _, symbol = tl.max(rank, 0, return_indices=True, return_indices_tie_break_left=True)
        here = column == symbol
        tl.store(values + slot * COUNT + k, tl.max(tl.where(here, x, float("-inf")), 0))
        tl.store(symbols + slot * COUNT + k, symbol)
        taken = taken | here


@triton.jit(do_not_specialize=["offset", "num_frames", "utterances"])
def _advance_kernel(
    values, symbols, scores, contexts, states, following, phrases, phrase_after, ngrams, ngram_tokens, ngram_target,
    ngram_contexts, ngram_models, ngram_kinds, keys, symbol_keys_, lengths, clock, offset, trace_index,
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
    # After the end of an utterance all stays as it is.
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
    value = tl.where(going, value, 0.0)
    merged = value
    if BEAM > 1:
        # At most two agree (`BeamSearch._merge`). Rows are the better ones, columns the worse.
        better = (slot[:, None] < slot[None, :]) & (slot[None, :] < BEAM)
        same = (key[:, None] == key[None, :]) & better
        twin = tl.max(tl.where(same, value[None, :], float("-inf")), 1)
        worse = tl.max(tl.where(same, 1, 0), 0) > 0
        top = tl.maximum(value, twin)
        gap = tl.abs(value - twin)
        summed = tl.where(top == float("-inf"), top, top + tl.log(1.0 + tl.exp(-gap)))
        merged = tl.where(worse, float("-inf"), tl.where(twin == float("-inf"), value, summed))
    merged = tl.where(going, merged, kept)
    tl.store(scores + new + slot, merged, mask=real)
    out = (t * utterances + n) * BEAM + slot
    write = real & (slot < tl.where(t < num_frames, BEAM, 0))
    tl.store(trace_index + out, parent * vocab + token, mask=write)
    tl.store(trace_value + out, value, mask=write)
    tl.store(trace_score + out, tl.where(going, merged, 0.0), mask=write)


@triton.jit(do_not_specialize=["num_frames", "utterances"])
def _follow_kernel(
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


class DeviceTrace(BeamTrace):
    """A `BeamTrace` on a device. Its arrays are copied to the host only where they are read."""

    def __init__(self, index: Tensor, value: Tensor, score: Tensor):
        self._tensors = {"index": index, "value": value, "score": score}

    def __getattr__(self, name: str) -> np.ndarray:
        if name not in ("index", "value", "score"):
            raise AttributeError(name)
        array: np.ndarray = self._tensors[name].cpu().numpy()
        setattr(self, name, array)
        return array

    def follow(self, before: np.ndarray, vocab_size: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `BeamTrace`; on the device."""
        index, value, score = self._tensors.values()
        frames, utterances, beam = index.shape
        tokens, added = torch.empty_like(index, dtype=torch.int32), torch.empty_like(index, dtype=torch.float32)
        first = torch.empty_like(index[0])
        with torch.cuda.device_of(index):
            _follow_kernel[(utterances,)](
                index, value, score, torch.from_numpy(before).to(index.device), tokens, added, first, frames, utterances,
                vocab_size, BEAM=beam, SLOTS=triton.next_power_of_2(beam), num_warps=1,
            )  # fmt: skip
        return tokens.cpu().numpy(), added.cpu().numpy(), first.cpu().numpy()


_streams = threading.local()


def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of this thread for searches on a device; cuBLAS keeps a workspace for every stream that it meets."""
    key = str(device)
    if not hasattr(_streams, key):
        setattr(_streams, key, torch.cuda.Stream(device))
    return getattr(_streams, key)


class Fusion(NamedTuple):
    """A bonus on the device: the gains (S, V) and following states (S, V) of phrases, and the n-grams."""

    phrases: Optional[Tuple[Tensor, Tensor]]
    ngrams: Optional[NgramTables]
    ngram_states: int  # a state of the bonus is that of the phrases times these, plus that of the n-grams


_ngram_tables: WeakKeyDictionary[LanguageModel, Dict[torch.device, NgramTables]] = WeakKeyDictionary()


def fusion_tables(bonus: FusionScorer, device: torch.device) -> Optional[Fusion]:
    """The tables of a bonus, made once a device; None if they would be too large."""
    parts = (bonus.one, bonus.other) if isinstance(bonus, FusedScorers) else (bonus,)
    phrases, ngrams, states = None, None, 1
    for part in parts:
        if isinstance(part, LanguageModel):
            known = _ngram_tables.setdefault(part, {})
            if device not in known:
                known[device] = NgramTables.of(part, device)
            ngrams, states = known[device], part.states
        else:
            phrases = part.tables(device) if isinstance(part, ContextGraph) else None
            if phrases is None:
                return None
    return Fusion(phrases, ngrams, states)


class TritonSearch:
    """The frame loop. ``run`` gives what `BeamSearch.run` gives, and leaves the memory behind in ``memory``.

    Args:
        scorer: over the frames (T, N, J) of the batch.
        lengths: frames of each utterance, in any order.
        memory: of the hypotheses before the first frame.
        constraints: of the batch.
        fusion: the scorer's bonus, if there is one.
    """

    def __init__(
        self,
        scorer: Scorer,
        lengths: Sequence[int],
        memory: BeamMemory,
        constraints: Optional[BatchConstraints],
        fusion: Optional[Fusion],
    ):
        self.scorer, self.memory, self.constraints = scorer, memory, constraints
        self.fusion = fusion or Fusion(None, None, 1)
        self.frames = scorer.frames.contiguous()
        self.num_frames, self.utterances, self.size = self.frames.shape
        device, shape = self.frames.device, memory.score.shape
        self.device, self.beam = device, shape[1]
        self.slots, self.count = shape[0] * shape[1], min(shape[1], scorer.vocab_size)
        # Two copies of the memory: one that a frame reads, one that it writes.
        self.score = self._twice(memory.score)
        self.context, self.state, self.phrase, self.ngram, self.key = (
            self._twice(x)
            for x in (memory.context, memory.state, *np.divmod(memory.earning, self.fusion.ngram_states), memory.key)
        )
        self.clock = torch.zeros((), dtype=torch.int32, device=device)
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device=device)
        self.symbol_keys = symbol_keys(scorer.vocab_size).to(device)
        trace = (self.num_frames, *shape)
        self.index = torch.empty(trace, dtype=torch.int64, device=device)
        self.value, self.traced = torch.empty((2, *trace), dtype=torch.float64, device=device).unbind(0)
        table = scorer.contexts
        self.taps = torch.stack(table.taps)  # (C, V, D)
        # A step allocates nothing, so that captured graphs hold no memory of their own.
        self.hidden = torch.empty((self.slots, self.size), dtype=scorer.reduced or torch.float32, device=device)
        self.logits = torch.empty((self.slots, scorer.vocab_size), dtype=scorer.weight.dtype, device=device)
        self.graph: Optional[torch.cuda.CUDAGraph] = None
        self.best = torch.empty((self.slots, self.count), dtype=torch.float32, device=device)
        self.symbols = torch.empty((self.slots, self.count), dtype=torch.int32, device=device)
        if self.fusion.ngrams is not None:
            self.ngram_gains = torch.empty((self.slots, scorer.vocab_size), dtype=torch.float32, device=device)

    def _twice(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.stack([array, array])).to(self.device)

    def run(self) -> BeamTrace:
        """Go through all frames."""
        with torch.cuda.device_of(self.frames):
            self._all_frames()
        last = self.num_frames % 2
        score, context, state, phrase, ngram, key = (
            x[last].cpu().numpy() for x in (self.score, self.context, self.state, self.phrase, self.ngram, self.key)
        )
        self.memory = BeamMemory(score, context, state, phrase * self.fusion.ngram_states + ngram, key)
        return DeviceTrace(self.index, self.value, self.traced)

    def _all_frames(self) -> None:
        done = 0
        if self.frames.is_cuda and self.num_frames > 2 * FRAMES_OF_A_GRAPH:
            done = self._replay()
        self._steps(self.num_frames - done)

    def _replay(self) -> int:
        """Go through all frames but a few by a CUDA graph -> how many were done."""
        stream, graph, done = _stream(self.device), torch.cuda.CUDAGraph(), 2
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self._steps(done)  # compiles
            stream.synchronize()
            # Not `torch.cuda.graph`, which empties the caches of the whole process at each capture.
            try:
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._steps(FRAMES_OF_A_GRAPH)
                finally:
                    graph.capture_end()
                for _ in range((self.num_frames - done) // FRAMES_OF_A_GRAPH):
                    graph.replay()
                    done += FRAMES_OF_A_GRAPH
                self.graph = graph  # kept until its work is done
            except RuntimeError as error:
                LOG.debug("search: no CUDA graph (%s); launching frame by frame", one_line(error))
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return done

    def _steps(self, count: int) -> None:
        """Go through the next frames."""
        for offset in range(count):
            self._step(offset)
        self.clock.add_(count)

    def _step(self, offset: int) -> None:
        scorer, table, vocab = self.scorer, self.scorer.contexts, self.scorer.vocab_size
        # Small tiles, since rows are few: all of a GPU's processors get some.
        rows, depth = (16 if self.slots <= 16 else 32 if self.slots <= 128 else 64), self.taps.shape[2]
        tiles: Dict[str, int] = {"ROWS": rows, "COLUMNS": 16, "num_warps": 4, "num_stages": 4}
        tiled = triton.cdiv(self.slots, rows)
        _hidden_kernel[(tiled, triton.cdiv(self.size, 16))](
            self.context, self.taps, table.weight, table.bias, self.frames, self.hidden, self.clock, offset, self.slots,
            self.num_frames, self.utterances, self.beam, vocab, depth, self.size, CONTEXT=table.size,
            LARGEST=LARGEST_EXPONENT, HALF=scorer.reduced is not None, DEPTH=_block_of(depth), **tiles,
        )  # fmt: skip
        _logits_kernel[(tiled, triton.cdiv(vocab, 16))](
            self.hidden, scorer.weight, scorer.bias, self.logits, self.slots, vocab, self.size,
            DEPTH=_block_of(self.size), **tiles,
        )  # fmt: skip
        # What is not there is not read; something has to be named.
        weights, following = self.constraints[:2] if self.constraints is not None else (self.best, self.symbols)
        gains, after = self.fusion.phrases or (self.best, self.symbols)
        use = {
            "CONSTRAINED": self.constraints is not None, "PHRASES": self.fusion.phrases is not None,
            "NGRAMS": self.fusion.ngrams is not None, "COUNT": self.count,
        }  # fmt: skip
        ngram_gains, moves, start, sizes = self.best, [self.symbols] * 5, 0, {"DEPTH": 1, "BISECTIONS": 1}
        if self.fusion.ngrams is not None:
            n = self.fusion.ngrams
            ngram_gains, moves, start = self.ngram_gains, [n.token, n.target, n.contexts, n.models, n.kinds], n.start
            sizes = {"DEPTH": n.depth, "BISECTIONS": n.bisections}
            ngram_gains_kernel[(self.slots, triton.cdiv(vocab, 256))](
                self.ngram, ngram_gains, self.clock, offset, self.slots, vocab, start, n.contexts, n.back_off, n.over, n.token,
                n.log_prob, n.models, n.lowest, n.first_row, n.kinds, SCALE=n.scale, BONUS=n.bonus, **sizes, BLOCK=256,
                num_warps=4,
            )  # fmt: skip
        block, pairs = triton.next_power_of_2(vocab), triton.next_power_of_2(self.beam * self.count)
        _candidates_kernel[(self.slots,)](
            self.logits, self.state, weights, self.phrase, gains, ngram_gains, self.best, self.symbols, self.clock,
            offset, self.slots, vocab, scorer.blank_id, PENALTY=scorer.options.blank_penalty,
            TEMPERATURE=scorer.options.temperature, BLOCK=block, num_warps=min(max(block // 256, 1), 16), **use,
        )  # fmt: skip
        _advance_kernel[(self.utterances,)](
            self.best, self.symbols, self.score, self.context, self.state, following, self.phrase, after, self.ngram,
            *moves, self.key, self.symbol_keys, self.lengths, self.clock, offset, self.index, self.value, self.traced,
            self.num_frames, self.utterances, vocab, table.modulus, scorer.blank_id, start, FACTOR=HASH_FACTOR,
            BEAM=self.beam, SLOTS=triton.next_power_of_2(self.beam),
            BLOCK=pairs, num_warps=min(max(pairs // 512, 1), 8), **use, **sizes,
        )  # fmt: skip


def _block_of(depth: int) -> int:
    """How much of the sums of a matrix product is loaded at once."""
    return min(max(triton.next_power_of_2(depth), 16), 64)

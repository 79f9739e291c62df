"""Greedy and modified beam search on a GPU: the algorithm of `decoding.beam`, with all state on the device.

A frame takes four kernels (five with n-grams) for any batch: two matrix products, the best symbols of each hypothesis,
and the best extensions of each utterance. Nothing is read back before the last frame: the lengths of the utterances,
the state of the hypotheses and the trace of each frame stay on the device. At the end one more kernel traces the
hypotheses back to their first frames. On a GPU a few frames are captured as a CUDA graph and replayed, so that the host
does not have to keep up.

Equal scores are ordered by slot, then by symbol, as on a CPU.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import triton
from torch import Tensor

from tokenverse_pp.base.errors import one_line
from tokenverse_pp.decoding.beam import HASH_FACTOR, BeamMemory, BeamTrace, symbol_keys
from tokenverse_pp.decoding.context_graph import ContextGraph, FusedScorers
from tokenverse_pp.decoding.language_models import LanguageModel
from tokenverse_pp.decoding.ngram_tables import NgramTables, ngram_gains_kernel
from tokenverse_pp.decoding.scorer import LARGEST_EXPONENT, BatchConstraints, FusionScorer, Scorer
from tokenverse_pp.decoding.search_kernels import (
    advance_kernel,
    block_of,
    candidates_kernel,
    follow_kernel,
    hidden_kernel,
    logits_kernel,
)

LOG = logging.getLogger(__name__)
FRAMES_OF_A_GRAPH = 8


class DeviceTrace(BeamTrace):
    """A `BeamTrace` on a device. Its arrays are copied to the host only when they are read."""

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
            follow_kernel[(utterances,)](
                index, value, score, torch.from_numpy(before).to(index.device), tokens, added, first, frames,
                utterances, vocab_size, BEAM=beam, SLOTS=triton.next_power_of_2(beam), num_warps=1,
            )  # fmt: skip
        return tokens.cpu().numpy(), added.cpu().numpy(), first.cpu().numpy()


_streams = threading.local()


def _stream(device: torch.device) -> torch.cuda.Stream:
    """This thread's CUDA stream for searches on a device, reused because cuBLAS keeps a workspace for every stream."""
    key = str(device)
    if not hasattr(_streams, key):
        setattr(_streams, key, torch.cuda.Stream(device))
    return getattr(_streams, key)


class Fusion(NamedTuple):
    """A bonus on the device: the gains (S, V) and following states (S, V) of phrases, and the n-grams."""

    phrases: Optional[Tuple[Tensor, Tensor]]
    ngrams: Optional[NgramTables]
    ngram_states: int  # state of the bonus: that of the phrases times this number, plus that of the n-grams


_ngram_tables: WeakKeyDictionary[LanguageModel, Dict[torch.device, NgramTables]] = WeakKeyDictionary()


def fusion_tables(bonus: FusionScorer, device: torch.device) -> Optional[Fusion]:
    """Return the tables of a bonus, built once per device; None if they would be too large."""
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
    """The frame loop. ``run`` returns the same as `BeamSearch.run`, and stores the final memory in ``memory``.

    Args:
        scorer: over the frames (T, N, J) of the batch.
        lengths: frames of each utterance, in any order.
        memory: state of the hypotheses before the first frame.
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
        self.score, self.path = self._twice(memory.score), self._twice(memory.path)
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
        table: Any = scorer.contexts  # a `PredictorTable` (`triton_search`)
        self.taps = torch.stack(table.taps)  # (C, V, D)
        # A step allocates nothing, so captured graphs own no memory.
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
        """Decode all frames and return their trace."""
        with torch.cuda.device_of(self.frames):
            self._all_frames()
        last = self.num_frames % 2
        states = (self.score, self.context, self.state, self.phrase, self.ngram, self.key, self.path)
        score, context, state, phrase, ngram, key, path = (x[last].cpu().numpy() for x in states)
        self.memory = BeamMemory(score, context, state, phrase * self.fusion.ngram_states + ngram, key, path)
        return DeviceTrace(self.index, self.value, self.traced)

    def _all_frames(self) -> None:
        done = 0
        if self.frames.is_cuda and self.num_frames > 2 * FRAMES_OF_A_GRAPH:
            done = self._replay()
        self._steps(self.num_frames - done)

    def _replay(self) -> int:
        """Decode all frames but a few by a CUDA graph. Return how many were decoded."""
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
        """Decode the next ``count`` frames."""
        for offset in range(count):
            self._step(offset)
        self.clock.add_(count)

    def _step(self, offset: int) -> None:
        scorer, vocab = self.scorer, self.scorer.vocab_size
        table: Any = scorer.contexts
        # Small tiles, since rows are few: each of the GPU's processors gets some.
        rows, depth = (16 if self.slots <= 16 else 32 if self.slots <= 128 else 64), self.taps.shape[2]
        tiles: Dict[str, int] = {"ROWS": rows, "COLUMNS": 16, "num_warps": 4, "num_stages": 4}
        tiled = triton.cdiv(self.slots, rows)
        hidden_kernel[(tiled, triton.cdiv(self.size, 16))](
            self.context, self.taps, table.weight, table.bias, self.frames, self.hidden, self.clock, offset, self.slots,
            self.num_frames, self.utterances, self.beam, vocab, depth, self.size, CONTEXT=table.size,
            LARGEST=LARGEST_EXPONENT, HALF=scorer.reduced is not None, DEPTH=block_of(depth, 64), **tiles,
        )  # fmt: skip
        logits_kernel[(tiled, triton.cdiv(vocab, 16))](
            self.hidden, scorer.weight, scorer.bias, self.logits, self.slots, vocab, self.size,
            DEPTH=block_of(self.size, 64), **tiles,
        )  # fmt: skip
        # Placeholders for unused arguments, which are not read.
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
                self.ngram, ngram_gains, self.clock, offset, self.slots, vocab, start, n.contexts, n.back_off, n.over,
                n.token, n.log_prob, n.models, n.lowest, n.first_row, n.kinds, SCALE=n.scale, BONUS=n.bonus, **sizes,
                BLOCK=256, num_warps=4,
            )  # fmt: skip
        block, pairs = triton.next_power_of_2(vocab), triton.next_power_of_2(self.beam * self.count)
        candidates_kernel[(self.slots,)](
            self.logits, self.state, weights, self.phrase, gains, ngram_gains, self.best, self.symbols, self.clock,
            offset, self.slots, vocab, scorer.blank_id, PENALTY=scorer.options.blank_penalty,
            TEMPERATURE=scorer.options.temperature, BLOCK=block, num_warps=min(max(block // 256, 1), 16), **use,
        )  # fmt: skip
        advance_kernel[(self.utterances,)](
            self.best, self.symbols, self.score, self.context, self.state, following, self.phrase, after, self.ngram,
            *moves, self.key, self.symbol_keys, self.path, self.lengths, self.clock, offset, self.index, self.value,
            self.traced, self.num_frames, self.utterances, vocab, table.modulus, scorer.blank_id, start,
            FACTOR=HASH_FACTOR, BEAM=self.beam, SLOTS=triton.next_power_of_2(self.beam),
            BLOCK=pairs, num_warps=min(max(pairs // 512, 1), 8), **use, **sizes,
        )  # fmt: skip

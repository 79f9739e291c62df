"""Modified beam search (at most one symbol per frame), batched over utterances and hypotheses.

The algorithm is that of icefall's ``modified_beam_search``: at each frame every hypothesis is extended by every symbol,
the best ``beam`` extensions are kept, and those with the same tokens are merged by log-addition. Here the state of
all hypotheses is a few small arrays (N, beam), so a frame costs the same number of operations for any batch, and the
joiner runs once for hypotheses that have the same context. The arrays are NumPy arrays, because NumPy's overhead for
few numbers is a fraction of torch's.

When hypotheses are merged, the frames of the tokens are those of the alignment with the higher probability of its own
(``path``). icefall keeps those of the hypothesis with the larger sum. This is mostly the older one, whose sum has grown
for longer, so the times of tokens are too early.

Hypotheses with the same tokens are found by a 64-bit hash of the tokens, updated token by token. Two different token
sequences collide with probability 2**-63 per pair: about once in 10**12 hours of speech at a beam of 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.constraints import NEG_INF
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.scorer import Array, BatchConstraints, Scorer
from tokenverse_pp.losses.devices import triton_kernels

HASH_FACTOR = 0x5851F42D4C957F2D  # Knuth's MMIX multiplier, odd


def symbol_keys(vocab_size: int) -> Tensor:
    """Return a random number for each symbol, (V,) int64; the same in every run."""
    random = torch.Generator().manual_seed(1)
    return torch.randint(-(2**63), 2**63 - 1, (vocab_size,), generator=random)


def longer_keys(keys: Array, of_symbols: Array) -> Array:
    """Extend the hashes ``keys`` (..) of sequences by one symbol each, whose `symbol_keys` are ``of_symbols`` (..)."""
    return (keys ^ (keys >> 29)) * HASH_FACTOR + of_symbols


def beam_search(
    scorer: Scorer, lengths: Sequence[int], options: SearchOptions, constraints: Optional[BatchConstraints]
) -> List[List[Hypothesis]]:
    """Decode utterances sorted by length, longest first (see `search_frames`)."""
    search = BeamSearch(
        scorer, lengths, BeamMemory.start(scorer, len(lengths), options.width, constraints), constraints
    )
    trace = search.run()
    return _read_back(trace, search.memory.score, scorer, lengths)


class BeamMemory(NamedTuple):
    """The state of the hypotheses of a batch, (N, B) each; slots with a score of -inf are empty.

    score: log-probability, float64 (exact enough for any length). context: of the predictor, as a number
    (`PredictorTable`) or an object (`PredictorStates`). state: that of the constraints. earning: that of the bonus.
    key: hash of the tokens. path: log-probability of the hypothesis's alignment alone, float64.
    """

    score: np.ndarray
    context: np.ndarray
    state: np.ndarray
    earning: np.ndarray
    key: np.ndarray
    path: np.ndarray

    @classmethod
    def start(cls, scorer: Scorer, utterances: int, beam: int, constraints: Optional[BatchConstraints]) -> BeamMemory:
        """Return the memory with one empty hypothesis per utterance."""
        shape = (utterances, beam)
        score, state = np.full(shape, NEG_INF), np.zeros(shape, dtype=np.int64)
        score[:, 0] = 0
        if constraints is not None:
            state[:] = constraints.start.cpu().numpy()
        nothing = np.zeros(shape, dtype=np.int64)
        return cls(score, np.full(shape, scorer.contexts.start), state, nothing, nothing, np.zeros(shape))

    @staticmethod
    def join(parts: Sequence[BeamMemory]) -> BeamMemory:
        """Concatenate the utterances of all parts."""
        return BeamMemory(*(np.concatenate(arrays) for arrays in zip(*parts)))


@dataclass
class BeamTrace:
    """What `BeamSearch` records at each frame; all arrays are (T, N, B).

    index: parent x V + token, of the alignment that is kept. value: score of that extension. score: after merging.
    """

    index: np.ndarray
    value: np.ndarray
    score: np.ndarray

    def follow(self, before: np.ndarray, vocab_size: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Trace the hypothesis in each slot after the last frame back to the first; ``before`` (N, B): first scores.

        Returns:
            For each slot after the last frame: the tokens (T, N, B), what each added to the score (T, N, B), and the
            slot before the first frame that it comes from (N, B).
        """
        frames, batch, beam = self.index.shape
        slots, tokens = np.empty_like(self.index), np.empty_like(self.index)
        first_slot = np.arange(batch)[:, None] * beam
        at = first_slot + np.arange(beam)
        for t in reversed(range(frames)):
            slots[t] = at
            parent, tokens[t] = np.divmod(self.index[t].take(at), vocab_size)
            at = first_slot + parent
        flat = slots.reshape(frames, batch * beam)
        value = np.take_along_axis(self.value.reshape(frames, batch * beam), flat, 1)
        parents = np.empty_like(value)
        parents[:1] = before.take(at.ravel())
        parents[1:] = np.take_along_axis(self.score.reshape(frames, batch * beam)[:-1], flat[:-1], 1)
        with np.errstate(invalid="ignore"):  # -inf - -inf in slots that are empty
            added = (value - parents).reshape(self.index.shape)
        return tokens, added, at - first_slot


def has_kernels(scorer: Scorer) -> bool:
    """Whether the kernels of searches on a GPU can be used.

    They cannot on a CPU, without a working Triton, with a joiner in float64 or with ReLU, and with an LSTM predictor.
    """
    if triton_kernels(scorer.frames) is None or scorer.reduced is torch.float64:
        return False
    return scorer.stateless and scorer.activation == "tanh"


def triton_search(
    scorer: Scorer, lengths: Sequence[int], memory: BeamMemory, constraints: Optional[BatchConstraints]
) -> Any:
    """Return the search on the device of the frames, equivalent to `BeamSearch`; None if the host has to run it.

    The host runs it where `has_kernels` is false, and with a bonus whose tables would be too large.
    """
    if not has_kernels(scorer):
        return None
    from tokenverse_pp.decoding.triton_search import TritonSearch, fusion_tables  # needs Triton

    fusion = None if scorer.bonus is None else fusion_tables(scorer.bonus, scorer.frames.device)
    if scorer.bonus is not None and fusion is None:
        return None
    return TritonSearch(scorer, lengths, memory, constraints, fusion)


class BeamSearch:
    """The frame loop. Empty slots have the score -inf; their other values are ignored.

    ``memory`` is the state of the hypotheses before the first frame; after `run`, at each utterance's end.
    """

    def __init__(
        self, scorer: Scorer, lengths: Sequence[int], memory: BeamMemory, constraints: Optional[BatchConstraints]
    ):
        self.scorer, self.lengths, self.memory, self.constraints = scorer, lengths, memory, constraints
        self.device, self.beam = scorer.frames.device, memory.score.shape[1]
        self.score, self.context, self.state, earning, self.key, self.path = memory
        if constraints is not None:
            self.following = constraints.following.cpu().numpy()
        self.bonus, self.earning = scorer.bonus, earning.ravel().tolist()  # the bonus's state of each slot
        self.owner = [i for i in range(len(lengths)) for _ in range(self.beam)]  # the utterance of each slot
        self.first_slot = np.arange(len(lengths))[:, None] * self.beam
        self.symbol_key = symbol_keys(scorer.vocab_size).numpy()
        self.upper = np.triu(np.ones((self.beam, self.beam), dtype=bool), 1)

    def run(self) -> BeamTrace:
        """Decode all frames and return their trace."""
        on_device = triton_search(self.scorer, self.lengths, self.memory, self.constraints)
        if on_device is not None:
            trace = on_device.run()
            self.memory = on_device.memory
            return trace
        frames = self.lengths[0]
        shape = (frames, len(self.lengths), self.beam)
        index = np.empty(shape, dtype=np.int64)
        # After an utterance's end each slot is its own parent, with a blank.
        index[:] = np.arange(self.beam) * self.scorer.vocab_size + self.scorer.blank_id
        value, score = np.zeros(shape), np.zeros(shape)
        ended: List[BeamMemory] = []
        going = np.searchsorted(-np.asarray(self.lengths), -np.arange(frames), side="left").tolist()
        for t, n in enumerate(going):
            if n < len(self.score):
                ended.append(self._remember(n))
                self._keep(n)
            value[t, :n], index[t, :n] = self._step(t)
            score[t, :n] = self.score
        self.memory = BeamMemory.join([self._remember(0), *reversed(ended)])
        return BeamTrace(index, value, score)

    def _remember(self, first: int) -> BeamMemory:
        """The memory of the utterances from ``first`` on."""
        earning = np.array(self.earning, dtype=np.int64).reshape(self.score.shape)
        memory = (self.score, self.context, self.state, earning, self.key, self.path)
        return BeamMemory(*(x[first:] for x in memory))

    def _keep(self, n: int) -> None:
        """Keep only the first n utterances."""
        self.score, self.context, self.key = self.score[:n], self.context[:n], self.key[:n]
        self.state, self.path, self.first_slot = self.state[:n], self.path[:n], self.first_slot[:n]
        self.owner, self.earning = self.owner[: n * self.beam], self.earning[: n * self.beam]

    def _step(self, t: int) -> Tuple[np.ndarray, np.ndarray]:
        """Extend by frame t. Return the extensions' ``value`` and ``index`` (`BeamTrace`), (n, B)."""
        log_probs, which = self._log_probs(t)
        best, symbols = (x.cpu().numpy() for x in log_probs.topk(min(self.beam + 1, self.scorer.vocab_size)))
        count = best.shape[1]
        extended = (best.take(which, axis=0) + self.score.reshape(-1, 1)).reshape(len(self.score), -1)
        # Equal scores are ordered by slot, then by symbol.
        at = np.argsort(-extended, axis=1, kind="stable")[:, : self.beam]
        value = extended.take(at + self.first_slot * count)
        parent = at // count
        slot = parent + self.first_slot
        source = which.take(slot) * count + at % count
        equals_next = np.zeros(best.shape, dtype=bool)
        equals_next[:, :-1] = best[:, 1:] == best[:, :-1]  # common with a joiner in bfloat16
        tied = source[equals_next.take(source) & (value > NEG_INF)]
        if tied.size:
            rows = np.unique(tied // count)
            found = log_probs[torch.from_numpy(rows).to(self.device)].cpu().numpy()
            for i, values in zip(rows.tolist(), found):
                put_first_equals(symbols[i], best[i], values)
        token = symbols.take(source)
        self._advance(slot, token)
        index = parent * self.scorer.vocab_size + token
        if self.beam == 1:
            self.score = value
            return value, index
        self.path = self.path.take(slot) + best.take(source)
        self.score, kept = self._merge(value)
        if kept is not None:
            kept += self.first_slot
            value, index, self.path = value.take(kept), index.take(kept), self.path.take(kept)
        return value, index

    def _log_probs(self, t: int) -> Tuple[Tensor, np.ndarray]:
        """Return the log-probabilities (M, V) of all symbols in M distinct conditions, and each slot's row of them.

        Hypotheses of an utterance that differ only in older tokens (half of them or more, in a trained model) have the
        same context and share a row: the joiner, the most costly part of a search, is run for distinct rows only.
        """
        slots = list(zip(self.owner, self.context.ravel().tolist(), self.state.ravel().tolist(), self.earning))
        number = {slot: i for i, slot in enumerate(dict.fromkeys(slots))}
        which = np.array([number[slot] for slot in slots])
        utterances, contexts, states, earning = zip(*number)
        utterance, state = torch.tensor([utterances, states], device=self.device)
        frames = self.scorer.frames[t].index_select(0, utterance)
        log_probs = self.scorer.log_probs(frames, self.scorer.contexts.look_up(contexts))
        if self.constraints is not None:
            log_probs += self.constraints.weights.index_select(0, state)
        if self.bonus is not None:
            log_probs += self.bonus.look_up(earning, self.device)
        return log_probs, which

    def _advance(self, slot: np.ndarray, token: np.ndarray) -> None:
        """Update the states of the hypotheses: ``slot`` (n, B) of the parent and ``token`` (n, B) of each extension."""
        vocab_size, blank = self.scorer.vocab_size, token == self.scorer.blank_id
        self.context = self.scorer.contexts.longer(self.context.take(slot), token)
        if self.constraints is not None:
            self.state = self.following.take(self.state.take(slot) * vocab_size + token)
        if self.bonus is not None:
            moves = zip(slot.ravel().tolist(), token.ravel().tolist())
            self.earning = [self.bonus.advance(self.earning[parent], symbol) for parent, symbol in moves]
        if self.beam > 1:
            key = self.key.take(slot)
            self.key = np.where(blank, key, longer_keys(key, self.symbol_key.take(token)))

    def _merge(self, value: np.ndarray) -> Tuple[np.ndarray, Optional[np.ndarray]]:
        """Merge hypotheses with the same tokens by log-addition into the better one, and empty the other's slot.

        At most two have the same tokens: all differed at the last frame, so one is an old hypothesis plus a blank, and
        the other is the old hypothesis that is one token shorter, plus that token.

        Returns:
            The scores (n, B), and the slot whose alignment each hypothesis keeps (n, B); None if each keeps its own.
        """
        same = (self.key[:, :, None] == self.key[:, None, :]) & self.upper  # (n, B, B), better x worse
        same &= (value > NEG_INF)[:, None, :]
        worse = same.any(1)
        if not worse.any():
            return value, None
        twin = np.where(same, value[:, None, :], NEG_INF).max(2)
        score = np.where(worse, NEG_INF, np.logaddexp(value, twin))
        same &= self.path[:, None, :] > self.path[:, :, None]
        if not same.any():
            return score, None
        return score, np.where(same.any(2), same.argmax(2), np.arange(self.beam))


def put_first_equals(symbols: np.ndarray, best: np.ndarray, log_probs: np.ndarray) -> None:
    """Order the best ``symbols`` (K,) of log_probs (V,), with the values ``best`` (K,): of equal ones the first ids.

    `torch.topk` takes them in any order, and of those that equal the last of the K any.
    """
    last = best == best[-1]
    symbols[last] = np.flatnonzero(log_probs == best[-1])[: np.count_nonzero(last)]
    symbols[:] = symbols[np.lexsort((symbols, -best))]


def _read_back(trace: BeamTrace, final: np.ndarray, scorer: Scorer, lengths: Sequence[int]) -> List[List[Hypothesis]]:
    """Return the hypotheses left at the end, with the scores ``final`` (N, B), except those below the n-best."""
    # At the start only the first slot of each utterance holds a hypothesis, of score 0.
    tokens, log_probs, _ = trace.follow(np.zeros_like(final), scorer.vocab_size)
    kept = final > NEG_INF
    options = scorer.options
    if scorer.bonus is None and not options.length_norm and options.nbest < final.shape[1]:
        kept &= final >= -np.partition(-final, options.nbest - 1, axis=1)[:, options.nbest - 1 : options.nbest]
    utterance, slot = np.nonzero(kept)
    tokens, log_probs = tokens[:, utterance, slot].T, log_probs[:, utterance, slot].T  # (M, T)
    inside = np.arange(tokens.shape[1]) < np.asarray(lengths)[utterance, None]
    row, frame = np.nonzero((tokens != scorer.blank_id) & inside)
    ends = np.searchsorted(row, np.arange(len(utterance)), side="right").tolist()
    symbols, frames, values = tokens[row, frame].tolist(), frame.tolist(), log_probs[row, frame].tolist()
    found: List[List[Hypothesis]] = [[] for _ in lengths]
    for i, score, start, end in zip(utterance.tolist(), final[kept].tolist(), [0, *ends], ends):
        written = symbols[start:end], frames[start:end], values[start:end]
        found[i].append(scorer.hypothesis(*written, score))
    return found

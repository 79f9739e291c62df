"""Greedy search: the best symbol of each frame, in blocks of frames that are scored together.

The symbol of a frame depends on the tokens before it, so a plain search scores one frame of each utterance at a time
and spends its time on small matrix products. Here all frames of a block are scored at once, as if the block had no
tokens. The result gives each frame its context, and the frames whose context has changed are scored again, until none
changes. This fixed point is the greedy result, because each round corrects at least the first wrong frame (Jacobi
iteration; Song et al., 2021, "Accelerating feedforward computation via parallel nonlinear equation solving"). A
stateless predictor depends on its last tokens only, so a correction affects few frames, and few rounds are needed.

An LSTM predictor depends on all tokens, so a correction would affect all later frames, and a frame with several symbols
has no single context. Both cases are searched symbol by symbol (`SymbolGreedySearch`).
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch

from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.beam import BeamMemory, has_kernels, triton_search
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.scorer import BatchConstraints, Scorer

BLOCK = 8  # frames; in a longer block, the frames after its first symbols are scored in vain
ROWS_AT_ONCE = 256  # rows of the joiner that fit a processor's cache


def greedy_search(
    scorer: Scorer, lengths: Sequence[int], options: SearchOptions, constraints: Optional[BatchConstraints]
) -> List[List[Hypothesis]]:
    """Decode utterances sorted by length, longest first (see `search_frames`)."""
    if by_symbol(scorer):
        symbols = SymbolGreedySearch(scorer, lengths, constraints)
        symbols.run()
        best = []
        for written, score in zip(symbols.written, symbols.score.tolist()):
            ids, frames = [token for token, _, _ in written], [t for _, t, _ in written]
            best.append([scorer.hypothesis(ids, frames, [value for _, _, value in written], score)])
        return best
    search = GreedySearch(scorer, lengths, constraints)
    search.run()
    found = []
    for length, tokens, log_probs in zip(lengths, search.tokens, search.log_probs):
        at = np.flatnonzero(tokens[:length] != scorer.blank_id)
        total = float(log_probs[:length].sum(dtype=np.float64))
        found.append([scorer.hypothesis(tokens[at].tolist(), at.tolist(), log_probs[at].tolist(), total)])
    return found


class GreedySearch:
    """The best symbol of each frame, ``tokens`` (N, T), and its log-probability, ``log_probs`` (N, T).

    ``last`` (N, context size) are the last tokens, ``state`` (N,) the states of the constraints. At the start they are
    blanks and the first states. To continue another search, set both to its final values.
    """

    def __init__(self, scorer: Scorer, lengths: Sequence[int], constraints: Optional[BatchConstraints]):
        self.scorer, self.constraints, self.lengths = scorer, constraints, np.asarray(lengths)
        shape, size = (len(lengths), lengths[0]), scorer.contexts.size
        self.tokens = np.full(shape, scorer.blank_id, dtype=np.int64)
        self.log_probs = np.zeros(shape, dtype=np.float32)
        self.last = np.full((len(lengths), size), scorer.blank_id, dtype=np.int64)
        self.state = np.zeros(len(lengths), dtype=np.int64)
        self.following = None
        if constraints is not None:
            self.state = constraints.start.flatten().cpu().numpy().copy()
            self.following = constraints.following.view(-1, scorer.vocab_size).cpu().numpy()

    def run(self) -> None:
        """Decode all frames."""
        if self._on_device():
            return
        frames = self.tokens.shape[1]
        for first in range(0, frames, BLOCK):
            self._block(first, min(first + BLOCK, frames))

    def _on_device(self) -> bool:
        """Decode all frames on the device, if it can. Return whether it did."""
        if not has_kernels(self.scorer):
            return False
        from tokenverse_pp.decoding.greedy_kernel import fits, greedy_on_device  # needs Triton

        digits = self.scorer.vocab_size ** np.arange(self.scorer.contexts.size)[::-1]
        context = self.last @ digits
        if fits(self.scorer):
            found = greedy_on_device(self.scorer, self.lengths.tolist(), context, self.state, self.constraints)
            self.tokens[:], self.log_probs[:], context, self.state = found
        else:  # a beam of 1
            nothing = np.zeros((len(context), 1), dtype=np.int64)
            score = nothing.astype(np.float64)
            memory = BeamMemory(score, context[:, None], self.state[:, None], nothing, nothing, score)
            search = triton_search(self.scorer, self.lengths.tolist(), memory, self.constraints)
            tokens, log_probs, _ = search.run().follow(score, self.scorer.vocab_size)
            self.tokens[:], self.log_probs[:] = tokens[:, :, 0].T, log_probs[:, :, 0].T
            context, self.state = search.memory.context[:, 0], search.memory.state[:, 0]
        self.last = context[:, None] // digits % self.scorer.vocab_size
        return True

    def _block(self, first: int, end: int) -> None:
        """Decode the frames from ``first`` up to ``end``; those before ``first`` must be done."""
        going = int((self.lengths > first).sum())
        valid = np.arange(first, end) < self.lengths[:going, None]
        tokens, log_probs = self.tokens[:going, first:end], self.log_probs[:going, first:end]
        asked = np.full((2, *tokens.shape), -1, dtype=np.int64)  # context and constraint state at the last scoring
        while True:
            conditions, last, state = self._conditions(tokens)
            utterance, frame = np.nonzero((conditions != asked).any(0) & valid)
            if not len(utterance):
                break
            for start in range(0, len(utterance), ROWS_AT_ONCE):
                rows = utterance[start : start + ROWS_AT_ONCE], frame[start : start + ROWS_AT_ONCE]
                log_probs[rows], tokens[rows] = self._best(rows[0], first + rows[1], *conditions[:, rows[0], rows[1]])
            asked = conditions
        self.last[:going], self.state[:going] = last, state

    def _conditions(self, tokens: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Contexts and states (2, n, L) before each frame of a block with ``tokens`` (n, L), and both at its end."""
        (n, frames), size = tokens.shape, self.last.shape[1]
        written = tokens != self.scorer.blank_id
        before = written.cumsum(1) - written
        # The context of each utterance at the block's start, then its tokens without blanks.
        history = np.concatenate([self.last[:n], np.zeros_like(tokens)], axis=1)
        at = np.nonzero(written)
        history[at[0], size + before[at]] = tokens[at]
        rows = np.arange(n)[:, None]
        conditions = np.zeros((2, n, frames), dtype=np.int64)
        for i in range(size):
            conditions[0] = conditions[0] * self.scorer.vocab_size + history[rows, before + i]
        count = written.sum(1)
        last = history[rows, count[:, None] + np.arange(size)]
        if self.following is None:
            return conditions, last, self.state[:n]
        states = np.empty((n, int(count.max()) + 1), dtype=np.int64)
        states[:, 0] = self.state[:n]
        for k in range(1, states.shape[1]):
            states[:, k] = self.following[states[:, k - 1], history[:, size + k - 1]]
        conditions[1] = states[rows, before]
        return conditions, last, states[np.arange(n), count]

    def _best(
        self, utterance: np.ndarray, frame: np.ndarray, context: np.ndarray, state: np.ndarray
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Log-probability and id of the best symbol at each of M frames."""
        scorer = self.scorer
        distinct, which = np.unique(context, return_inverse=True)
        index = torch.from_numpy(np.stack([frame * scorer.frames.size(1) + utterance, which, state]))
        row, of_context, of_state = index.to(scorer.frames.device)
        frames = scorer.frames.view(-1, scorer.frames.size(-1)).index_select(0, row)
        scores = scorer.log_probs(frames, scorer.contexts.look_up(distinct.tolist()).index_select(0, of_context))
        if self.constraints is not None:
            scores += self.constraints.weights.index_select(0, of_state)
        if scores.device.type != "cpu":
            log_probs, tokens = scores.max(-1)
            return log_probs.cpu().numpy(), tokens.cpu().numpy()
        found = scores.numpy()  # NumPy's argmax is several times as fast as torch's on a processor
        tokens = found.argmax(1)
        return found[np.arange(len(found)), tokens], tokens


def by_symbol(scorer: Scorer) -> bool:
    """Whether greedy search runs symbol by symbol: with an LSTM predictor, or several symbols per frame."""
    return not scorer.stateless or scorer.symbols_per_frame > 1


class SymbolGreedySearch:
    """Greedy search for any predictor: a frame ends at a blank, or after ``scorer.symbols_per_frame`` symbols.

    This is the greedy search of NeMo and transformers. ``context`` (N,) and ``state`` (N,) are the states of predictor
    and constraints, as in `GreedySearch`. ``written`` holds for each utterance its tokens, their frames and
    log-probabilities, ``score`` (N,) the log-probability with blanks, ``used`` (N,) the number of frames up to an
    endpoint or the end.

    Args:
        lengths: frames of each utterance, the longest first.
        endpoint: the token after which an utterance is not decoded any more; None: never.
    """

    def __init__(
        self,
        scorer: Scorer,
        lengths: Sequence[int],
        constraints: Optional[BatchConstraints],
        endpoint: Optional[int] = None,
    ):
        self.scorer, self.constraints, self.endpoint = scorer, constraints, endpoint
        self.context = np.full(len(lengths), scorer.contexts.start)
        self.state = np.zeros(len(lengths), dtype=np.int64)
        if constraints is not None:
            self.state = constraints.start.flatten().cpu().numpy().copy()
            self.following = constraints.following.view(-1, scorer.vocab_size).cpu().numpy()
        self.written: List[List[Tuple[int, int, float]]] = [[] for _ in lengths]
        self.score, self.used = np.zeros(len(lengths)), np.array(lengths)

    def run(self) -> None:
        """Decode all frames."""
        for t in range(int(self.used.max())):
            going = np.flatnonzero(self.used > t)
            for _ in range(self.scorer.symbols_per_frame):
                if not len(going):
                    break
                log_probs, tokens = self._best(t, going)
                self.score[going] += log_probs
                wrote = tokens != self.scorer.blank_id
                going, tokens, log_probs = going[wrote], tokens[wrote], log_probs[wrote]
                for i, token, log_prob in zip(going.tolist(), tokens.tolist(), log_probs.tolist()):
                    self.written[i].append((token, t, log_prob))
                self.context[going] = self.scorer.contexts.longer(self.context[going], tokens)
                if self.constraints is not None:
                    self.state[going] = self.following[self.state[going], tokens]
                ended = tokens == self.endpoint
                self.used[going[ended]] = t + 1
                going = going[~ended]

    def _best(self, t: int, going: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Log-probability and id of the best symbol of these utterances at frame t, (n,) each."""
        scorer = self.scorer
        rows, states = torch.from_numpy(np.stack([going, self.state[going]])).to(scorer.frames.device)
        contexts = scorer.contexts.look_up(self.context[going].tolist())
        scores = scorer.log_probs(scorer.frames[t].index_select(0, rows), contexts)
        if self.constraints is not None:
            scores += self.constraints.weights.index_select(0, states)
        log_probs, tokens = scores.max(-1)
        return log_probs.cpu().numpy(), tokens.cpu().numpy()

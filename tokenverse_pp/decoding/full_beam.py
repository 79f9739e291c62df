"""Beam search with several symbols per frame, batched over utterances and hypotheses.

The search is time-synchronous (Algorithm 1 of Saon et al., 2020, "Alignment-length synchronous decoding for RNN
transducer"; ESPnet's ``time_sync_decoding``), the breadth-first form of Graves (2012): at each frame the hypotheses are
extended in rounds. In each round a hypothesis may end the frame with a blank, or write one more symbol and go on to the
next round. All hypotheses that ended the frame, in any round, are candidates for the next frame; those with the same
tokens are merged by log-addition, and the best ``beam`` are kept.

A frame with ``max_symbols`` symbols ends without a blank, as in icefall's ``greedy_search`` with ``max_sym_per_frame``.
So the probabilities of all token sequences add up to 1 for any ``max_symbols``. With 1 the model is that of the
modified beam search; with a growing number it approaches the transducer of Graves.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.beam import longer_keys, symbol_keys
from tokenverse_pp.decoding.constraints import NEG_INF
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.decoding.scorer import BatchConstraints, NumberedStates, PredictorStates, Scorer


def full_beam_search(
    scorer: Scorer, lengths: Sequence[int], options: SearchOptions, constraints: Optional[BatchConstraints]
) -> List[List[Hypothesis]]:
    """Decode utterances sorted by length, longest first (see `search_frames`)."""
    return _Search(scorer, lengths, options, constraints).run()


class _Set(NamedTuple):
    """Hypotheses of all utterances, (n, K) each. Entries of score -inf are empty; their other values are ignored.

    path is the log-probability of the alignment alone (see `decoding.beam`). parent is the slot at the frame's start;
    tokens and values (n, K, max_symbols) are the symbols written in the frame, padded with blanks, and their
    log-probabilities.
    """

    score: Tensor
    path: Tensor
    context: Tensor
    key: Tensor
    state: Tensor
    earning: Tensor
    parent: Tensor
    tokens: Tensor
    values: Tensor

    def pick(self, at: Tensor) -> _Set:
        """Select the hypotheses at indices (n, M)."""
        deep = at.unsqueeze(-1).expand(-1, -1, self.tokens.size(-1))
        return _Set(*(x.gather(1, at if x.dim() == 2 else deep) for x in self))

    @staticmethod
    def join(parts: Sequence[_Set]) -> _Set:
        """Concatenate the hypotheses of several sets."""
        return _Set(*(torch.cat(each, 1) for each in zip(*parts)))


class _Search:
    """The frame loop."""

    def __init__(
        self, scorer: Scorer, lengths: Sequence[int], options: SearchOptions, constraints: Optional[BatchConstraints]
    ):
        self.scorer, self.lengths, self.constraints = scorer, lengths, constraints
        self.beam, self.most = options.beam, options.max_symbols
        self.device = scorer.frames.device
        self.symbol_key = symbol_keys(scorer.vocab_size).to(self.device)
        found = scorer.contexts
        self.contexts = NumberedStates(found) if isinstance(found, PredictorStates) else found

    def _start(self) -> _Set:
        shape = (len(self.lengths), self.beam)
        zeros = torch.zeros(shape, dtype=torch.int64, device=self.device)
        score = torch.full(shape, NEG_INF, device=self.device)
        score[:, 0] = 0
        state = zeros if self.constraints is None else self.constraints.start.expand(shape)
        context = torch.full(shape, self.contexts.start, device=self.device)
        tokens = torch.full((*shape, self.most), self.scorer.blank_id, device=self.device)
        values = torch.zeros(tokens.shape, device=self.device)
        return _Set(score, torch.zeros_like(score), context, zeros, state, zeros, zeros, tokens, values)

    def run(self) -> List[List[Hypothesis]]:
        """Decode all frames."""
        frames, batch = self.lengths[0], len(self.lengths)
        shape = (frames, batch, self.beam)
        # What was kept at each frame: parent (T, N, B); tokens and values (T, N, B, max_symbols); final (N, B) float64.
        parent = np.zeros(shape, dtype=np.int64)
        parent[:] = np.arange(self.beam)  # after an utterance's end each slot is its own parent
        tokens = np.full((*shape, self.most), self.scorer.blank_id, dtype=np.int64)
        values = np.zeros((*shape, self.most), dtype=np.float32)
        final = np.zeros(shape[1:])
        offset = torch.zeros(batch, 1, dtype=torch.float64, device=self.device)
        going = np.searchsorted(-np.asarray(self.lengths), -np.arange(frames), side="left").tolist()
        kept = self._start()
        for t, n in enumerate(going):
            if n < len(kept.score):
                final[n : len(kept.score)] = (kept.score + offset)[n:].cpu().numpy()
                kept, offset = _Set(*(x[:n] for x in kept)), offset[:n]
            kept = self._frame(t, kept)
            if isinstance(self.contexts, NumberedStates):
                self.contexts.keep(kept.context)
            for array, found in ((parent, kept.parent), (tokens, kept.tokens), (values, kept.values)):
                array[t, :n] = found.cpu().numpy()
            top = kept.score.amax(1, keepdim=True)
            kept, offset = kept._replace(score=kept.score - top, path=kept.path - top), offset + top
        final[: len(kept.score)] = (kept.score + offset).cpu().numpy()
        hypotheses: List[List[Hypothesis]] = [[] for _ in self.lengths]
        for i, k in np.argwhere(final > NEG_INF).tolist():
            trace = parent[:, i], tokens[:, i], values[:, i]
            hypotheses[i].append(self._hypothesis(*trace, k, self.lengths[i], float(final[i, k])))
        return hypotheses

    def _hypothesis(
        self, parent: np.ndarray, tokens: np.ndarray, values: np.ndarray, slot: int, length: int, score: float
    ) -> Hypothesis:
        """Trace a slot at an utterance's end back to the first frame; arrays as in `run`, of the utterance."""
        written: List[Tuple[int, int, float]] = []
        for t in reversed(range(length)):
            for token, value in zip(tokens[t, slot, ::-1].tolist(), values[t, slot, ::-1].tolist()):
                if token != self.scorer.blank_id:
                    written.append((token, t, value))
            slot = int(parent[t, slot])
        symbols, frames, log_probs = zip(*reversed(written)) if written else ((), (), ())
        return self.scorer.hypothesis(symbols, frames, log_probs, score)

    def _frame(self, t: int, kept: _Set) -> _Set:
        """Return the hypotheses after frame t."""
        slots = torch.arange(self.beam, device=self.device).expand(kept.parent.shape)
        blanks = torch.full_like(kept.tokens, self.scorer.blank_id)
        writing = kept._replace(parent=slots, tokens=blanks, values=torch.zeros_like(kept.values))
        ended: Optional[_Set] = None
        for written in range(self.most):
            ending, writing = self._extend(t, writing, written)
            ended = self._best(ending if ended is None else _Set.join([ended, ending]))
            if self.scorer.bonus is None:  # scores only fall: what is worse than all kept ones cannot come back
                worse = writing.score < ended.score[:, -1:]
                writing = writing._replace(score=writing.score.masked_fill(worse, NEG_INF))
            if not (writing.score > NEG_INF).any():
                return ended
        assert ended is not None  # most is 1 or more
        return self._best(_Set.join([ended, writing]))

    def _extend(self, t: int, writing: _Set, written: int) -> Tuple[_Set, _Set]:
        """Return the hypotheses ended by a blank, and the best ``beam`` that write one more symbol."""
        log_probs, row = self._score(t, writing)
        blank = self.scorer.blank_id
        ended = log_probs[:, blank].take(row)
        ending = writing._replace(score=writing.score + ended, path=writing.path + ended)
        log_probs[:, blank] = NEG_INF
        best, symbols = log_probs.topk(min(self.beam, self.scorer.vocab_size - 1))
        each = best.index_select(0, row.flatten()).view(*row.shape, -1)
        count = each.size(-1)
        score, at = (each + writing.score.unsqueeze(-1)).flatten(1).topk(min(self.beam, each[0].numel()))
        origin = torch.div(at, count, rounding_mode="floor")
        token = symbols.index_select(0, row.flatten()).view(len(at), -1).gather(1, at)
        longer = self._write(writing.pick(origin), token)
        longer.tokens[:, :, written] = token
        added = each.flatten(1).gather(1, at)
        longer.values[:, :, written] = added
        return ending, longer._replace(score=score, path=longer.path + added)

    def _score(self, t: int, writing: _Set) -> Tuple[Tensor, Tensor]:
        """Return log-probabilities (M, V) of the next symbol, and the row of each hypothesis in them, (n, K)."""
        n, width = writing.score.shape
        asked = (writing.score > NEG_INF).flatten().tolist()
        each = zip(*(x.flatten().tolist() for x in (writing.context, writing.state, writing.earning)))
        wanted = [(i // width, *rest) if ask else None for i, (ask, rest) in enumerate(zip(asked, each))]
        number = {what: i for i, what in enumerate(dict.fromkeys(w for w in wanted if w is not None))}
        row = torch.tensor([0 if w is None else number[w] for w in wanted], device=self.device).view(n, width)
        utterances, contexts, states, earning = zip(*number)
        frames = self.scorer.frames[t].index_select(0, torch.tensor(utterances, device=self.device))
        log_probs = self.scorer.log_probs(frames, self.contexts.look_up(contexts))
        if self.constraints is not None:
            log_probs += self.constraints.weights.index_select(0, torch.tensor(states, device=self.device))
        if self.scorer.bonus is not None:
            log_probs += self.scorer.bonus.look_up(earning, self.device)
        return log_probs, row

    def _write(self, hypotheses: _Set, token: Tensor) -> _Set:
        """Return the hypotheses with the states after one more token each, (n, K)."""
        vocab_size = self.scorer.vocab_size
        context = self.contexts.after(hypotheses.context, token)
        key = longer_keys(hypotheses.key, self.symbol_key.take(token))
        state, earning = hypotheses.state, hypotheses.earning
        if self.constraints is not None:
            state = self.constraints.following.take(state * vocab_size + token)
        if self.scorer.bonus is not None:
            moves = zip(earning.flatten().tolist(), token.flatten().tolist())
            after = [self.scorer.bonus.advance(*move) for move in moves]
            earning = torch.tensor(after, device=self.device).view(token.shape)
        return hypotheses._replace(context=context, key=key, state=state, earning=earning)

    def _best(self, ended: _Set) -> _Set:
        """Merge hypotheses with the same tokens by log-addition; of their alignments the most probable one is kept.

        Returns the best ``beam``.
        """
        score, order = ended.score.sort(dim=1, descending=True, stable=True)
        key = ended.key.gather(1, order)
        same = key.unsqueeze(2) == key.unsqueeze(1)
        total = torch.where(same, score.unsqueeze(1), score.new_full((), NEG_INF)).logsumexp(2)
        total = total.masked_fill(same.tril(-1).any(2), NEG_INF)
        path = ended.path.gather(1, order).masked_fill(score == NEG_INF, NEG_INF)
        likeliest = torch.where(same, path.unsqueeze(1), path.new_full((), NEG_INF)).argmax(2)
        score, at = total.topk(self.beam)
        return ended.pick(order.gather(1, likeliest.gather(1, at)))._replace(score=score)

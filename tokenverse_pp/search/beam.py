"""Modified beam search (at most one symbol a frame), batched over utterances and hypotheses.

The algorithm is that of icefall's ``modified_beam_search``: at each frame every hypothesis is extended by every symbol,
the best ``beam`` extensions are kept, and those with the same tokens are merged by log-addition. Here the state of
all hypotheses is a handful of tensors (N, beam), so a frame costs the same few operations for any batch, and the joiner
is run once for hypotheses that it cannot tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from tokenverse_pp.search.automaton import Rules
from tokenverse_pp.search.hypothesis import Hypothesis
from tokenverse_pp.search.options import SearchOptions
from tokenverse_pp.search.scorer import Scorer

NEG_INF = -float("inf")
HASH_FACTOR = 0x5851F42D4C957F2D  # Knuth's MMIX multiplier, odd


def beam_search(
    scorer: Scorer, lengths: Sequence[int], options: SearchOptions, rules: Optional[Rules]
) -> List[List[Hypothesis]]:
    """Decode utterances that are ordered by length, the longest first (see `search_frames`)."""
    trace = _Search(scorer, lengths, options.width, rules).run()
    return _read_back(trace, scorer, lengths, options)


@dataclass
class _Trace:
    """What `_Search` wrote down at each frame, all (T, N, B).

    index: parent x V + token. value: score of the extension. score: after merging, on the scale of the next frame's
    value. final (N, B): log-probability of each slot at its utterance's end, float64; -inf for an empty slot.
    """

    index: np.ndarray
    value: np.ndarray
    score: np.ndarray
    final: np.ndarray


class _Search:
    """The frame loop. Slots that hold no hypothesis have the score -inf, and whatever else they hold is ignored."""

    def __init__(self, scorer: Scorer, lengths: Sequence[int], beam: int, rules: Optional[Rules]):
        self.scorer, self.lengths, self.beam, self.rules = scorer, lengths, beam, rules
        device, shape = scorer.frames.device, (len(lengths), beam)
        self.score = torch.full(shape, NEG_INF, device=device)
        self.score[:, 0] = 0
        # Added to the score; keeps scores near zero, where float32 is exact enough for any length.
        self.offset = torch.zeros(len(lengths), 1, dtype=torch.float64, device=device)
        self.context = torch.full(shape, scorer.contexts.start, device=device)
        self.state = None if rules is None else rules.start.expand(shape).contiguous()
        self.bonus, self.earning = scorer.bonus, [0] * (len(lengths) * beam)  # the bonus's state of each slot
        self.owner = [i for i in range(len(lengths)) for _ in range(beam)]  # the utterance of each slot
        self.no_state = [0] * len(self.owner)
        # A random number a symbol; hypotheses are told apart by a 64-bit hash of their tokens. Two different ones
        # agree with probability 2**-63 a pair: about once in 10**12 hours of speech at a beam of 8.
        self.key = torch.zeros(shape, dtype=torch.int64, device=device)
        random = torch.Generator().manual_seed(1)
        self.symbol_key = torch.randint(-(2**63), 2**63 - 1, (scorer.vocab_size,), generator=random).to(device)
        self.upper = torch.ones(beam, beam, dtype=torch.bool, device=device).triu(1)

    def run(self) -> _Trace:
        """Go through all frames."""
        frames, device = self.lengths[0], self.score.device
        shape = (frames, len(self.lengths), self.beam)
        # After an utterance's end each slot is its own parent by a blank.
        stay = torch.arange(self.beam, device=device) * self.scorer.vocab_size + self.scorer.blank_id
        index = stay.expand(shape).clone()
        value, score = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
        final = torch.zeros(shape[1:], dtype=torch.float64, device=device)
        going = np.searchsorted(-np.asarray(self.lengths), -np.arange(frames), side="left").tolist()
        for t, n in enumerate(going):
            if n < len(self.score):
                final[n : len(self.score)] = (self.score + self.offset)[n:]
                self._keep(n)
            value[t, :n], index[t, :n] = self._step(t)
            score[t, :n] = self.score
        final[: len(self.score)] = self.score + self.offset
        return _Trace(*(x.cpu().numpy() for x in (index, value, score, final)))

    def _keep(self, n: int) -> None:
        """Go on with the first n utterances."""
        self.score, self.offset, self.context, self.key = (
            x[:n] for x in (self.score, self.offset, self.context, self.key)
        )
        self.state = None if self.state is None else self.state[:n]
        self.owner, self.earning = self.owner[: n * self.beam], self.earning[: n * self.beam]

    def _step(self, t: int) -> Tuple[Tensor, Tensor]:
        log_probs, which = self._score(t)
        # The best of all extensions are among the best of each row.
        best, symbols = log_probs.topk(min(self.beam, self.scorer.vocab_size))
        shape = (len(self.score), self.beam, best.size(1))
        extended = best.index_select(0, which).view(shape) + self.score.unsqueeze(-1)
        value, at = extended.flatten(1).topk(self.beam)
        parent = torch.div(at, shape[2], rounding_mode="floor")
        token = symbols.index_select(0, which).view(shape).flatten(1).gather(1, at)
        self._advance(parent, token)
        self.score = value if self.beam == 1 else self._merge(value)
        top = self.score.amax(1, keepdim=True)
        self.score = self.score - top
        self.offset = self.offset + top
        return value, parent * self.scorer.vocab_size + token

    def _score(self, t: int) -> Tuple[Tensor, Tensor]:
        """Log-probabilities (M, V) of the next symbol, and for each of the n * B slots its row of them.

        Hypotheses of an utterance that differ only in older tokens (half of them or more, in a trained model) have the
        same context, and share a row: the joiner, the most costly part of a search, is run for distinct rows only.
        """
        n, device = len(self.score), self.score.device
        contexts = self.context.flatten().tolist()
        states = self.no_state if self.state is None else self.state.flatten().tolist()
        slots = list(zip(self.owner, contexts, states, self.earning))
        number = {slot: i for i, slot in enumerate(dict.fromkeys(slots))}
        which = map(number.__getitem__, slots)
        utterances, distinct, distinct_states, earning = zip(*number)
        index = torch.tensor([*which, *utterances, *distinct_states], device=device)
        row_of_slot, utterance, state = index.split([n * self.beam, len(number), len(number)])
        frames = self.scorer.frames[t].index_select(0, utterance)
        log_probs = self.scorer.log_probs(frames, self.scorer.contexts.look_up(distinct))
        if self.rules is not None:
            log_probs += self.rules.weights.index_select(0, state)
        if self.bonus is not None:
            log_probs += self.bonus.look_up(earning, device)
        return log_probs, row_of_slot

    def _advance(self, parent: Tensor, token: Tensor) -> None:
        """Move what a hypothesis remembers to its extensions."""
        vocab_size, blank = self.scorer.vocab_size, token == self.scorer.blank_id
        context = self.context.gather(1, parent)
        longer = (context * vocab_size + token).remainder_(self.scorer.contexts.modulus)
        self.context = torch.where(blank, context, longer)
        if self.rules is not None and self.state is not None:
            at = self.state.gather(1, parent) * vocab_size + token
            self.state = self.rules.following.take(at)
        if self.bonus is not None:
            first_slot = torch.arange(len(self.score), device=parent.device)[:, None] * self.beam
            moves = zip((parent + first_slot).flatten().tolist(), token.flatten().tolist())
            self.earning = [self.bonus.advance(self.earning[slot], symbol) for slot, symbol in moves]
        if self.beam > 1:
            key = self.key.gather(1, parent)
            longer = (key ^ (key >> 29)) * HASH_FACTOR + self.symbol_key.take(token)
            self.key = torch.where(blank, key, longer)

    def _merge(self, value: Tensor) -> Tensor:
        """Log-add hypotheses with the same tokens into the better one, and empty the other's slot.

        At most two agree: the tokens of all were different at the last frame, so that one of them is an old hypothesis
        plus a blank, and the other is the one old hypothesis that is a token shorter, plus that token.
        """
        same = (self.key.unsqueeze(2) == self.key.unsqueeze(1)) & self.upper  # (n, B, B), better x worse
        twin = torch.where(same, value.unsqueeze(1), value.new_full((), NEG_INF)).amax(2)
        return torch.logaddexp(value, twin).masked_fill(same.any(1), NEG_INF)


def _read_back(trace: _Trace, scorer: Scorer, lengths: Sequence[int], options: SearchOptions) -> List[List[Hypothesis]]:
    """Follow the parents from each final slot to the front."""
    frames, batch, beam = trace.index.shape
    slots, tokens = np.empty_like(trace.index), np.empty_like(trace.index)
    first_slot = np.arange(batch)[:, None] * beam
    at = first_slot + np.arange(beam)
    for t in reversed(range(frames)):
        slots[t] = at
        parent, tokens[t] = np.divmod(trace.index[t].take(at), scorer.vocab_size)
        at = first_slot + parent
    # What a token added to its parent's score. At the start only the first slots hold a hypothesis, of score 0.
    flat = slots.reshape(frames, batch * beam)
    value = np.take_along_axis(trace.value.reshape(frames, batch * beam), flat, 1)
    before = np.zeros_like(value)
    score = trace.score.reshape(frames, batch * beam)[:-1]
    before[1:] = np.take_along_axis(score, flat[:-1], 1)
    with np.errstate(invalid="ignore"):  # -inf - -inf in slots that are empty
        log_probs = (value - before).reshape(trace.index.shape)
    found = []
    for i in range(batch):
        hypotheses = []
        for k in np.flatnonzero(trace.final[i] > NEG_INF):
            at = np.flatnonzero(tokens[: lengths[i], i, k] != scorer.blank_id)
            written = (tokens[at, i, k].tolist(), at.tolist(), log_probs[at, i, k].tolist())
            hypotheses.append(scorer.hypothesis(*written, float(trace.final[i, k])))
        hypotheses.sort(key=lambda h: (-h.score, h.tokens))
        found.append(hypotheses[: options.nbest])
    return found

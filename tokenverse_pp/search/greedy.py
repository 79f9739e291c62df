"""Greedy search: the best symbol of each frame, batched over utterances.

The predictor's state changes only where a symbol is written, so the next frames of an utterance are scored together,
and what was scored behind its next symbol is thrown away. Each utterance goes on at its own frame (cf. the "label
looping" of Bataev et al., 2024). A few utterances then cost far fewer steps than they have frames.
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from tokenverse_pp.search.automaton import Rules
from tokenverse_pp.search.hypothesis import Hypothesis
from tokenverse_pp.search.options import SearchOptions
from tokenverse_pp.search.scorer import Scorer

ROWS_AT_ONCE = 16  # of the joiner: fewer cost a CPU almost as much
LONGEST_LOOK = 8  # frames; speech writes a symbol every few


class _Utterance:
    """How far one utterance is."""

    def __init__(self, index: int, length: int, context: int, state: int):
        self.index, self.length, self.at = index, length, 0
        self.context, self.state = context, state
        self.tokens: List[int] = []
        self.frames: List[int] = []
        self.log_probs: List[float] = []
        self.total = 0.0

    def read(self, tokens: Sequence[int], log_probs: Sequence[float], blank: int) -> bool:
        """Go on through frames up to the next symbol, or to their end. -> whether a symbol was written."""
        for token, log_prob in zip(tokens, log_probs):
            if self.at == self.length:
                return False
            self.total += log_prob
            self.at += 1
            if token != blank:
                self.tokens.append(token)
                self.frames.append(self.at - 1)
                self.log_probs.append(log_prob)
                return True
        return False


def greedy_search(
    scorer: Scorer, lengths: Sequence[int], options: SearchOptions, rules: Optional[Rules]
) -> List[List[Hypothesis]]:
    """Decode utterances (see `search_frames`)."""
    vocab_size, modulus = scorer.vocab_size, scorer.contexts.modulus
    following = None if rules is None else rules.following.cpu().numpy()
    states = [0] * len(lengths) if rules is None else rules.start.flatten().tolist()
    everyone = [
        _Utterance(i, length, scorer.contexts.start, state) for i, (length, state) in enumerate(zip(lengths, states))
    ]
    going = [u for u in everyone if u.length]
    contexts, barred = _conditions(scorer, going, rules)
    while going:
        log_probs, tokens = _best(scorer, going, contexts, barred)
        changed = False
        for u, row, row_log_probs in zip(going, tokens, log_probs):
            if u.read(row, row_log_probs, scorer.blank_id):
                u.context = (u.context * vocab_size + u.tokens[-1]) % modulus
                if following is not None:
                    u.state = int(following[u.state * vocab_size + u.tokens[-1]])
                changed = True
            changed = changed or u.at == u.length
        if changed:
            going = [u for u in going if u.at < u.length]
            contexts, barred = _conditions(scorer, going, rules)
    return [[scorer.hypothesis(u.tokens, u.frames, u.log_probs, u.total)] for u in everyone]


def _conditions(scorer: Scorer, going: Sequence[_Utterance], rules: Optional[Rules]) -> Tuple[Tensor, Optional[Tensor]]:
    """What the next symbol depends on but the frame: predictor states (n, 1, J), constraints' log-weights (n, 1, V)."""
    contexts = scorer.contexts.look_up([u.context for u in going]).unsqueeze(1)
    if rules is None:
        return contexts, None
    states = torch.tensor([u.state for u in going], dtype=torch.int64, device=rules.weights.device)
    return contexts, rules.weights.index_select(0, states).unsqueeze(1)


def _best(
    scorer: Scorer, going: Sequence[_Utterance], contexts: Tensor, barred: Optional[Tensor]
) -> Tuple[List[List[float]], List[List[int]]]:
    """Log-probability and id of the best symbol in the next frames of each utterance."""
    last, batch = scorer.frames.size(0) - 1, scorer.frames.size(1)
    look = max(1, min(LONGEST_LOOK, ROWS_AT_ONCE // len(going)))
    rows = [min(u.at + k, last) * batch + u.index for u in going for k in range(look)]
    index = torch.tensor(rows, device=scorer.frames.device)
    frames = scorer.frames.view(-1, scorer.frames.size(-1)).index_select(0, index)
    scores = scorer.log_probs(frames.view(len(going), look, -1), contexts)
    if barred is not None:
        scores += barred
    log_probs, tokens = scores.max(-1)
    return log_probs.tolist(), tokens.tolist()

"""The search's rules for streams that decode different tasks, and what becomes of a rule's state when tasks change.

Greedy and beam search over encoder output that comes in chunks, for many streams as one batch.

The state of a stream says all that the search needs of what it has heard, and does not grow with it. Chunk by chunk the
same comes out as from the whole encoder output at once (`tokenverse_pp.decoding.search.search_frames`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.decoding.constraints import NEG_INF
from tokenverse_pp.decoding.scorer import Constraints, FusionScorer, Rules, Scorer, project
from tokenverse_pp.decoding.streaming.events import Method, Ran, Token
from tokenverse_pp.decoding.streaming.methods import BeamMethod, GreedyMethod
from tokenverse_pp.models.transducer import Joiner, StatelessPredictor


class RuleBook:
    """Several `Constraints` in one table, so that streams with different ones are searched as one batch.

    The state of a stream is a row of that table. Rows are only ever added behind the others, hence states stay valid.
    """

    def __init__(self, vocab_size: int, device: torch.device):
        self.weights = torch.zeros(0, vocab_size, device=device)
        self.following = torch.zeros(0, vocab_size, dtype=torch.int64, device=device)
        self.known: List[Constraints] = []
        self.first: Dict[int, int] = {}
        self.translations: Dict[Tuple[int, int], List[int]] = {}

    def add(self, constraints: Constraints) -> int:
        """The first state of these constraints, which are added if they are not known."""
        key = id(constraints)
        if key not in self.first:
            self.known.append(constraints)  # kept, so that no other object gets its id
            self.first[key] = len(self.weights)
            device, before = self.weights.device, len(self.weights)
            self.weights = torch.cat([self.weights, constraints.weights.to(device)])
            self.following = torch.cat([self.following, constraints.following.to(device) + before])
        return self.first[key]

    def rules(self, starts: List[int]) -> Rules:
        """The table for a batch of streams with these first states."""
        start = torch.tensor(starts, device=self.weights.device)[:, None]
        return Rules(self.weights, self.following.flatten(), start)

    def translate(self, state: int, old: Constraints, new: Constraints) -> int:
        """The state of ``new`` that fits what was written under ``old``.

        It is the state after the shortest text that leads to ``state``, without the symbols that ``new`` bars: so a
        span that was open is given up with its task, and one that is known to both stays open.
        """
        key = (id(old), id(new))
        first, other = self.add(old), self.add(new)
        if key not in self.translations:
            self.translations[key] = [_walk(new, text) for text in _shortest_texts(old)]
        return other + self.translations[key][state - first]


def _shortest_texts(constraints: Constraints) -> List[List[int]]:
    """For each state a shortest sequence of symbols that leads to it, breadth first."""
    texts: Dict[int, List[int]] = {0: []}
    queue = [0]
    for state in queue:
        after = constraints.following[state]
        for symbol in (constraints.weights[state] > NEG_INF).nonzero().flatten().tolist():
            if int(after[symbol]) not in texts:
                texts[int(after[symbol])] = [*texts[state], symbol]
                queue.append(int(after[symbol]))
    return [texts[state] for state in range(len(constraints.weights))]


def _walk(constraints: Constraints, symbols: List[int]) -> int:
    """The state after those of the symbols that are allowed."""
    state = 0
    for symbol in symbols:
        if constraints.weights[state, symbol] > NEG_INF:
            state = int(constraints.following[state, symbol])
    return state


METHODS = ("greedy", "beam")


@dataclass(frozen=True)
class SearchState:
    """The search of one stream: what it remembers, its rules, and the frames that it has decoded."""

    memory: Any
    constraints: Constraints
    frames: int = 0


class Found(NamedTuple):
    """Tokens that have become final, and those of the best hypothesis behind all that are final."""

    settled: List[Token]
    open: List[Token]


class StreamingSearch:
    """The search of any number of streams. It holds nothing of them: their states are the caller's.

    Args:
        predictor: the stateless predictor.
        joiner: the joiner. The weights of both are taken over, and must not change afterwards.
        options: how to search: by ``greedy`` or ``beam``, for one hypothesis.
        bonus: for hotwords, length, a language model (`bonus_for`): where the options ask for one, and not otherwise.
        decide_after: frames after which the best hypothesis decides what the others of a beam do not agree to.
        endpoint: the token after which the search starts anew; None for none. As soon as the most probable hypothesis
            has it, that one becomes final; predictor, rules and bonuses are then as at a stream's start.

    Raises:
        UserError: for options that streams cannot be searched with.
    """

    def __init__(
        self,
        predictor: StatelessPredictor,
        joiner: Joiner,
        options: SearchOptions,
        bonus: Optional[FusionScorer] = None,
        decide_after: float = math.inf,
        endpoint: Optional[int] = None,
    ):
        if options.method not in METHODS:
            raise UserError(f"search option 'method': streams are searched by {' or '.join(METHODS)}")
        if options.nbest > 1:
            raise UserError(f"search option 'nbest': a stream has one hypothesis, not {options.nbest}")
        if options.earns != (bonus is not None):
            raise ValueError("hotwords, length_bonus and lm go together with their `bonus_for(options, tokenizer)`")
        self.joiner, self.options = joiner, options
        device = joiner.output.weight.device
        with torch.inference_mode():
            self.scorer = Scorer(
                predictor, joiner, torch.zeros(0, 1, joiner.output.in_features).to(device), options, bonus
            )
        self.book = RuleBook(joiner.output.out_features, device)
        self.method: Method = GreedyMethod(endpoint)
        if options.method == "beam":
            self.method = BeamMethod(options, bonus, predictor, decide_after, endpoint)

    def start(self, constraints: Constraints) -> SearchState:
        """The state of a new stream that may write what ``constraints`` say."""
        return SearchState(self.method.start(self.scorer, self.book.add(constraints)), constraints)

    def change(self, state: SearchState, constraints: Constraints) -> SearchState:
        """The state under other constraints from here on (`RuleBook.translate`)."""
        self.book.add(constraints)
        memory = self.method.translate(
            state.memory, lambda row: self.book.translate(row, state.constraints, constraints)
        )
        return replace(state, memory=memory, constraints=constraints)

    def open(self, state: SearchState) -> List[Token]:
        """What the best hypothesis of a stream has behind all that is final."""
        return self.method.open(state.memory)

    def step(self, outs: Sequence[Tensor], states: Sequence[SearchState]) -> Tuple[List[Found], List[SearchState]]:
        """Go on with a chunk of each stream.

        Args:
            outs: encoder output of each, (T_i, C); without NaN.
            states: of each; they stay as they are.

        Returns:
            What was found, and the new states.
        """
        after = list(states)
        settled: List[List[Token]] = [[] for _ in outs]
        # Autocast would cast the weights again at each frame; SearchOptions.joiner_dtype does it once.
        with torch.inference_mode(), torch.autocast(self.book.weights.device.type, enabled=False):
            projected = project(self.joiner, torch.cat(list(outs)), self.options).split([len(out) for out in outs])
            todo = {i: frames for i, frames in enumerate(projected) if len(frames)}
            while todo:
                rest = {}
                for i, ran in zip(todo, self._run(todo, after)):
                    settled[i].extend(ran.settled)
                    after[i] = replace(after[i], memory=ran.memory, frames=after[i].frames + ran.used)
                    if ran.used < len(todo[i]):
                        rest[i] = todo[i][ran.used :]
                todo = rest
        return [Found(tokens, self.open(state)) for tokens, state in zip(settled, after)], after

    def _run(self, todo: Dict[int, Tensor], states: Sequence[SearchState]) -> List[Ran]:
        """Decode frames (T_i, J) of some streams, up to their first endpoint; in the order of ``todo``."""
        order = sorted(todo, key=lambda i: -len(todo[i]))
        starts = [self.book.add(states[i].constraints) for i in order]
        ran = self.method.run(
            self.scorer.over(pad_sequence([todo[i] for i in order])),
            [len(todo[i]) for i in order],
            self.book.rules(starts),
            [states[i].memory for i in order],
            [states[i].frames for i in order],
        )
        found = dict(zip(order, ran))
        return [found[i] for i in todo]

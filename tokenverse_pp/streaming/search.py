"""Greedy and beam search over encoder output that comes in chunks, for many streams as one batch.

The state of a stream says all that the search needs of what it has heard, and does not grow with it. Chunk by chunk the
same comes out as from the whole encoder output at once (`tokenverse_pp.search.search_frames`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokenverse_pp.errors import UserError
from tokenverse_pp.model.joiner import Joiner
from tokenverse_pp.model.predictor import StatelessPredictor
from tokenverse_pp.search.automaton import Constraints
from tokenverse_pp.search.bonuses import Earnings
from tokenverse_pp.search.options import SearchOptions
from tokenverse_pp.search.scorer import Scorer, project
from tokenverse_pp.streaming.search_beam import BeamMethod
from tokenverse_pp.streaming.search_greedy import GreedyMethod
from tokenverse_pp.streaming.search_parts import Method, Ran, Token
from tokenverse_pp.streaming.search_rules import RuleBook

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
        bonus: Optional[Earnings] = None,
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

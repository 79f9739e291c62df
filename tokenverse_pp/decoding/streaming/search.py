"""Greedy and beam search over encoder output in chunks, for many streams in one batch.

The result is the same as that of a search over the whole encoder output
(`tokenverse_pp.decoding.recognizer.search_frames`). The state of a stream holds all that the search needs of the past,
and its size does not grow with the stream:

- Tokens of greedy search are final at once.
- In beam search the tokens that all hypotheses have in common are final, and only the tails in which they differ are
  kept. Tails are usually a few words long, but have no upper limit: if hypotheses have differed for too long, the best
  one decides, and those that differ from it are dropped.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.beam import BeamMemory, BeamSearch, BeamTrace
from tokenverse_pp.decoding.constraints import NEG_INF, Constraints
from tokenverse_pp.decoding.greedy import GreedySearch, SymbolGreedySearch, by_symbol
from tokenverse_pp.decoding.scorer import (
    BatchConstraints,
    ConstraintTable,
    FusionScorer,
    Scorer,
    check_bonus,
    inference,
    project,
)
from tokenverse_pp.decoding.streaming.events import Token
from tokenverse_pp.models.predictor import Predictor
from tokenverse_pp.models.transducer import Joiner


@dataclass(frozen=True)
class SearchState:
    """The search of one stream: the memory of its method, its constraints, and how many frames it has decoded."""

    memory: Any
    constraints: Constraints
    frames: int = 0


States = Sequence[SearchState]


class Found(NamedTuple):
    """Newly final tokens, and those of the best hypothesis after all final ones."""

    settled: List[Token]
    open: List[Token]


class Ran(NamedTuple):
    """The result of a method for the frames of one stream.

    memory: state to continue with. settled: newly final tokens. used: number of decoded frames, up to an endpoint.
    """

    memory: Any
    settled: List[Token]
    used: int


class StreamingSearch:
    """The search of any number of streams. It stores nothing of them: the caller keeps their states.

    Args:
        joiner: the joiner. The weights of both are copied, and must not change afterwards.
        options: how to search: with ``greedy`` or ``beam``, for one hypothesis.
        bonus: for hotwords, length, a language model (`bonus_for`); needed if and only if the options use them.
        decide_after: frames after which the best hypothesis of a beam decides where hypotheses differ.
        endpoint: the token after which the search restarts; None for none. As soon as the most probable hypothesis
            contains it, that hypothesis becomes final, and the search forgets it but for two things. The predictor has
            read the last token (the endpoint, or in a beam a ``[SCD]`` or word right after it), because one that has
            read nothing expects a stream's start. The constraints know the whole stream: a ``[SCD]`` may follow, a
            second language may not.

    Raises:
        UserError: for options that streams do not support.
    """

    def __init__(
        self,
        predictor: Predictor,
        joiner: Joiner,
        options: SearchOptions,
        bonus: Optional[FusionScorer] = None,
        decide_after: float = math.inf,
        endpoint: Optional[int] = None,
    ):
        if options.method not in ("greedy", "beam"):
            raise UserError("search option 'method': streams are searched by greedy or beam")
        if options.nbest > 1:
            raise UserError(f"search option 'nbest': a stream has one hypothesis, not {options.nbest}")
        check_bonus(options, bonus)
        self.joiner, self.options = joiner, options
        self.device = joiner.output.weight.device
        self.table = ConstraintTable(joiner.output.out_features, self.device)
        with torch.inference_mode():
            nothing = torch.zeros(0, 1, joiner.output.in_features).to(self.device)
            self.scorer = Scorer(predictor, joiner, nothing, options, bonus)
        methods: Dict[str, Type[Method]] = {"greedy": GreedyMethod, "beam": BeamMethod}
        if by_symbol(self.scorer):
            methods["greedy"] = SymbolGreedyMethod
        self.method = methods[options.method](self.scorer, decide_after, endpoint)

    def start(self, constraints: Constraints) -> SearchState:
        """Return the state of a new stream under these constraints."""
        return SearchState(self.method.start(self.table.add(constraints)), constraints)

    def change(self, state: SearchState, constraints: Constraints) -> SearchState:
        """Return the state under other constraints from here on (`ConstraintTable.translate`)."""
        self.table.add(constraints)
        memory = self.method.translate(
            state.memory, lambda row: self.table.translate(row, state.constraints, constraints)
        )
        return replace(state, memory=memory, constraints=constraints)

    def open(self, state: SearchState) -> List[Token]:
        """Tokens of the best hypothesis of a stream after all final ones."""
        return self.method.open(state.memory)

    def step(self, outs: Sequence[Tensor], states: Sequence[SearchState]) -> Tuple[List[Found], List[SearchState]]:
        """Search the next chunk of each stream, with encoder output (T_i, C) without NaN; return the new states too."""
        after = list(states)
        settled: List[List[Token]] = [[] for _ in outs]
        with inference(self.device):
            projected = project(self.joiner, torch.cat(list(outs)), self.options).split([len(out) for out in outs])
            todo = {i: frames for i, frames in enumerate(projected) if len(frames)}
            while todo:  # once, and again for the frames after an endpoint
                order = sorted(todo, key=lambda i: -len(todo[i]))
                ran = self.method.run(
                    self.scorer.over(pad_sequence([todo[i] for i in order])),
                    [len(todo[i]) for i in order],
                    self.table.batch([after[i].constraints for i in order]),
                    [after[i] for i in order],
                )
                for i, (memory, tokens, used) in zip(order, ran):
                    settled[i].extend(tokens)
                    after[i] = replace(after[i], memory=memory, frames=after[i].frames + used)
                    todo[i] = todo[i][used:]
                todo = {i: frames for i, frames in todo.items() if len(frames)}
        return [Found(tokens, self.open(state)) for tokens, state in zip(settled, after)], after


class Method(ABC):
    """A search that can be continued. A memory is never changed, so a failed step leaves a stream unchanged."""

    def __init__(self, scorer: Scorer, decide_after: float, endpoint: Optional[int]):
        self.scorer, self.options, self.bonus = scorer, scorer.options, scorer.bonus
        self.blank_id, self.context_size = scorer.blank_id, scorer.contexts.size
        self.decide_after, self.endpoint = decide_after, endpoint

    @abstractmethod
    def start(self, state: int, newest: Optional[int] = None) -> Any:
        """Return the memory of a search that begins at a stream's start, or after an endpoint.

        ``state`` is the state of the constraints: of a new stream the first one. ``newest`` is the last token of what
        was before, which the predictor has read; None at a stream's start.
        """

    @abstractmethod
    def run(self, scorer: Scorer, lengths: Sequence[int], constraints: BatchConstraints, states: States) -> List[Ran]:
        """Decode the scorer's frames (T, N, J) of N streams, longest first; each has at least one frame."""

    @abstractmethod
    def open(self, memory: Any) -> List[Token]:
        """Return the tokens of the best hypothesis after the final ones."""

    @abstractmethod
    def translate(self, memory: Any, translation: Callable[[int], int]) -> Any:
        """Return the memory with translated states of the constraints."""

    def first_context(self, shape: Tuple[int, ...], newest: Optional[int]) -> np.ndarray:
        """Return the predictor's context at the start or after the token ``newest``, in an array of this shape."""
        start = np.full(shape, self.scorer.contexts.start)
        return start if newest is None else self.scorer.contexts.longer(start, np.full(shape, newest))

    def _after(self, state: int, tokens: np.ndarray, following: np.ndarray) -> int:
        """Return the constraints' state after tokens (T,), blanks included; ``following`` (S, V) or (S * V,)."""
        for token in tokens[tokens != self.blank_id].tolist():
            state = int(following.flat[state * self.scorer.vocab_size + token])
        return state


class GreedyMemory(NamedTuple):
    """The last tokens (context size,) or the predictor's context (1,), and the state of the constraints."""

    last: np.ndarray
    state: int


class GreedyMethod(Method):
    """Greedy search."""

    def start(self, state: int, newest: Optional[int] = None) -> GreedyMemory:
        """See `Method`."""
        last = np.full(self.context_size, self.blank_id, dtype=np.int64)
        if newest is not None:
            last[-1] = newest
        return GreedyMemory(last, state)

    def run(self, scorer: Scorer, lengths: Sequence[int], constraints: BatchConstraints, states: States) -> List[Ran]:
        """See `Method`."""
        search = GreedySearch(scorer, lengths, constraints)
        search.last = np.stack([state.memory.last for state in states])
        search.state = np.array([state.memory.state for state in states])
        search.run()
        done = []
        for i, (length, state) in enumerate(zip(lengths, states)):
            memory, used = GreedyMemory(search.last[i], int(search.state[i])), length
            ends = np.flatnonzero(search.tokens[i, :length] == self.endpoint)
            if len(ends):
                assert search.following is not None
                used = int(ends[0]) + 1
                after = self._after(state.memory.state, search.tokens[i, :used], search.following)
                memory = self.start(after, self.endpoint)
            at = np.flatnonzero(search.tokens[i, :used] != self.blank_id)
            columns = (search.tokens[i, at].tolist(), (at + state.frames).tolist(), search.log_probs[i, at].tolist())
            done.append(Ran(memory, [Token(*token) for token in zip(*columns)], used))
        return done

    def open(self, memory: GreedyMemory) -> List[Token]:
        """See `Method`."""
        return []

    def translate(self, memory: GreedyMemory, translation: Callable[[int], int]) -> GreedyMemory:
        """See `Method`."""
        return memory._replace(state=translation(memory.state))


class SymbolGreedyMethod(GreedyMethod):
    """Greedy search symbol by symbol."""

    def start(self, state: int, newest: Optional[int] = None) -> GreedyMemory:
        """See `Method`."""
        return GreedyMemory(self.first_context((1,), newest), state)

    def run(self, scorer: Scorer, lengths: Sequence[int], constraints: BatchConstraints, states: States) -> List[Ran]:
        """See `Method`. After an endpoint no more symbols of its frame are decoded."""
        search = SymbolGreedySearch(scorer, lengths, constraints, self.endpoint)
        search.context = np.concatenate([state.memory.last for state in states])
        search.state = np.array([state.memory.state for state in states])
        search.run()
        done = []
        for i, (written, state) in enumerate(zip(search.written, states)):
            memory = GreedyMemory(search.context[i : i + 1].copy(), int(search.state[i]))
            if written and written[-1][0] == self.endpoint:
                memory = self.start(memory.state, self.endpoint)
            tokens = [Token(token, frame + state.frames, log_prob) for token, frame, log_prob in written]
            done.append(Ran(memory, tokens, int(search.used[i])))
        return done


Tail = Tuple[Token, ...]  # of a hypothesis: the tokens that are not final


class StreamBeam(NamedTuple):
    """The state of beam search for one stream.

    rows: its hypotheses, (1, B) each. tails: the tail of each slot. settled: number of final tokens.
    """

    rows: BeamMemory
    tails: Tuple[Tail, ...]
    settled: int

    @property
    def live(self) -> List[int]:
        """The slots that hold a hypothesis."""
        return np.flatnonzero(self.rows.score[0] > NEG_INF).tolist()


class BeamMethod(Method):
    """Modified beam search."""

    def start(self, state: int, newest: Optional[int] = None, earning: int = 0) -> StreamBeam:
        """See `Method`; ``earning`` is the state of the bonus."""
        rows = BeamMemory.start(self.scorer, 1, self.options.width, None)
        context = self.first_context(rows.context.shape, newest)
        rows = rows._replace(context=context, state=rows.state + state, earning=rows.earning + earning)
        return StreamBeam(rows, ((),) * self.options.width, 0)

    def run(self, scorer: Scorer, lengths: Sequence[int], constraints: BatchConstraints, states: States) -> List[Ran]:
        """See `Method`."""
        memories: List[StreamBeam] = [state.memory for state in states]
        before = BeamMemory.join([memory.rows for memory in memories])
        search = BeamSearch(scorer, lengths, before, constraints)
        trace = search.run()
        tokens, log_probs, origin = trace.follow(before.score, self.scorer.vocab_size)
        ends = self._endpoints(trace, lengths, memories)
        done = []
        for i, (length, memory, end) in enumerate(zip(lengths, memories, ends)):
            first = states[i].frames
            if end is not None:
                # The tail of the most probable hypothesis at the endpoint.
                cut = BeamTrace(*(x[: end + 1, i : i + 1] for x in (trace.index, trace.value, trace.score)))
                best = int(trace.score[end, i].argmax())
                written, values, slots = (
                    x[..., 0, best] for x in cut.follow(memory.rows.score, self.scorer.vocab_size)
                )
                last = self._longer(memory, int(slots), written, values, first)
                state = self._after(int(memory.rows.state[0, slots]), written, search.following)
                anew = self.start(state, last[-1].id, self._anew(memory, int(slots), written))
                done.append(Ran(anew, list(last), end + 1))
                continue
            # Copies: a view of the whole batch would keep the predictor's states of all its streams.
            rows = BeamMemory(*(x[i : i + 1].copy() for x in search.memory))
            tails = [
                self._longer(memory, int(origin[i, k]), tokens[:length, i, k], log_probs[:length, i, k], first)
                if rows.score[0, k] > NEG_INF
                else ()
                for k in range(self.options.width)
            ]
            after = StreamBeam(rows, tuple(tails), memory.settled)
            done.append(self._settle(after, first + length, length))
        return done

    def _endpoints(
        self, trace: BeamTrace, lengths: Sequence[int], memories: Sequence[StreamBeam]
    ) -> List[Optional[int]]:
        """For each stream the first frame after which its most probable hypothesis has an endpoint."""
        found: List[Optional[int]] = [None] * len(lengths)
        if self.endpoint is None:
            return found
        has = np.array([[any(t.id == self.endpoint for t in tail) for tail in memory.tails] for memory in memories])
        for t, (index, score) in enumerate(zip(trace.index, trace.score)):
            parent, token = np.divmod(index, self.scorer.vocab_size)
            has = np.take_along_axis(has, parent, 1) | (token == self.endpoint)
            for i in np.flatnonzero(has[np.arange(len(has)), score.argmax(1)]).tolist():
                if found[i] is None and t < lengths[i]:
                    found[i] = t
        return found

    def _anew(self, memory: StreamBeam, slot: int, tokens: np.ndarray) -> int:
        """Return the bonus's state at the start of the utterance after the tokens (T,) of a slot."""
        if self.bonus is None:
            return 0
        state = int(memory.rows.earning[0, slot])
        for token in tokens[tokens != self.blank_id].tolist():
            state = self.bonus.advance(state, token)
        return self.bonus.anew(state)

    def _longer(
        self, memory: StreamBeam, slot: int, tokens: np.ndarray, log_probs: np.ndarray, first_frame: int
    ) -> Tail:
        """Return the tail of the slot that a hypothesis comes from, plus its tokens (T,) in this chunk's frames."""
        at = np.flatnonzero(tokens != self.blank_id)
        values = log_probs[at].tolist()
        if self.bonus is not None:
            state = int(memory.rows.earning[0, slot])
            for j, token in enumerate(tokens[at].tolist()):
                values[j] -= self.bonus.gain(state, token)
                state = self.bonus.advance(state, token)
        written = zip(tokens[at].tolist(), (at + first_frame).tolist(), values)
        return (*memory.tails[slot], *(Token(i, frame, min(value, 0.0)) for i, frame, value in written))

    def _settle(self, memory: StreamBeam, now: int, used: int) -> Ran:
        """Make tokens final that all hypotheses have in common, or on which they have differed for too long."""
        settled: List[Token] = []
        oldest = now - self.decide_after
        while True:
            live = memory.live
            common = _common([memory.tails[k] for k in live])
            settled.extend(memory.tails[live[0]][:common])
            memory = memory._replace(
                tails=tuple(tail[common:] for tail in memory.tails), settled=memory.settled + common
            )
            due = [(tail[0][:2] if tail and tail[0].frame < oldest else None) for tail in memory.tails]
            if not any(due[k] for k in live):
                return Ran(memory, settled, used)
            dropped = [k for k in live if due[k] != due[self._best(memory)]]
            score = memory.rows.score.copy()
            score[0, dropped] = NEG_INF
            memory = memory._replace(
                rows=memory.rows._replace(score=score),
                tails=tuple(() if k in dropped else tail for k, tail in enumerate(memory.tails)),
            )

    def _best(self, memory: StreamBeam) -> int:
        """Return the slot of the hypothesis that would be the result if nothing followed."""

        def rank(k: int) -> Tuple[float, List[int]]:
            score, tail = float(memory.rows.score[0, k]), memory.tails[k]
            if self.bonus is not None:
                score += self.bonus.at_end(int(memory.rows.earning[0, k]))
            score = self.options.normalised(score, memory.settled + len(tail) + self.context_size)
            return -score, [token.id for token in tail]

        return min(memory.live, key=rank)

    def open(self, memory: StreamBeam) -> List[Token]:
        """See `Method`."""
        return list(memory.tails[self._best(memory)])

    def translate(self, memory: StreamBeam, translation: Callable[[int], int]) -> StreamBeam:
        """See `Method`."""
        state = np.array([[translation(int(s)) for s in memory.rows.state[0]]])
        return memory._replace(rows=memory.rows._replace(state=state))


def _common(tails: Sequence[Tail]) -> int:
    """Return how many first tokens the tails have in common, written at the same frames."""
    count = 0
    for tokens in zip(*tails):
        if any(token[:2] != tokens[0][:2] for token in tokens):
            break
        count += 1
    return count

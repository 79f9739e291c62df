"""Greedy search that is carried on: what was written is final at once.

Modified beam search that is carried on: what all hypotheses have in common is final, and is cut off.

Only what they differ in is kept of each hypothesis. How long that can get, nobody knows: as a rule it is a few words.
Where hypotheses have differed for longer than is wanted, the best of them decides, and those that differ are dropped.
"""

from __future__ import annotations

from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.decoding.beam import NEG_INF, BeamMemory, BeamSearch, BeamTrace
from tokenverse_pp.decoding.greedy import GreedySearch
from tokenverse_pp.decoding.scorer import FusionScorer, Rules, Scorer
from tokenverse_pp.decoding.streaming.events import Ran, Token
from tokenverse_pp.models.transducer import StatelessPredictor


class GreedyMemory(NamedTuple):
    """The tokens written last (context size,), and the state of the rules."""

    last: np.ndarray
    state: int


class GreedyMethod:
    """See `Method`.

    Args:
        endpoint: the token after which the search starts anew, if there is one.
    """

    def __init__(self, endpoint: Optional[int] = None):
        self.endpoint = endpoint

    def start(self, scorer: Scorer, state: int) -> GreedyMemory:
        """See `Method`."""
        return GreedyMemory(np.full(scorer.contexts.size, scorer.blank_id, dtype=np.int64), state)

    def run(
        self,
        scorer: Scorer,
        lengths: Sequence[int],
        rules: Rules,
        memories: Sequence[GreedyMemory],
        first: Sequence[int],
    ) -> List[Ran]:
        """See `Method`."""
        search = GreedySearch(scorer, lengths, rules)
        search.last = np.stack([memory.last for memory in memories])
        search.state = np.array([memory.state for memory in memories])
        search.run()
        starts = rules.start.flatten().tolist()
        done = []
        for i, length in enumerate(lengths):
            memory, used = GreedyMemory(search.last[i], int(search.state[i])), length
            ends = np.flatnonzero(search.tokens[i, :length] == self.endpoint)
            if len(ends):
                memory, used = self.start(scorer, starts[i]), int(ends[0]) + 1
            at = np.flatnonzero(search.tokens[i, :used] != scorer.blank_id)
            columns = (search.tokens[i, at].tolist(), (at + first[i]).tolist(), search.log_probs[i, at].tolist())
            done.append(Ran(memory, [Token(*token) for token in zip(*columns)], used))
        return done

    def open(self, memory: GreedyMemory) -> List[Token]:
        """See `Method`."""
        return []

    def translate(self, memory: GreedyMemory, translation: Callable[[int], int]) -> GreedyMemory:
        """See `Method`."""
        return memory._replace(state=translation(memory.state))


Tail = Tuple[Token, ...]  # of a hypothesis: what is not final


class StreamBeam(NamedTuple):
    """What the search of one stream remembers.

    rows: of its hypotheses, (1, B) each. tails: of each slot. settled: how many tokens have become final.
    """

    rows: BeamMemory
    tails: Tuple[Tail, ...]
    settled: int

    @property
    def live(self) -> List[int]:
        """The slots that hold a hypothesis."""
        return np.flatnonzero(self.rows.score[0] > NEG_INF).tolist()


class BeamMethod:
    """See `Method`.

    Args:
        options: of the search.
        bonus: for hotwords, length and a language model.
        predictor: its context size counts in ``length_norm``.
        decide_after: frames after which the best hypothesis decides what the others do not agree to.
        endpoint: the token after which the search starts anew, if there is one.
    """

    def __init__(
        self,
        options: SearchOptions,
        bonus: Optional[FusionScorer],
        predictor: StatelessPredictor,
        decide_after: float,
        endpoint: Optional[int] = None,
    ):
        self.options, self.bonus = options, bonus
        self.context_size, self.blank_id = predictor.context_size, predictor.blank_id
        self.decide_after, self.endpoint = decide_after, endpoint

    def start(self, scorer: Scorer, state: int) -> StreamBeam:
        """See `Method`."""
        rows = BeamMemory.start(scorer, 1, self.options.width, None)
        return StreamBeam(rows._replace(state=rows.state + state), ((),) * self.options.width, 0)

    def run(
        self, scorer: Scorer, lengths: Sequence[int], rules: Rules, memories: Sequence[StreamBeam], first: Sequence[int]
    ) -> List[Ran]:
        """See `Method`."""
        before = BeamMemory.join([memory.rows for memory in memories])
        search = BeamSearch(scorer, lengths, before, rules)
        trace = search.run()
        tokens, log_probs, origin = trace.follow(before.score, scorer.vocab_size)
        ends = self._endpoints(trace, lengths, memories, scorer.vocab_size)
        starts = rules.start.flatten().tolist()
        done = []
        for i, (length, memory) in enumerate(zip(lengths, memories)):
            end = ends[i]
            if end is not None:
                last = self._at_endpoint(trace, i, end, memory, first[i], scorer.vocab_size)
                done.append(Ran(self.start(scorer, starts[i]), list(last), end + 1))
                continue
            rows = BeamMemory(*(x[i : i + 1] for x in search.memory))
            tails = [
                self._longer(memory, int(origin[i, k]), tokens[:length, i, k], log_probs[:length, i, k], first[i])
                if rows.score[0, k] > NEG_INF
                else ()
                for k in range(self.options.width)
            ]
            after = StreamBeam(rows, tuple(tails), memory.settled)
            done.append(self._settle(after, first[i] + length, length))
        return done

    def _at_endpoint(
        self, trace: BeamTrace, stream: int, frame: int, memory: StreamBeam, first_frame: int, vocab_size: int
    ) -> Tail:
        """The tail of the most probable hypothesis that a stream has after a frame of the trace."""
        cut = BeamTrace(*(x[: frame + 1, stream : stream + 1] for x in (trace.index, trace.value, trace.score)))
        tokens, log_probs, origin = cut.follow(memory.rows.score, vocab_size)
        best = int(trace.score[frame, stream].argmax())
        return self._longer(memory, int(origin[0, best]), tokens[:, 0, best], log_probs[:, 0, best], first_frame)

    def _endpoints(
        self, trace: BeamTrace, lengths: Sequence[int], memories: Sequence[StreamBeam], vocab_size: int
    ) -> List[Optional[int]]:
        """For each stream the first frame after which its most probable hypothesis has an endpoint."""
        found: List[Optional[int]] = [None] * len(lengths)
        if self.endpoint is None:
            return found
        has = np.array([[any(t.id == self.endpoint for t in tail) for tail in memory.tails] for memory in memories])
        for t, (index, score) in enumerate(zip(trace.index, trace.score)):
            parent, token = np.divmod(index, vocab_size)
            has = np.take_along_axis(has, parent, 1) | (token == self.endpoint)
            for i in np.flatnonzero(has[np.arange(len(has)), score.argmax(1)]).tolist():
                if found[i] is None and t < lengths[i]:
                    found[i] = t
        return found

    def _longer(
        self, memory: StreamBeam, slot: int, tokens: np.ndarray, log_probs: np.ndarray, first_frame: int
    ) -> Tail:
        """The tail of a hypothesis that comes from a slot, with what it wrote in this chunk's frames, (T,) each."""
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
        """Cut off what all hypotheses have in common, or have not agreed on for too long."""
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
        """The slot of the hypothesis that would be the result if nothing followed."""

        def rank(k: int) -> Tuple[float, List[int]]:
            score, tail = float(memory.rows.score[0, k]), memory.tails[k]
            if self.bonus is not None:
                state = int(memory.rows.earning[0, k])
                score += self.bonus.at_end(state)
            scale = memory.settled + len(tail) + self.context_size if self.options.length_norm else 1
            return -score / scale, [token.id for token in tail]

        return min(memory.live, key=rank)

    def open(self, memory: StreamBeam) -> List[Token]:
        """See `Method`."""
        return list(memory.tails[self._best(memory)])

    def translate(self, memory: StreamBeam, translation: Callable[[int], int]) -> StreamBeam:
        """See `Method`."""
        state = np.array([[translation(int(s)) for s in memory.rows.state[0]]])
        return memory._replace(rows=memory.rows._replace(state=state))


def _common(tails: Sequence[Tail]) -> int:
    """How many tokens the tails have in common from the start, written at the same frames."""
    count = 0
    for tokens in zip(*tails):
        if any(token[:2] != tokens[0][:2] for token in tokens):
            break
        count += 1
    return count

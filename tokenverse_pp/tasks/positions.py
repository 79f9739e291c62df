"""What the tasks share that write one token between words (speaker change, endpoint)."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Dict, List, Sequence, Tuple

from tokenverse_pp.metrics.f1 import Interval, score_positions, score_times
from tokenverse_pp.tasks.base import ScoredExample, Task
from tokenverse_pp.tasks.transcript import TaskMark

if TYPE_CHECKING:
    from lhotse.cut import Cut

COLLARS = (0.25, 0.5)  # seconds


class PositionTask(Task):
    """A task whose answer is a tuple of positions, each written as one and the same token."""

    token: ClassVar[str]
    rank: ClassVar[int]

    @property
    def symbols(self) -> Tuple[str, ...]:
        """The one token of the task."""
        return (self.token,)

    @property
    def ranks(self) -> Dict[str, int]:
        """The one rank of the one token."""
        return {self.token: self.rank}

    @abstractmethod
    def stands_at(self, position: int, num_words: int) -> bool:
        """Whether the token may stand at a position."""

    @abstractmethod
    def intervals(self, cut: Cut) -> List[Interval]:
        """For each event of the cut the (start, end) in seconds within which its token is right."""

    def to_marks(self, answer: Sequence[int], num_words: int) -> List[Tuple[int, int, str]]:
        """One token a position."""
        return [(position, self.rank, self.token) for position in answer]

    def kept(self, marks: Sequence[TaskMark], num_words: int) -> List[TaskMark]:
        """The marks that count: the first at each position, none where the token cannot stand."""
        first: Dict[int, TaskMark] = {}
        for mark in marks:
            if self.stands_at(mark.position, num_words):
                first.setdefault(mark.position, mark)
        return [first[position] for position in sorted(first)]

    def from_marks(self, marks: Sequence[TaskMark], num_words: int) -> Tuple[int, ...]:
        """Positions of the marks that `kept` keeps."""
        return tuple(mark.position for mark in self.kept(marks, num_words))

    def score(self, examples: Sequence[ScoredExample]) -> Dict[str, Any]:
        """Precision, recall, F1 by position in the aligned words (``text``) and by time (``time.<collar>``).

        By time only where every hypothesised token has one: to leave out the examples that lack times would
        count what was missed, but not what was found.
        """
        positions = [
            (e.ref.words, e.ref.answers[self.name], e.hyp.words, e.hyp.answers.get(self.name, ())) for e in examples
        ]
        scores: Dict[str, Any] = {"text": score_positions(positions)}
        if all(e.cut is not None and all(mark.time is not None for mark in e.hyp_marks) for e in examples):
            pairs = [(self.intervals(e.cut), self._times(e)) for e in examples if e.cut is not None]
            scores["time"] = {f"{collar:g}": score_times(pairs, collar) for collar in COLLARS}
        return scores

    def _times(self, example: ScoredExample) -> List[float]:
        marks = self.kept([m for m in example.hyp_marks if self.owns(m.token)], len(example.hyp.words))
        return [mark.time for mark in marks if mark.time is not None]

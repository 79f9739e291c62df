"""The task interface: tokens, their order in the text, labels, how answers are read back, and scores.

`Task` is the base class of every task, `PositionTask` that of tasks that write one token between words (speaker
change, endpoint), `TaskSet` an ordered set of tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.metrics.f1 import Interval, score_positions, score_times
from tokenverse_pp.tasks.result import TranscriptReader, seconds, span_record
from tokenverse_pp.tasks.transcript import Answers, Mark, MarkReader, Word, read_positions, valid_marks

if TYPE_CHECKING:
    from lhotse.cut import Cut

__all__ = ["PositionTask", "ScoredExample", "Task", "TaskSet", "seconds", "span_record"]

T = TypeVar("T", bound="Task")

# The order of task tokens at one position (DESIGN 3.2): language, closing tokens, punctuation, endpoint, speaker
# change, opening tokens of the next word.
RANK_FRONT, RANK_CLOSE, RANK_MARK, RANK_END, RANK_CHANGE, RANK_OPEN = range(6)


@dataclass(frozen=True)
class ScoredExample:
    """A reference and a hypothesis, for `Task.score`.

    ``cut`` is the reference cut (for times), ``hyp_marks`` the task tokens of the hypothesis with their
    times, ``languages`` the codes that are counted separately even if they are regions of one language.
    """

    id: str
    ref: Answers
    hyp: Answers
    cut: Optional[Cut] = None
    hyp_marks: Sequence[Mark] = field(default_factory=tuple)
    languages: Sequence[str] = ()


class Task(ABC):
    """One task. A new task is one file with one subclass (docs/new_task.md), in this package or outside of it."""

    name: ClassVar[str]
    # Keys of supervision.custom that contain only this task's labels; they are removed when the task is dropped.
    own_fields: ClassVar[Tuple[str, ...]] = ()

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Task:
        """Build the task from its options in the configuration (none by default)."""
        return cls(**options)

    @classmethod
    def options_for(cls, tokens: Sequence[str]) -> Dict[str, Any]:
        """Return the options with which the task owns its tokens among ``tokens``, to read text without the model.

        Empty by default. A task whose tokens depend on its options, and whose tokens can be recognised by their form
        (``[NE:PER]``), overrides this method.
        """
        return {}

    @property
    @abstractmethod
    def symbols(self) -> Tuple[str, ...]:
        """The task's tokens, as in the vocabulary."""

    @property
    def ranks(self) -> Dict[str, int]:
        """The rank of each symbol, by which the search allows it only at valid positions.

        ``RANK_FRONT``: before all words, once; ``RANK_OPEN`` .. ``RANK_CLOSE``: around words; the others: after a
        word. A symbol without a rank may stand anywhere.
        """
        return {}

    def owns(self, token: str) -> bool:
        """True when ``token`` is one of this task's tokens."""
        return token in self.symbols

    def options(self) -> Dict[str, Any]:
        """Return the options from which `from_options` builds this task again."""
        return {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and type(self) is type(other) and self.options() == other.options()

    def __hash__(self) -> int:
        return hash(self.name)

    @abstractmethod
    def check(self, cut: Cut) -> List[str]:
        """Return the problems of this task's labels on a cut: one line per problem, with the field."""

    @abstractmethod
    def from_cut(self, cut: Cut) -> Any:
        """Return the answer in a cut's labels (positions count the words of all its turns in time order)."""

    @abstractmethod
    def to_marks(self, answer: Any, num_words: int) -> List[Tuple[int, int, str]]:
        """Return the answer as task tokens: (position, rank, token)."""

    @abstractmethod
    def from_marks(self, marks: Sequence[Mark], num_words: int) -> Any:
        """Read the answer from its marks. Never raises: each task documents its rule for malformed output."""

    @property
    def reader(self) -> MarkReader:
        """`from_marks` as a function; each `TaskSet` gets it once."""
        return self.from_marks

    def project(self, answer: Any) -> Any:
        """The part of an answer that this task can write (an untyped NER task drops the types)."""
        return answer

    def widened(self: T, answers: Sequence[Any]) -> T:
        """Return the task that can also write these reference answers: what the model cannot write is a miss."""
        return self

    def record(self, transcript: Answers, words: Sequence[Word], marks: Sequence[Mark]) -> Dict[str, Any]:
        """Return the fields of an external task in a line of hyps.jsonl: by default its tokens with their times.

        ``transcript``: has the task's answer, and ``words`` without times. ``marks``: the task's own tokens.
        """
        return {self.name: [{"token": mark.token, "time": seconds(mark.time)} for mark in marks]}

    @abstractmethod
    def score(self, examples: Sequence[ScoredExample]) -> Dict[str, Any]:
        """Scores over examples labelled for this task, as fractions 0..1 in nested dictionaries."""


@dataclass(frozen=True)
class TaskSet:
    """An ordered set of tasks, always with ``asr``: the tasks of a model, or the active ones."""

    tasks: Tuple[Task, ...]

    def __post_init__(self) -> None:
        if "asr" not in self.names:
            raise ValueError("a TaskSet always holds the task 'asr'")

    @property
    def names(self) -> Tuple[str, ...]:
        """Task names in registry order."""
        return tuple(task.name for task in self.tasks)

    @property
    def symbols(self) -> Tuple[str, ...]:
        """All task tokens, in the order of the tasks."""
        return tuple(symbol for task in self.tasks for symbol in task.symbols)

    @property
    def languages(self) -> Tuple[str, ...]:
        """Codes of the languages that the tasks write; none without ``lid``."""
        return tuple(self["lid"].options().get("languages", ())) if "lid" in self else ()

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Task:
        return self.tasks[self.names.index(name)]

    def subset(self, names: Sequence[str]) -> TaskSet:
        """The tasks of this set that are in ``names``, and ``asr``."""
        return TaskSet(tuple(task for task in self.tasks if task.name == "asr" or task.name in names))

    def chosen(self, names: Sequence[str], where: str = "") -> TaskSet:
        """`subset` (raises UserError, beginning with ``where``, for a name that is not in this set)."""
        for name in names:
            if name not in self:
                raise UserError(f"{where}task {name!r}: this model knows {', '.join(self.names)}")
        return self.subset(names)

    def mask(self, active: Sequence[str]) -> List[bool]:
        """Return for each task of this set whether it is active (``asr`` always is)."""
        return [name == "asr" or name in active for name in self.names]

    def render(self, transcript: Answers) -> str:
        """Return a transcript as text, with the tokens of those tasks for which it has answers."""
        marks = [
            mark
            for task in self.tasks
            if task.name in transcript.answers
            for mark in task.to_marks(transcript.answers[task.name], len(transcript.words))
        ]
        # Position first, then rank; the sort is stable, so that a task's own order is kept.
        marks.sort(key=lambda mark: mark[:2])
        pieces: List[str] = []
        done = 0
        for position, _, token in marks:
            pieces.extend(transcript.words[done:position])
            pieces.append(token)
            done = position
        pieces.extend(transcript.words[done:])
        return " ".join(pieces)

    @cached_property
    def reader(self) -> TranscriptReader:
        """Reads transcripts with the tokens of these tasks."""
        return TranscriptReader(self)

    def read(self, words: Sequence[str], marks: Sequence[Mark]) -> Answers:
        """Return an answer for each task of this set, and only these, read from words and task tokens."""
        return self.reader.answers(words, marks)

    def restrict(self, transcript: Answers) -> Answers:
        """Return the part of a transcript that these tasks can write: `parse` of `render` gives exactly this."""
        answers = {
            task.name: task.project(transcript.answers[task.name])
            for task in self.tasks
            if task.name in transcript.answers
        }
        return Answers(transcript.words, answers)


COLLARS = (0.25, 0.5)  # seconds


class PositionTask(Task):
    """A task whose answer is a tuple of positions, each written as the same token."""

    token: ClassVar[str]
    rank: ClassVar[int]

    @property
    def symbols(self) -> Tuple[str, ...]:
        """The one token of the task."""
        return (self.token,)

    @property
    def ranks(self) -> Dict[str, int]:
        """The rank of the token."""
        return {self.token: self.rank}

    @abstractmethod
    def stands_at(self, position: int, num_words: int) -> bool:
        """Whether the token is valid at a position."""

    @abstractmethod
    def intervals(self, cut: Cut) -> List[Interval]:
        """The (start, end) in seconds of each event of the cut; a token within that interval is correct."""

    def to_marks(self, answer: Sequence[int], num_words: int) -> List[Tuple[int, int, str]]:
        """One token per position."""
        return [(position, self.rank, self.token) for position in answer]

    @property
    def reader(self) -> MarkReader:
        """Positions of the valid marks: the first at each position where the token may stand."""
        return partial(read_positions, is_valid=self.stands_at)

    def from_marks(self, marks: Sequence[Mark], num_words: int) -> Tuple[int, ...]:
        """See `reader`."""
        return self.reader(marks, num_words)

    def score(self, examples: Sequence[ScoredExample]) -> Dict[str, Any]:
        """Precision, recall, F1 by position in the aligned words (``text``) and by time (``time.<collar>``).

        Scores by time need a time for every hypothesised token: leaving out examples without times would count
        misses but no hits.
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
        marks = [mark for mark in example.hyp_marks if self.owns(mark.text)]
        return [mark.time for mark in valid_marks(marks, len(example.hyp.words), self.stands_at)]

"""Structured transcripts (`Answers`): the words and the answer of each task; and the turns of a cut.

A *position* p in a transcript of n words is the gap before word p (0 <= p <= n). Only this module orders the
supervisions of a cut and counts their words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

from tokenverse_pp.base.errors import UserError

if TYPE_CHECKING:
    from lhotse.cut import Cut


@dataclass(frozen=True)
class TimedWord:
    """A word or task token: seconds from the start of the audio, and a confidence in [0, 1]."""

    text: str
    start: float
    end: float
    confidence: float

    @property
    def is_task_token(self) -> bool:
        """Whether the word is a task token such as ``[SCD]``."""
        return is_task_token(self.text)


@dataclass(frozen=True)
class EntitySpan:
    """A named entity: words ``start`` (inclusive) to ``end`` (exclusive), and its type where one is known."""

    start: int
    end: int
    type: Optional[str] = None


@dataclass(frozen=True)
class TaskMark:
    """One task token between words: its position, and its time in seconds where a decoder gave one."""

    position: int
    token: str
    time: Optional[float] = None


@dataclass(frozen=True)
class Answers:
    """Words and the answers of tasks.

    ``answers`` maps a task's name to its answer. A task that is *not* a key was not labelled (or not
    decoded); an empty answer means that the task was labelled and found nothing. The two are never the same.
    """

    words: Tuple[str, ...] = ()
    answers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The plain words, without any task token."""
        return " ".join(self.words)

    @property
    def language(self) -> Optional[str]:
        """The language code (``lid``), or None."""
        return self.answers.get("lid")

    @property
    def speaker_changes(self) -> Tuple[int, ...]:
        """Positions at which the speaker changes (``scd``)."""
        return self.answers.get("scd", ())

    @property
    def endpoints(self) -> Tuple[int, ...]:
        """Positions of semantic endpoints (``endp``)."""
        return self.answers.get("endp", ())

    @property
    def entities(self) -> Tuple[EntitySpan, ...]:
        """Named entities (``ner``) in order."""
        return self.answers.get("ner", ())

    @property
    def turns(self) -> List[Tuple[int, int]]:
        """Word ranges (start, end) between speaker changes."""
        bounds = [0, *self.speaker_changes, len(self.words)]
        return [(a, b) for a, b in zip(bounds, bounds[1:]) if b > a]

    def phrase(self, entity: EntitySpan) -> str:
        """The words of an entity."""
        return " ".join(self.words[entity.start : entity.end])


def is_task_token(word: str) -> bool:
    """True for anything in square brackets: plain words hold none (the label validator sees to it)."""
    return len(word) > 2 and word[0] == "[" and word[-1] == "]"


def split_marks(
    words: Sequence[str], times: Optional[Sequence[float]] = None
) -> Tuple[Tuple[str, ...], List[TaskMark]]:
    """Separate the plain words from the task tokens between them.

    >>> split_marks(["[FR]", "bonjour", "[ENDP]"])
    (('bonjour',), [Mark(position=0, token='[FR]', time=None), Mark(position=1, token='[ENDP]', time=None)])
    """
    plain: List[str] = []
    marks: List[TaskMark] = []
    for i, word in enumerate(words):
        if is_task_token(word):
            marks.append(TaskMark(len(plain), word, None if times is None else times[i]))
        else:
            plain.append(word)
    return tuple(plain), marks


def pieces_to_words(
    pieces: Sequence[str], times: Optional[Sequence[float]] = None
) -> Tuple[List[str], Optional[List[float]]]:
    """Join SentencePiece pieces to words; a word's time is that of its first piece.

    Task tokens are words of their own, and end the word before them. The space sign ``▁`` starts a word.

    >>> pieces_to_words(["[FR]", "▁bon", "jour", "[ENDP]"], [0.0, 0.1, 0.3, 0.5])
    (['[FR]', 'bonjour', '[ENDP]'], [0.0, 0.1, 0.5])
    """
    words: List[str] = []
    starts: List[float] = []
    open_word = False
    for i, piece in enumerate(pieces):
        if is_task_token(piece):
            begins, open_word, surface = True, False, piece
        else:
            begins, open_word, surface = piece.startswith("▁") or not open_word, True, piece.replace("▁", "")
        if begins:
            words.append(surface)
            starts.append(0.0 if times is None else times[i])
        else:
            words[-1] += surface
    kept = [i for i, word in enumerate(words) if word]
    return [words[i] for i in kept], None if times is None else [starts[i] for i in kept]


def group_marks(marks: Sequence[TaskMark]) -> Dict[int, List[TaskMark]]:
    """Marks by position, in their order."""
    grouped: Dict[int, List[TaskMark]] = {}
    for mark in marks:
        grouped.setdefault(mark.position, []).append(mark)
    return grouped


@dataclass  # not frozen: creation would take three times as long, once per turn of a million cuts
class LabelledTurn:
    """A supervision: words ``first_word`` to ``first_word + len(words)`` of its cut; times in seconds."""

    index: int
    text: str
    first_word: int
    start: float
    end: float
    speaker: Optional[str]
    language: Optional[str]
    custom: Mapping[str, Any]

    @cached_property
    def words(self) -> List[str]:
        """The plain words of the turn."""
        return self.text.split()

    @property
    def end_word(self) -> int:
        """One past the turn's last word, counted over the cut."""
        return self.first_word + len(self.words)


class FixedTurns:
    """Stands in for a cut whose labels do not change: its turns are computed once for all tasks."""

    turns: Optional[List[LabelledTurn]] = None


class CutWithTurns(FixedTurns):
    """A cut, with its turns computed once."""

    def __init__(self, cut: Cut):
        self.cut = cut

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cut, name)


def turns_of(cut: Cut) -> List[LabelledTurn]:
    """The supervisions of a cut in time order.

    Raises:
        UserError: for a text that is none (nobody has validated the cut).
    """
    if not isinstance(cut, FixedTurns):
        return _find_turns(cut)
    if cut.turns is None:
        cut.turns = _find_turns(cut)
    return cut.turns


def _find_turns(cut: Cut) -> List[LabelledTurn]:
    turns: List[LabelledTurn] = []
    first_word = 0
    for i, sup in enumerate(sorted(cut.supervisions, key=lambda s: (s.start, s.end))):
        text = sup.text or ""
        if not isinstance(text, str):
            raise UserError(f"cut {cut.id}: supervision {i}, field 'text': expected a string, found {text!r}")
        turn = LabelledTurn(
            i,
            text,
            first_word,
            sup.start,
            sup.end,
            sup.speaker,
            sup.language,
            getattr(sup, "custom", None) or {},
        )
        turns.append(turn)
        first_word = turn.end_word
    return turns


Entity, Mark, Transcript = EntitySpan, TaskMark, Answers  # their names in the last release

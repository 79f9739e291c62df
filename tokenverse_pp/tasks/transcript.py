"""Words and task tokens (marks), and the answers of tasks that are read from them or from a cut's labels.

A *position* p in a transcript of n words is the gap before word p (0 <= p <= n). Only this module orders the
supervisions of a cut and counts their words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, cast

from tokenverse_pp.base.errors import UserError

if TYPE_CHECKING:
    from lhotse.cut import Cut

    from tokenverse_pp.tasks.base import TaskSet

SPACE_SIGN = "▁"  # of SentencePiece: starts a word
UNKNOWN: Any = None  # time or confidence in a text without times
SECONDS_DIGITS, CONFIDENCE_DIGITS = 3, 6  # in hyps.jsonl; most words of a good model are between 0.999 and 1


def is_task_token(word: str) -> bool:
    """True for anything in square brackets; plain words have no brackets (the label validator checks this)."""
    return len(word) > 2 and word[0] == "[" and word[-1] == "]"


@dataclass(frozen=True)
class Word:
    """A word or task token: seconds from the start of the audio, and a confidence in [0, 1].

    ``raw_confidence`` is the confidence before calibration, None if the model has no calibration.
    """

    text: str
    start: float
    end: float
    confidence: float
    raw_confidence: Optional[float] = field(default=None, compare=False, repr=False)

    @property
    def is_task_token(self) -> bool:
        """Whether the word is a task token such as ``[SCD]``."""
        return is_task_token(self.text)

    def to_dict(self, raw: bool = False) -> Dict[str, Any]:
        """Return the fields for JSON; ``raw``: also the raw confidence, if any."""
        found = {"text": self.text, "start": self.start, "end": self.end, "confidence": self.confidence}
        return {**found, "raw_confidence": self.raw_confidence} if raw and self.raw_confidence is not None else found

    def rounded(self) -> Word:
        """The word with times and confidences rounded as in hyps.jsonl."""
        raw = None if self.raw_confidence is None else round(self.raw_confidence, CONFIDENCE_DIGITS)
        start, end = round(self.start, SECONDS_DIGITS), round(self.end, SECONDS_DIGITS)
        return Word(self.text, start, end, round(self.confidence, CONFIDENCE_DIGITS), raw)

    def within(self, duration: float) -> Word:
        """Return the word with times limited to ``duration``."""
        start = min(self.start, duration)
        return Word(self.text, start, max(start, min(self.end, duration)), self.confidence, self.raw_confidence)


@dataclass(frozen=True)
class Mark:
    """A task token such as ``[SCD]``; ``position`` is the number of words before it.

    Marks of plain text have no time and no confidence (None).
    """

    text: str
    position: int
    time: float = UNKNOWN
    confidence: float = UNKNOWN

    @property
    def token(self) -> str:
        """The same as ``text``."""
        return self.text


@dataclass(frozen=True)
class EntitySpan:
    """A named entity: words ``start`` (inclusive) to ``end`` (exclusive), and its type if known."""

    start: int
    end: int
    type: Optional[str] = None


@dataclass(frozen=True)
class Answers:
    """Plain words and the answers of tasks as word positions, from labels or from text with task tokens.

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


def word_spans(pieces: Sequence[str]) -> List[Tuple[str, int, int]]:
    """Join SentencePiece pieces to words; return (text, first piece, one past the last piece) of each word.

    Each task token is a word and ends the word before it. The space sign ``▁`` starts a word; on its own it belongs to
    the word before it.

    >>> word_spans(["[FR]", "▁bon", "jour", "[ENDP]"])
    [('[FR]', 0, 1), ('bonjour', 1, 3), ('[ENDP]', 3, 4)]
    """
    texts: List[str] = []
    firsts: List[int] = []
    is_open = False
    for i, piece in enumerate(pieces):
        is_mark = is_task_token(piece)
        text = piece if is_mark else piece.replace(SPACE_SIGN, "")
        if is_mark or not is_open or piece.startswith(SPACE_SIGN):
            texts.append(text)
            firsts.append(i)
        else:
            texts[-1] += text
        is_open = not is_mark
    kept = [(text, first) for text, first in zip(texts, firsts) if text]
    ends = [first for _, first in kept[1:]] + [len(pieces)]
    return [(text, first, end) for (text, first), end in zip(kept, ends)]


def character_spans(text: str) -> List[Tuple[int, int]]:
    """First and last (exclusive) character of every word of a text.

    >>> character_spans("oui  merci")
    [(0, 3), (5, 10)]
    """
    spans, at = [], 0
    for word in text.split():
        start = text.index(word, at)
        at = start + len(word)
        spans.append((start, at))
    return spans


def split_marks(words: Sequence[str], times: Optional[Sequence[float]] = None) -> Tuple[Tuple[str, ...], List[Mark]]:
    """Separate the plain words from the task tokens between them.

    >>> split_marks(["[FR]", "bonjour"])
    (('bonjour',), [Mark(text='[FR]', position=0, time=None, confidence=None)])
    """
    plain: List[str] = []
    marks: List[Mark] = []
    for i, word in enumerate(words):
        if is_task_token(word):
            marks.append(Mark(word, len(plain), UNKNOWN if times is None else times[i]))
        else:
            plain.append(word)
    return tuple(plain), marks


# Read the answer of a task from marks. Malformed output is not an error: each function documents what it drops.
MarkReader = Callable[[Sequence[Mark], int], Any]  # the marks of one task, number of words -> answer
Valid = Callable[[int, int], bool]  # position, number of words -> whether a token may stand there


def between_words(position: int, num_words: int) -> bool:
    """True if the position is between two words."""
    return 0 < position < num_words


def after_a_word(position: int, num_words: int) -> bool:
    """True if the position is after a word."""
    return 0 < position <= num_words


def valid_marks(marks: Sequence[Mark], num_words: int, is_valid: Valid) -> List[Mark]:
    """The first mark at each valid position."""
    first: Dict[int, Mark] = {}
    for mark in marks:
        if is_valid(mark.position, num_words):
            first.setdefault(mark.position, mark)
    return [first[position] for position in sorted(first)]


def read_positions(marks: Sequence[Mark], num_words: int, is_valid: Valid) -> Tuple[int, ...]:
    """Positions of the valid marks."""
    return tuple(mark.position for mark in valid_marks(marks, num_words, is_valid))


def read_first(marks: Sequence[Mark], num_words: int, meanings: Mapping[str, str]) -> Optional[str]:
    """The meaning of the first token, wherever it stands; None without a token."""
    return meanings[marks[0].text] if marks else None


def read_spans(marks: Sequence[Mark], num_words: int, types: Mapping[str, Optional[str]]) -> Tuple[EntitySpan, ...]:
    """Read pairs of an opening token (a key of ``types``) and a closing one.

    Drops a closing token without an opening one, an opening one not closed before the next or the end, and empty spans.
    """
    found: List[EntitySpan] = []
    opened: Optional[Mark] = None
    for mark in marks:
        if mark.text in types:
            opened = mark
        elif opened is not None:
            if mark.position > opened.position:
                found.append(EntitySpan(opened.position, mark.position, types[opened.text]))
            opened = None
    return tuple(found)


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
    """The supervisions of a cut in time order (raises UserError if a text is not a string: it was not validated)."""
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


def transcript_of(cut: Cut, tasks: TaskSet) -> Answers:
    """The transcript of a labelled cut: answers for those of ``tasks`` that the cut is labelled for.

    Raises:
        UserError: if the labels cannot be read (they were not validated).
    """
    if not isinstance(cut, FixedTurns):
        cut = cast("Cut", CutWithTurns(cut))
    try:
        labelled = (cut.custom or {}).get("tasks", ())
        words = tuple(word for turn in turns_of(cut) for word in turn.words)
        answers = {t.name: t.from_cut(cut) for t in tasks.tasks if t.name != "asr" and t.name in labelled}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        kind = type(error).__name__
        message = (
            f"cut {cut.id}: labels that cannot be read ({kind}: {error}); `tokenverse-pp manifest validate` tells more"
        )
        raise UserError(message) from error
    return Answers(words, answers)

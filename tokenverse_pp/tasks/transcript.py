"""A structured transcript: the words, and for each task its answer.

A *position* p in a transcript of n words is the gap before word p (0 <= p <= n).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple


@dataclass(frozen=True)
class Entity:
    """A named entity: words ``start`` (inclusive) to ``end`` (exclusive), and its type where one is known."""

    start: int
    end: int
    type: Optional[str] = None


@dataclass(frozen=True)
class Mark:
    """One task token between words: its position, and its time in seconds where a decoder gave one."""

    position: int
    token: str
    time: Optional[float] = None


@dataclass(frozen=True)
class Transcript:
    """Words with the answers of tasks.

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
        """Positions at which a semantic endpoint stands (``endp``)."""
        return self.answers.get("endp", ())

    @property
    def entities(self) -> Tuple[Entity, ...]:
        """Named entities (``ner``) in order."""
        return self.answers.get("ner", ())

    @property
    def turns(self) -> List[Tuple[int, int]]:
        """Word ranges (start, end) between speaker changes."""
        bounds = [0, *self.speaker_changes, len(self.words)]
        return [(a, b) for a, b in zip(bounds, bounds[1:]) if b > a]

    def phrase(self, entity: Entity) -> str:
        """The words of an entity."""
        return " ".join(self.words[entity.start : entity.end])


def is_task_token(word: str) -> bool:
    """True for anything in square brackets: plain words hold none (the label validator sees to it)."""
    return len(word) > 2 and word[0] == "[" and word[-1] == "]"


def split_marks(words: Sequence[str], times: Optional[Sequence[float]] = None) -> Tuple[Tuple[str, ...], List[Mark]]:
    """Separate the plain words from the task tokens between them.

    >>> split_marks(["[FR]", "bonjour", "[ENDP]"])
    (('bonjour',), [Mark(position=0, token='[FR]', time=None), Mark(position=1, token='[ENDP]', time=None)])
    """
    plain: List[str] = []
    marks: List[Mark] = []
    for i, word in enumerate(words):
        if is_task_token(word):
            marks.append(Mark(len(plain), word, None if times is None else times[i]))
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


def group_marks(marks: Sequence[Mark]) -> Dict[int, List[Mark]]:
    """Marks by position, in their order."""
    grouped: Dict[int, List[Mark]] = {}
    for mark in marks:
        grouped.setdefault(mark.position, []).append(mark)
    return grouped

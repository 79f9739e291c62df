"""How the turns of a cut lie in its words: the one place that orders supervisions and counts their words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, List, Mapping, Optional

from tokenverse_pp.errors import UserError

if TYPE_CHECKING:
    from lhotse.cut import Cut


@dataclass  # not frozen: that takes three times as long to make, and there is one a turn of a million cuts
class Turn:
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
    """What stands in for a cut whose labels do not change: its turns are found once (every task asks for them)."""

    turns: Optional[List[Turn]] = None


def turns_of(cut: Cut) -> List[Turn]:
    """The supervisions of a cut in time order.

    Raises:
        UserError: for a text that is none (nobody has validated the cut).
    """
    if not isinstance(cut, FixedTurns):
        return _find_turns(cut)
    if cut.turns is None:
        cut.turns = _find_turns(cut)
    return cut.turns


def _find_turns(cut: Cut) -> List[Turn]:
    turns: List[Turn] = []
    first_word = 0
    for i, sup in enumerate(sorted(cut.supervisions, key=lambda s: (s.start, s.end))):
        text = sup.text or ""
        if not isinstance(text, str):
            raise UserError(f"cut {cut.id}: supervision {i}, field 'text': expected a string, found {text!r}")
        turn = Turn(
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

"""Speaker change detection: ``[SCD]`` between turns of different speakers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, List, Tuple

from tokenverse_pp.metrics.f1 import Interval
from tokenverse_pp.tasks.base import RANK_CHANGE, PositionTask
from tokenverse_pp.tasks.transcript import LabelledTurn, between_words, turns_of

if TYPE_CHECKING:
    from lhotse.cut import Cut


class SpeakerChange(PositionTask):
    """Answer: positions p with 0 < p < n at which the next word has another speaker.

    Labelled by ``supervision.speaker``. Parsing drops a token before the first or after the last word, which separates
    no turns, and merges several at one position.
    """

    name: ClassVar[str] = "scd"
    token: ClassVar[str] = "[SCD]"
    rank: ClassVar[int] = RANK_CHANGE
    stands_at = staticmethod(between_words)

    def check(self, cut: Cut) -> List[str]:
        """Check that every turn has a speaker."""
        return [
            f"supervision {turn.index}, field 'speaker': expected a name because the cut is labelled for scd"
            for turn in turns_of(cut)
            if not turn.speaker
        ]

    def from_cut(self, cut: Cut) -> Tuple[int, ...]:
        """Changes of ``supervision.speaker`` between neighbouring turns that have words."""
        return tuple(b.first_word for a, b in _changes(cut))

    def intervals(self, cut: Cut) -> List[Interval]:
        """Return intervals from the end of a turn to the start of the next (their overlap, if they overlap)."""
        return [(min(a.end, b.start), max(a.end, b.start)) for a, b in _changes(cut)]


def _changes(cut: Cut) -> List[Tuple[LabelledTurn, LabelledTurn]]:
    turns = [turn for turn in turns_of(cut) if turn.words]
    return [(a, b) for a, b in zip(turns, turns[1:]) if a.speaker != b.speaker]

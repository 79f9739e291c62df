"""Semantic endpointing: ``[ENDP]`` where the speaker has completed an utterance."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, List, Tuple

from tokenverse_pp.metrics.f1 import Interval
from tokenverse_pp.tasks.base import RANK_END, PositionTask
from tokenverse_pp.tasks.transcript import LabelledTurn, after_a_word, turns_of

if TYPE_CHECKING:
    from lhotse.cut import Cut


class Endpoint(PositionTask):
    """Answer: positions 0 < p <= n after the last word of a turn that is complete.

    Labelled by ``supervision.custom["endpoint"]`` (bool). Parsing drops a token before the first word and merges
    several at one position.
    """

    name: ClassVar[str] = "endp"
    own_fields: ClassVar[Tuple[str, ...]] = ("endpoint",)
    token: ClassVar[str] = "[ENDP]"
    rank: ClassVar[int] = RANK_END
    stands_at = staticmethod(after_a_word)

    def check(self, cut: Cut) -> List[str]:
        """Check that every turn is labelled with whether it ends in an endpoint."""
        return [
            f"supervision {turn.index}, field 'custom.endpoint': expected true or false because the cut is "
            f"labelled for endp, found {turn.custom.get('endpoint')!r}"
            for turn in turns_of(cut)
            if not isinstance(turn.custom.get("endpoint"), bool)
        ]

    def from_cut(self, cut: Cut) -> Tuple[int, ...]:
        """Positions after the last word of each turn with ``custom["endpoint"]``."""
        return tuple(turn.end_word for turn in _complete(cut))

    def intervals(self, cut: Cut) -> List[Interval]:
        """Intervals from the turn's end to the next turn's start (or to the cut's end after the last turn)."""
        turns = turns_of(cut)
        starts = [turn.start for turn in turns[1:]] + [cut.duration]
        following = {turn.index: start for turn, start in zip(turns, starts)}
        return [(turn.end, max(turn.end, following[turn.index])) for turn in _complete(cut)]


def _complete(cut: Cut) -> List[LabelledTurn]:
    return [turn for turn in turns_of(cut) if turn.words and turn.custom.get("endpoint") is True]

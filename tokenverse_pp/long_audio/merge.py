"""Hypotheses of overlapping windows -> one hypothesis.

Near its edges a window hears half a word, or lacks context: what two windows say is most to be trusted in the middle of
their overlap. So the left one is followed up to a seam near the middle, and the right one from there on. The seam is,
in this order,

1. a word that both have (in the best common subsequence; at most half a second apart), outside of entities in both, in
   the middle half of the overlap: the nearest to its centre;
2. a pause there, in which neither writes anything for 0.2 s before and after: the widest;
3. a word as in 1 that is outside of entities in the left window only (the right one began with an ``[NE]`` that it
   never closed); one that is outside in both, anywhere in the overlap; one that is inside in both;
4. the widest pause in the middle half, whatever it cuts.

Task tokens between the seam's word and the one before it are those of the left window, so no ``[SCD]`` or ``[ENDP]``
is doubled; an entity that the right window hears only the end of is whole in the left one, and the other way round.
What the rules of the search bar all the same (after 4: an ``[/NE]`` without its ``[NE]``, say) is left out. The
language is that of the first window with words, and its token stays in front; later ones are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Collection, List, Optional, Sequence, Tuple

from tokenverse_pp.long_audio.units import Unit, matches, units_of
from tokenverse_pp.search.automaton import NEG_INF, Constraints
from tokenverse_pp.search.hypothesis import Hypothesis
from tokenverse_pp.tasks.base import RANK_CLOSE, RANK_FRONT, RANK_OPEN, TaskSet

TOLERANCE = 0.5  # seconds between the starts of a word in two windows
PAUSE = 0.2  # seconds without a token before and after a seam


@dataclass(frozen=True)
class Window:
    """What was found in frames ``start`` .. ``end`` of a recording; the hypothesis's frames count from ``start``."""

    start: int
    end: int
    hypothesis: Hypothesis


@dataclass
class Merger:
    """Takes the windows of a recording in order.

    Args:
        pieces: of the whole vocabulary.
        tasks: those that are decoded.
        frame_shift: seconds an encoder output frame.
        constraints: the rules of the search.
    """

    pieces: Sequence[str]
    tasks: TaskSet
    frame_shift: float
    constraints: Constraints
    units: List[Unit] = field(default_factory=list)
    end: int = 0
    language: List[Unit] = field(default_factory=list)  # of a first window without words

    def __post_init__(self) -> None:
        self.front, self.opening, self.closing = (self._ids(rank) for rank in (RANK_FRONT, RANK_OPEN, RANK_CLOSE))

    def _ids(self, rank: int) -> Collection[int]:
        symbols = {s for task in self.tasks.tasks for s, r in task.ranks.items() if r == rank}
        return {i for i, piece in enumerate(self.pieces) if piece in symbols}

    def add(self, window: Window) -> None:
        """Join the next window to what is there."""
        units = units_of(window.hypothesis, self.pieces, window.start)
        if not self.units and not any(unit.is_word for unit in units):
            self.language = self.language or [unit for unit in units if unit.tokens[0] in self.front]
            units = []
        if self.units:
            units = [unit for unit in units if unit.tokens[0] not in self.front]
            i, j = self._seam(units, window.start)
            units = self.units[:i] + _later(units[j:], self.units[i - 1].frames[-1] if i else 0)
        self.units = units
        self.end = window.end

    def _seam(self, right: Sequence[Unit], start: int) -> Tuple[int, int]:
        """How many units to take of what is there, and which unit of the next window comes after them."""
        overlap = _Overlap(self.units, right, start, max(start, self.end))
        pairs = overlap.words(round(TOLERANCE / self.frame_shift))
        open_left, open_right = self._open(self.units), self._open(right)
        closed = [pair for pair in pairs if not open_left[pair[0]] and not open_right[pair[1]]]
        pauses = overlap.pauses()
        wide = [m for width, m in pauses if width >= PAUSE / self.frame_shift]
        outside = [overlap.split(m) for m in wide]
        outside = [(i, j) for i, j in outside if not open_left[i] and not open_right[j]]
        inside = [pair for pair in pairs if open_left[pair[0]] and open_right[pair[1]]]
        central = [pair for pair in closed if overlap.is_central(pair)]
        left_closed = [pair for pair in pairs if not open_left[pair[0]] and overlap.is_central(pair)]
        for candidates in (central, outside[:1], left_closed, closed, inside):
            if candidates:
                return min(candidates, key=overlap.distance)
        return overlap.split(pauses[0][1])

    def _open(self, units: Sequence[Unit]) -> List[bool]:
        """Whether an entity is open before each unit, and after the last."""
        state = [False]
        for unit in units:
            state.append(unit.tokens[0] in self.opening or (state[-1] and unit.tokens[0] not in self.closing))
        return state

    def result(self) -> Tuple[Tuple[int, ...], Tuple[int, ...], Tuple[float, ...]]:
        """Tokens, frames and log-probabilities of the whole recording."""
        tokens: List[int] = []
        frames: List[int] = []
        log_probs: List[float] = []
        state = 0
        for unit in self.units or self.language:
            after = self._after(state, unit)
            if after is None:
                continue
            state = after
            tokens.extend(unit.tokens)
            frames.extend(unit.frames)
            log_probs.extend(unit.log_probs)
        return tuple(tokens), tuple(frames), tuple(log_probs)

    def _after(self, state: int, unit: Unit) -> Optional[int]:
        """The state of the rules after a unit; None where it is barred."""
        for token in unit.tokens:
            if self.constraints.weights[state, token] == NEG_INF:
                return None
            state = int(self.constraints.following[state, token])
        return state


def _later(units: Sequence[Unit], frame: int) -> List[Unit]:
    """The units, none of their tokens before ``frame``: two windows may time a word a little differently."""
    moved: List[Unit] = []
    for i, unit in enumerate(units):
        if unit.start >= frame:
            return [*moved, *units[i:]]
        moved.append(unit._replace(frames=tuple(max(at, frame) for at in unit.frames)))
    return moved


class _Overlap:
    """What two windows say between frames ``start`` and ``end``."""

    def __init__(self, left: Sequence[Unit], right: Sequence[Unit], start: int, end: int):
        self.left, self.right, self.start, self.end = left, right, start, end
        self.first = next((i for i, unit in enumerate(left) if unit.frames[-1] >= start), len(left))

    def words(self, tolerance: int) -> List[Tuple[int, int]]:
        """Positions of the words that both have."""
        right = [unit for unit in self.right if unit.start < self.end]
        return [(i + self.first, j) for i, j in matches(self.left[self.first :], right, tolerance)]

    def distance(self, pair: Tuple[int, int]) -> float:
        """Frames between the centre of the overlap and a seam before units ``pair``."""
        starts = [units[k].start for units, k in ((self.left, pair[0]), (self.right, pair[1])) if k < len(units)]
        return abs(sum(starts) / max(len(starts), 1) - (self.start + self.end) / 2)

    def is_central(self, pair: Tuple[int, int]) -> bool:
        """Whether a seam before units ``pair`` is in the middle half."""
        return self.distance(pair) <= (self.end - self.start) / 4

    def pauses(self) -> List[Tuple[float, float]]:
        """(frames to the nearest token, frame) for each frame of the middle half, the widest pause first."""
        said = [frame for unit in (*self.left[self.first :], *self.right) for frame in unit.frames]
        quarter, centre = (self.end - self.start) / 4, (self.start + self.end) / 2
        frames = range(round(self.start + quarter), round(self.end - quarter) + 1)
        widths = [(min((abs(m - 0.5 - frame) for frame in said), default=float(self.end)), m) for m in frames]
        return sorted(widths, key=lambda item: (-item[0], abs(item[1] - centre)))

    def split(self, frame: float) -> Tuple[int, int]:
        """The seam before a frame."""
        i = next((i for i, unit in enumerate(self.left) if unit.start >= frame), len(self.left))
        j = next((j for j, unit in enumerate(self.right) if unit.start >= frame), len(self.right))
        return i, j

"""Long audio is recognized in overlapping windows, whose hypotheses are merged into one.

A few windows are in memory at a time. Tokens are grouped into units that are never split: words, and task tokens. Words
near the edges of a window are cut off or lack context, so two windows are most reliable in the middle of their overlap:
the left window is used up to a seam near the middle, and the right window after it. The seam is the first of these
places that exists:

1. a word in both windows (in the best common subsequence; at most half a second apart), outside entities in both, in
   the middle half of the overlap: the one nearest to its centre;
2. the widest pause there, outside entities in both, with no token in either window for 0.2 s before and after;
3. a word as in 1 that is outside entities in the left window only (the right one began with an ``[NE]`` that it never
   closed); else one outside entities in both, anywhere in the overlap; else one inside entities in both;
4. the widest pause in the middle half, whatever it cuts.

Task tokens between the seam's word and the word before it come from the left window, so no ``[SCD]`` or ``[ENDP]`` is
doubled. If the right window has only the end of an entity, the entity is complete in the left one, and vice versa. An
``[NE]`` that is still open at the seam is dropped if the right window does not close it, so that no later window does.
Tokens that the constraints of the search do not allow (after 4, e.g. an ``[/NE]`` without its ``[NE]``) are dropped.
The language is that of the first window with words: its token stays in front (earlier than it was, if the first words
are those of the next window), and later ones are dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Collection, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from tokenverse_pp.base.options import Autocast, DecodeOptions, Inactive, SearchOptions
from tokenverse_pp.decoding.constraints import SPACE, Constraints
from tokenverse_pp.decoding.hypothesis import Hypothesis
from tokenverse_pp.tasks.base import RANK_CLOSE, RANK_FRONT, RANK_OPEN, TaskSet
from tokenverse_pp.tasks.transcript import is_task_token

if TYPE_CHECKING:  # `tokenverse_pp.runtime` merges windows without torch and lhotse
    import torch
    from lhotse.cut import Cut

    from tokenverse_pp.models.bundle import ModelBundle

TOLERANCE = 0.5  # seconds between the starts of a word in two windows
PAUSE = 0.2  # seconds without a token before and after a seam


class Unit(NamedTuple):
    """A word or a task token: its tokens, their frames counted from the recording's start, and their log-probabilities.

    ``pauses``: of each token, as in a `Hypothesis`; empty if not requested.
    """

    tokens: Tuple[int, ...]
    frames: Tuple[int, ...]
    log_probs: Tuple[float, ...]
    is_word: bool
    pauses: Tuple[float, ...] = ()

    @property
    def start(self) -> int:
        """The frame of its first token."""
        return self.frames[0]


def units_of(hypothesis: Hypothesis, pieces: Sequence[str], first_frame: int) -> List[Unit]:
    """Split the hypothesis of a window that starts at ``first_frame`` into units; ``pieces``: of the vocabulary."""
    tokens = hypothesis.tokens
    marks = [is_task_token(pieces[token]) for token in tokens]
    starts = [i for i, t in enumerate(tokens) if i == 0 or marks[i] or marks[i - 1] or pieces[t].startswith(SPACE)]
    units = []
    for first, end in zip(starts, [*starts[1:], len(tokens)]):
        frames = tuple(frame + first_frame for frame in hypothesis.frames[first:end])
        pauses = (hypothesis.pauses or ())[first:end]
        units.append(Unit(tokens[first:end], frames, hypothesis.log_probs[first:end], not marks[first], pauses))
    return units


def matches(left: Sequence[Unit], right: Sequence[Unit], tolerance: int) -> List[Tuple[int, int]]:
    """Find the best common subsequence of words that start within ``tolerance`` frames of each other.

    A pair at the same time weighs most, one ``tolerance`` frames apart least. So if both windows have "yes yes yes",
    each word is paired with itself, even if that gives fewer pairs.

    Returns:
        Pairs of positions in ``left`` and ``right``, in order.
    """
    weight = {
        (i, j): tolerance + 1 - abs(a.start - b.start)
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        if a.is_word and a.tokens == b.tokens and abs(a.start - b.start) <= tolerance
    }
    # The weight of the best subsequence of left[i:] and right[j:].
    best = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i in reversed(range(len(left))):
        for j in reversed(range(len(right))):
            paired = best[i + 1][j + 1] + weight.get((i, j), 0)
            best[i][j] = max(best[i + 1][j], best[i][j + 1], paired)
    found, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if best[i][j] == best[i + 1][j]:
            i += 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            found.append((i, j))
            i, j = i + 1, j + 1
    return found


@dataclass
class Merger:
    """Merges the windows of a recording, which are added in order; ``frame_shift``: seconds per output frame."""

    pieces: Sequence[str]
    tasks: TaskSet
    frame_shift: float
    constraints: Constraints
    units: List[Unit] = field(default_factory=list)
    end: int = 0
    language: List[Unit] = field(default_factory=list)  # of a first window without words

    def __post_init__(self) -> None:
        self.front = self._ids(RANK_FRONT)
        self.space = next((i for i, piece in enumerate(self.pieces) if piece == SPACE), None)
        # A token before a word without a closing token (a capital) opens no span.
        spans = [task.ranks for task in self.tasks.tasks if {RANK_OPEN, RANK_CLOSE} <= set(task.ranks.values())]
        self.opening, self.closing = (self._ids(rank, spans) for rank in (RANK_OPEN, RANK_CLOSE))

    def _ids(self, rank: int, among: Optional[Sequence[Mapping[str, int]]] = None) -> Collection[int]:
        ranks = among if among is not None else [task.ranks for task in self.tasks.tasks]
        symbols = {s for each in ranks for s, r in each.items() if r == rank}
        return {i for i, piece in enumerate(self.pieces) if piece in symbols}

    def add(self, start: int, end: int, hypothesis: Hypothesis) -> None:
        """Add the next window, frames ``start`` to ``end``; frames of its hypothesis count from ``start``."""
        units = units_of(hypothesis, self.pieces, start)
        if not self.units and not any(unit.is_word for unit in units):
            self.language = self.language or [unit for unit in units if unit.tokens[0] in self.front]
            units = []
        if self.units:
            units = [unit for unit in units if unit.tokens[0] not in self.front]
            i, j = self._seam(units, start)
            # What comes before all words stays, also if the seam lies before it: the constraints may demand it.
            front = next((k for k, unit in enumerate(self.units) if unit.tokens[0] not in self.front), len(self.units))
            i = max(i, front)
            left, added = self.units[:i], units[j:]
            marks = (unit.tokens[0] for unit in added if unit.tokens[0] in (*self.opening, *self.closing))
            if self._open(left)[-1] and next(marks, None) not in self.closing:
                del left[max(k for k, unit in enumerate(left) if unit.tokens[0] in self.opening)]
            if i > front:
                added = _later(added, self.units[i - 1].frames[-1])
            elif added:
                left = [unit._replace(frames=tuple(min(at, added[0].start) for at in unit.frames)) for unit in left]
            units = left + added
        self.units = units
        self.end = end

    def _seam(self, right: Sequence[Unit], start: int) -> Tuple[int, int]:
        """Return how many of the merged units to keep, and the next window's first unit to add."""
        overlap = _Overlap(self.units, right, start, max(start, self.end))
        pairs = overlap.words(round(TOLERANCE / self.frame_shift))
        open_left, open_right = self._open(self.units), self._open(right)
        closed = [pair for pair in pairs if not open_left[pair[0]] and not open_right[pair[1]]]
        pauses = overlap.pauses()
        wide = [overlap.split(m) for width, m in pauses if width >= PAUSE / self.frame_shift]
        outside = [(i, j) for i, j in wide if not open_left[i] and not open_right[j]]
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

    def result(self, before: float = math.inf) -> Tuple[Tuple[int, ...], Tuple[int, ...], Tuple[float, ...]]:
        """Tokens, frames and log-probabilities of the whole recording, or of the units that end ``before`` a frame.

        If the next window starts there, neither it nor later ones change these units.
        """
        kept = self._kept(before)
        return (
            tuple(token for unit in kept for token in unit.tokens),
            tuple(frame for unit in kept for frame in unit.frames),
            tuple(log_prob for unit in kept for log_prob in unit.log_probs),
        )

    def pauses(self) -> Tuple[float, ...]:
        """`Hypothesis.pauses` of the whole recording, from windows whose hypotheses have them."""
        return tuple(pause for unit in self._kept(math.inf) for pause in unit.pauses)

    def _kept(self, before: float) -> List[Unit]:
        """The units before a frame, without those that the constraints of the search do not allow."""
        kept: List[Unit] = []
        state = 0
        for unit in self.units or self.language:
            if unit.frames[-1] >= before:
                break
            after = self.constraints.after(unit.tokens, state)
            if after is not None:
                joins = bool(kept) and kept[-1].is_word and unit.is_word
                kept.append(self._apart(unit) if joins else unit)
                state = after
        return kept

    def _apart(self, unit: Unit) -> Unit:
        """A word with a space sign: units of one window have one after a word, those of two windows may lack it."""
        if self.space is None or self.pieces[unit.tokens[0]].startswith(SPACE):
            return unit
        return Unit(
            (self.space, *unit.tokens),
            unit.frames[:1] + unit.frames,
            unit.log_probs[:1] + unit.log_probs,
            True,
            unit.pauses[:1] + unit.pauses,
        )


def _later(units: Sequence[Unit], frame: int) -> List[Unit]:
    """Move tokens before ``frame`` to it: two windows may time a word a little differently."""
    moved: List[Unit] = []
    for i, unit in enumerate(units):
        if unit.start >= frame:
            return [*moved, *units[i:]]
        moved.append(unit._replace(frames=tuple(max(at, frame) for at in unit.frames)))
    return moved


class _Overlap:
    """The overlap of two windows, frames ``start`` to ``end``."""

    def __init__(self, left: Sequence[Unit], right: Sequence[Unit], start: int, end: int):
        self.left, self.right, self.start, self.end = left, right, start, end
        self.first = next((i for i, unit in enumerate(left) if unit.frames[-1] >= start), len(left))

    def words(self, tolerance: int) -> List[Tuple[int, int]]:
        """Positions of the words in both windows."""
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


def decode_long(
    loaded: ModelBundle,
    audio: Union[Cut, str, Path],
    active: TaskSet,
    options: Optional[SearchOptions] = None,
    window: float = 28.0,
    overlap: float = 6.0,
    batch: int = 4,
    precision: Autocast = "fp32",
    weights: Optional[torch.Tensor] = None,
    inactive: Optional[Inactive] = None,
) -> Hypothesis:
    """Decode audio of any length in overlapping windows (see the module's docstring for how they are merged).

    Audio of at most one window gives exactly the result of the plain search. In a merged hypothesis ``log_prob`` is the
    sum of its tokens' log-probabilities (without blanks, which belong to windows).

    Args:
        loaded: the model, on the device to run on.
        audio: a cut, or an audio file; any sampling rate and number of channels.
        options: of the search; the best hypothesis of each window is taken.
        window: seconds; at most what the encoder can take (Whisper: 30).
        overlap: seconds that two windows share, less than half a window.
        precision: of the encoder: fp32, bf16 or fp16.
        weights: (K + 1,) factors of the task vectors; by default 1 for decoded tasks, 0 for the others.
        inactive: how other tasks are handled: see `DecodeOptions.inactive`.

    Raises:
        UserError: for unreadable audio or invalid windows, naming the file or option.
    """
    from tokenverse_pp.data.audio.inputs import open_audio
    from tokenverse_pp.decoding.recognizer import Recognizer  # imports this module

    decoding = DecodeOptions(
        options or SearchOptions(), active.names, precision=precision, window=window, overlap=overlap, inactive=inactive
    )
    cut = open_audio(audio).cut if isinstance(audio, (str, Path)) else audio
    return Recognizer(loaded, decoding, weights).recognize_long(cut, batch)


def windows_of(cut: Cut, window: float, overlap: float, shift: float) -> Iterator[Tuple[int, Cut]]:
    """Yield the windows of a cut longer than one: first frame, and the part of the cut (see `window_times`)."""
    bare = cut.drop_supervisions()
    for start, offset, duration in window_times(cut.duration, window, overlap, shift):
        yield start, bare.truncate(offset=offset, duration=duration, preserve_id=True)


def window_times(duration: float, window: float, overlap: float, shift: float) -> Iterator[Tuple[int, float, float]]:
    """Yield the windows of a recording longer than one: first frame, start and duration in seconds.

    Windows start at multiples of the encoder's output frame, so that all frames are on one grid. The last one ends with
    the recording, and is longer than the overlap.
    """
    step = max(1, math.floor((window - overlap) / shift + 1e-6))
    start = 0
    while True:
        offset = start * shift
        is_last = offset + window >= duration - 1e-6
        yield start, offset, duration - offset if is_last else window
        if is_last:
            return
        start += step

"""The three steps of a recording on its way into a manifest: clip (one file), turn (what is said in one go), example
(one cut).

Leaves out clips whose length cannot belong to their text: a wrong text poisons training.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median
from typing import Dict, List, Optional, Sequence, Tuple

from tokenverse_pp.tasks.punct import read_written

Entity = Tuple[int, int, str]
"""`(start, end, type)`: characters `start` to `end` (exclusive) of a normalised text, at word boundaries."""

MAX_SECONDS = 20.0
"""No example is longer than this."""


@dataclass(frozen=True)
class Clip:
    """One recorded line of a corpus.

    `group` is what the split keeps together (a game level); empty means "by text alone". `closed` marks a closed-
    class prompt (a digit, a letter, a weekday, a lone word), which may serve in every split inside of longer chains.
    `endpoint` and `entities` are None when the corpus is not labelled for them; `written`, the text with its marks and
    capitals, where it is not known or not that of `text`.
    """

    id: str
    corpus: str
    language: str
    speaker: str
    path: str
    text: str
    key: str
    group: str = ""
    closed: bool = False
    endpoint: Optional[bool] = None
    entities: Optional[Tuple[Entity, ...]] = None
    written: Optional[str] = None


@dataclass(frozen=True)
class Turn:
    """One supervision: usually one clip; several for a phrase such as a digit sequence. `gaps` (seconds) lie between
    clips."""

    clips: Tuple[Clip, ...]
    text: str
    gaps: Tuple[float, ...] = ()
    entities: Optional[Tuple[Entity, ...]] = None

    @property
    def speaker(self) -> str:
        """The one speaker of the turn."""
        return self.clips[0].speaker

    @property
    def endpoint(self) -> Optional[bool]:
        """Whether the turn ends in a semantic endpoint; None: not labelled."""
        return self.clips[-1].endpoint

    @property
    def written(self) -> Optional[str]:
        """The text with its marks and capitals; None where it is not known, as that of phrases."""
        return self.clips[0].written if len(self.clips) == 1 else None


@dataclass(frozen=True)
class Example:
    """One cut to be written: turns with `gaps` (seconds) between them, played at `speed` (1.0 = as recorded)."""

    id: str
    split: str
    turns: Tuple[Turn, ...]
    gaps: Tuple[float, ...] = ()
    speed: float = 1.0
    tasks: Tuple[str, ...] = field(default=("asr",))

    @property
    def corpus(self) -> str:
        """The corpus that every turn comes from."""
        return self.turns[0].clips[0].corpus

    @property
    def language(self) -> str:
        """Two-letter code; the same for every turn."""
        return self.turns[0].clips[0].language


def written_of(original: str, text: str) -> Optional[str]:
    """An original text on one line, where it has a capital or a mark and its words are those of the plain text."""
    written = " ".join(original.split())
    try:
        return written if read_written(written, text.split()) else None
    except ValueError:  # digits that were spelled out, words that were left out
        return None


def with_punctuation(turns: Sequence[Turn], tasks: Sequence[str]) -> Tuple[str, ...]:
    """What an example of these turns is labelled for: `punct` too where all of them have a written text."""
    return (*tasks, *(["punct"] if all(turn.written for turn in turns) else []))


def turn_of(clip: Clip) -> Turn:
    """A turn that consists of one clip."""
    return Turn(clips=(clip,), text=clip.text, entities=clip.entities)


def turn_seconds(turn: Turn, durations: Dict[str, float]) -> float:
    """Length of `turn` in seconds, gaps included."""
    return sum(durations[clip.id] for clip in turn.clips) + sum(turn.gaps)


def example_seconds(turns: List[Turn], gaps: List[float], durations: Dict[str, float], speed: float = 1.0) -> float:
    """Length in seconds of the turns with gaps between them at the given speed."""
    return (sum(turn_seconds(turn, durations) for turn in turns) + sum(gaps)) / speed


TOO_FAST = 1.9
TOO_FAST_SHORT = 3.0
TOO_SLOW = 2.5
SLACK_SECONDS = 1.0
SHORT_CHARACTERS = 10


def characters_per_second(clips: Sequence[Clip], durations: Dict[str, float]) -> Dict[str, float]:
    """Median rate of each speaker group (corpus and language) over texts that are not short."""
    rates: Dict[str, List[float]] = defaultdict(list)
    for clip in clips:
        if len(clip.text) >= SHORT_CHARACTERS and durations[clip.id] > 0:
            rates[_group(clip)].append(len(clip.text) / durations[clip.id])
    return {group: median(values) for group, values in rates.items()}


def find_outliers(clips: Sequence[Clip], durations: Dict[str, float]) -> Dict[str, str]:
    """Reason (`empty`, `too fast`, `too slow`) by id of every clip to leave out.

    With the median rate m (characters a second) of the clip's corpus and language: too fast is more than 1.9 m (3 m
    for texts under 10 characters); too slow is longer than 2.5 times the expected length plus 1 s, as edges are not
    all silence. A group without any longer text has no median, and only its empty clips are left out.
    """
    medians = characters_per_second(clips, durations)
    reasons = {}
    for clip in clips:
        seconds, rate = durations[clip.id], medians.get(_group(clip))
        limit = TOO_FAST if len(clip.text) >= SHORT_CHARACTERS else TOO_FAST_SHORT
        if seconds <= 0:
            reasons[clip.id] = "empty"
        elif rate is not None and len(clip.text) / seconds > limit * rate:
            reasons[clip.id] = "too fast"
        elif rate is not None and seconds > SLACK_SECONDS + TOO_SLOW * len(clip.text) / rate:
            reasons[clip.id] = "too slow"
    return reasons


def _group(clip: Clip) -> str:
    return f"{clip.corpus}-{clip.language}"

"""Leaves out clips whose length cannot belong to their text: a wrong text poisons training."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import Dict, List, Sequence

from tokenverse_pp.manifests.human_speech.clips import Clip

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

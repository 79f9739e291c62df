"""Composes conversations of 1 to 6 turns and at most 20 s from the lines of one level, scripted runs first."""

from __future__ import annotations

import random
from typing import Dict, List, Optional, Sequence, Tuple

from tokenverse_pp.manifests.human_speech.clips import MAX_SECONDS, Clip, Example, example_seconds, turn_of
from tokenverse_pp.manifests.human_speech.fillets import Level, is_lead

MAX_TURNS = 6
GAP_SECONDS = (0.05, 0.6)
TASKS = ("asr", "scd", "endp", "lid")

# Shares of conversations planned with 1 to 6 turns; runs and the 20 s limit cut some shorter.
_TURNS = (1, 2, 3, 4, 5, 6)
_TURN_WEIGHTS = (1, 2, 3, 3, 2, 2)


def draw_gap(rng: random.Random) -> float:
    """A pause between turns in seconds, to the millisecond."""
    return round(rng.uniform(*GAP_SECONDS), 3)


def order_lines(level: Level, allowed: Dict[str, Clip], composition: int, rng: random.Random) -> List[List[Clip]]:
    """Every allowed line once, as sequences that conversations are cut from: the scripted runs first, then the rest
    shuffled.

    Composition 0 keeps the order of the script; in later ones the runs come in random order, and what a run holds
    stays in order.
    """
    used = set()
    sequences: List[List[Clip]] = []
    runs = list(level.runs)
    if composition > 0:
        rng.shuffle(runs)
    for run in runs:
        sequence = []
        for place in run:
            choices = [line for line in place if line in allowed and line not in used]
            if choices:
                line = rng.choice(choices)
                used.add(line)
                sequence.append(allowed[line])
        if sequence:
            sequences.append(sequence)
    # Runs of one line make no conversation by themselves: they join the rest of the level.
    rest = [sequence[0] for sequence in sequences if len(sequence) == 1]
    sequences = [sequence for sequence in sequences if len(sequence) > 1]
    rest += [allowed[line] for line in sorted(allowed) if line not in used]
    rng.shuffle(rest)
    return sequences + [rest] if rest else sequences


def cut_conversations(
    sequence: Sequence[Clip], durations: Dict[str, float], speed: float, rng: random.Random
) -> List[Tuple[List[Clip], List[float]]]:
    """Cuts a sequence into conversations `(clips, gaps)`; a single line over 20 s is left out."""
    result = []
    clips: List[Clip] = []
    gaps: List[float] = []
    planned = rng.choices(_TURNS, _TURN_WEIGHTS)[0]
    for clip in sequence:
        gap = draw_gap(rng)
        turns = [turn_of(c) for c in clips + [clip]]
        too_long = example_seconds(turns, gaps + [gap] * bool(clips), durations, speed) > MAX_SECONDS
        if clips and (too_long or len(clips) >= planned or not _may_follow(clips[-1], clip)):
            result.append((clips, gaps))
            clips, gaps = [], []
            planned = rng.choices(_TURNS, _TURN_WEIGHTS)[0]
        if durations[clip.id] / speed > MAX_SECONDS:
            continue
        if clips:
            gaps = gaps + [gap]
        clips = clips + [clip]
    if clips:
        result.append((clips, gaps))
    return result


def _may_follow(before: Clip, after: Clip) -> bool:
    """Two lines in one minor font may come from one character or from two: never side by side, where it would
    matter."""
    return before.speaker != after.speaker or is_lead(before.speaker)


def compose_level(
    level: Level,
    split: str,
    allowed: Dict[str, Clip],
    durations: Dict[str, float],
    composition: int,
    seed: int,
    speed_range: Optional[float] = None,
) -> List[Example]:
    """Conversations of one level. `allowed`: the lines by id that the split keeps; `speed_range` r draws a speed of 1
    - r to 1 + r."""
    rng = random.Random(f"{seed}-fillets-{level.language}-{level.name}-{composition}")
    examples: List[Example] = []
    for sequence in order_lines(level, allowed, composition, rng):
        speed = draw_speed(speed_range, rng)
        for clips, gaps in cut_conversations(sequence, durations, speed, rng):
            name = f"fillets-{level.language}-{level.name}-c{composition}-{len(examples):03d}"
            turns = tuple(turn_of(clip) for clip in clips)
            examples.append(Example(name, split, turns, tuple(gaps), speed, TASKS))
    return examples


def draw_speed(speed_range: Optional[float], rng: random.Random) -> float:
    """A playing speed to two decimals (soxr's ratio stays simple), or 1.0 when no range is given."""
    return round(rng.uniform(1 - speed_range, 1 + speed_range), 2) if speed_range else 1.0

"""Composes telephone prompts (and short descriptions) into examples of one to four parts.

The parts of a chain are sentences of the split, each used once per composition, and *phrases*: digit sequences,
spelled names, dates and clock times put together from closed-class prompts. Train also has chains of closed-class
prompts alone, until each of them was used; dev and test have phrases only beside held-out sentences.

Composes conversations of 1 to 6 turns and at most 20 s from the lines of one level, scripted runs first.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from corpus.asterisk import phrase_words
from corpus.clips import MAX_SECONDS, Clip, Example, Turn, example_seconds, turn_of, with_punctuation
from corpus.entities import find_entities, load_rules
from corpus.fillets import Level, is_lead

MAX_PARTS = 4
PART_GAP_SECONDS = (0.15, 0.5)
CLIP_GAP_SECONDS = (0.03, 0.2)
PHRASE_SHARE = 0.45
ASTERISK_TASKS = ("asr", "lid", "ner")
TUXPAINT_TASKS = ("asr", "lid")

_PART_COUNTS = (1, 2, 3, 4)
_PART_WEIGHTS = (4, 3, 2, 1)

_KINDS = {
    "digit": re.compile(r"digits/\d[fmn]?$"),
    "number": re.compile(r"digits/\d\d+$"),
    "scale": re.compile(r"digits/(hundred|thousands?|millions?|billion)$"),
    "ordinal": re.compile(r"digits/h-"),
    "weekday": re.compile(r"digits/day-"),
    "month": re.compile(r"digits/mon-"),
    "clock": re.compile(r"digits/(oclock|a-m|p-m|afternoon)$"),
    "letter": re.compile(r"letters/([a-z]|zed)$"),
    "phonetic": re.compile(r"phonetic/"),
}


def _kind(clip: Clip) -> str:
    return next((name for name, pattern in _KINDS.items() if pattern.match(clip.key)), "word")


class ClosedPool:
    """The closed-class prompts of one language, dealt in turn, so that every one is used before any is used again."""

    def __init__(self, clips: Sequence[Clip], rng: random.Random):
        self.rng = rng
        self.clips: Dict[str, List[Clip]] = {}
        for clip in sorted(clips, key=lambda clip: clip.id):
            self.clips.setdefault(_kind(clip), []).append(clip)
        self.queues: Dict[str, List[Clip]] = {kind: [] for kind in self.clips}
        self.used: Counter = Counter()

    def draw(self, kind: str) -> Optional[Clip]:
        """The next prompt of a kind; None when the language has none."""
        if kind not in self.clips:
            return None
        if not self.queues[kind]:
            self.queues[kind] = self.rng.sample(self.clips[kind], len(self.clips[kind]))
        clip = self.queues[kind].pop()
        self.used[clip.id] += 1
        return clip

    def put_back(self, phrase: Turn) -> None:
        """Takes the prompts of a phrase that did not fit back, to be drawn next."""
        for clip in reversed(phrase.clips):
            self.queues[_kind(clip)].append(clip)
            self.used[clip.id] -= 1

    def unused_kinds(self) -> List[str]:
        """Kinds that still hold a prompt that was never drawn."""
        return [kind for kind, clips in self.clips.items() if any(not self.used[clip.id] for clip in clips)]

    def phrase(self, kind: Optional[str] = None) -> Optional[Turn]:
        """A random phrase: of one kind of prompt if `kind` is given."""
        rng = self.rng
        kind = kind or rng.choice(["digit", "digit", "number", "letter", "phonetic", "month", "clock", "ordinal"])
        if kind in ("digit", "letter"):
            kinds = [kind] * rng.randint(2, 5)
        elif kind == "number":
            kinds = rng.choice([[kind], [kind, "digit"]])
        elif kind == "phonetic":
            kinds = [kind] * rng.randint(1, 3)
        elif kind in ("weekday", "month"):
            kinds = ["weekday", rng.choice(["digit", "number"]), "month"]
        elif kind == "clock":
            kinds = [rng.choice(["digit", "number"]), kind]
        elif kind == "scale":
            kinds = ["digit", kind]
        else:
            kinds = [kind]
        clips = [clip for clip in map(self.draw, kinds) if clip is not None]
        return self._join(clips) if clips else None

    def _join(self, clips: List[Clip]) -> Turn:
        words = phrase_words(clips)
        entities = find_entities(words, load_rules(clips[0].language))
        gaps = tuple(round(self.rng.uniform(*CLIP_GAP_SECONDS), 3) for _ in clips[1:])
        return Turn(tuple(clips), " ".join(word for word, _ in words), gaps, entities)


def chain_turns(
    turns: Sequence[Turn], name: str, split: str, tasks: Sequence[str], durations: Dict[str, float], rng:
        random.Random,
    speed_range: Optional[float] = None, pool: Optional[ClosedPool] = None, shortest: float = 0.0, single: bool =
        False,
) -> List[Example]:  # fmt: skip
    """Chains turns, in the order given, to examples of at most 20 s, with phrases from `pool` mixed in.

    Args:
        turns: each is used once; one longer than 20 s is left out.
        name: prefix of the example ids.
        split: the set.
        tasks: what the examples are labelled for.
        durations: seconds by clip id.
        rng: draws lengths, gaps, phrases.
        speed_range: see `draw_speed`.
        pool: where phrases come from; None: no phrases.
        shortest: an example shorter than this many seconds takes one turn more, even if one part was planned.
        single: plan one part for every example.
    """
    examples: List[Example] = []
    queue = list(turns)
    while queue:
        speed = draw_speed(speed_range, rng)
        planned = 1 if single else rng.choices(_PART_COUNTS, _PART_WEIGHTS)[0]
        parts: List[Turn] = []
        gaps: List[float] = []
        while len(parts) < MAX_PARTS:
            length = example_seconds(parts, gaps, durations, speed)
            if parts and len(parts) >= planned and length >= shortest:
                break
            phrase = pool.phrase() if pool and parts and rng.random() < PHRASE_SHARE else None
            turn = phrase or (queue[0] if queue else None)
            if turn is None:
                break
            gap = [round(rng.uniform(*PART_GAP_SECONDS), 3)] if parts else []
            if example_seconds(parts + [turn], gaps + gap, durations, speed) > MAX_SECONDS:
                if phrase and pool:
                    pool.put_back(phrase)
                elif not parts:
                    queue.pop(0)
                break
            if phrase is None:
                queue.pop(0)
            parts, gaps = parts + [turn], gaps + gap
        if parts:
            labelled = with_punctuation(parts, tasks)
            examples.append(Example(f"{name}-{len(examples):04d}", split, tuple(parts), tuple(gaps), speed, labelled))
    return examples


def compose_asterisk(
    sentences: Sequence[Clip], closed: Sequence[Clip], language: str, split: str, durations: Dict[str, float],
    composition: int, seed: int, speed_range: Optional[float] = None,
) -> List[Example]:  # fmt: skip
    """Examples of one language, split and composition: every sentence once, and in train every closed-class
    prompt."""
    rng = random.Random(f"{seed}-asterisk-{language}-{split}-{composition}")
    pool = ClosedPool(closed, rng)
    name = f"asterisk-{language}-{split}-c{composition}"
    order = [turn_of(clip) for clip in sorted(sentences, key=lambda clip: clip.id)]
    rng.shuffle(order)
    examples = chain_turns(order, name, split, ASTERISK_TASKS, durations, rng, speed_range, pool, shortest=1.0)
    if split != "train":
        return examples
    phrases: List[Turn] = []
    while pool.unused_kinds():
        phrase = pool.phrase(rng.choice(pool.unused_kinds()))
        if phrase is not None:
            phrases.append(phrase)
    rest = chain_turns(phrases, f"{name}-closed", split, ASTERISK_TASKS, durations, rng, speed_range, shortest=1.5)
    return examples + rest


def compose_tuxpaint(
    clips: Sequence[Clip], language: str, split: str, durations: Dict[str, float], composition: int, seed: int,
    speed_range: Optional[float] = None,
) -> List[Example]:  # fmt: skip
    """Examples of one language, split and composition: alone (unless under a second) in composition 0, chained in
    later ones."""
    rng = random.Random(f"{seed}-tuxpaint-{language}-{split}-{composition}")
    turns = [turn_of(clip) for clip in sorted(clips, key=lambda clip: clip.id)]
    rng.shuffle(turns)
    name = f"tuxpaint-{language}-{split}-c{composition}"
    return chain_turns(
        turns, name, split, TUXPAINT_TASKS, durations, rng, speed_range, shortest=1.0, single=composition == 0
    )


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


def _may_follow(before: Clip, after: Clip) -> bool:
    """Two lines in one minor font may come from one character or from two: never side by side, where it would
    matter."""
    return before.speaker != after.speaker or is_lead(before.speaker)


def cut_conversations(
    sequence: Sequence[Clip],
    durations: Dict[str, float],
    speed: float,
    rng: random.Random,
    may_follow: Callable[[Clip, Clip], bool] = _may_follow,
) -> List[Tuple[List[Clip], List[float]]]:
    """Cuts a sequence into conversations `(clips, gaps)`; a single line over 20 s is left out. `may_follow`: whether
    two lines can stand side by side."""
    result = []
    clips: List[Clip] = []
    gaps: List[float] = []
    planned = rng.choices(_TURNS, _TURN_WEIGHTS)[0]
    for clip in sequence:
        gap = draw_gap(rng)
        turns = [turn_of(c) for c in clips + [clip]]
        too_long = example_seconds(turns, gaps + [gap] * bool(clips), durations, speed) > MAX_SECONDS
        if clips and (too_long or len(clips) >= planned or not may_follow(clips[-1], clip)):
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
            labelled = with_punctuation(turns, TASKS)
            examples.append(Example(name, split, turns, tuple(gaps), speed, labelled))
    return examples


def draw_speed(speed_range: Optional[float], rng: random.Random) -> float:
    """A playing speed to two decimals (soxr's ratio stays simple), or 1.0 when no range is given."""
    return round(rng.uniform(1 - speed_range, 1 + speed_range), 2) if speed_range else 1.0

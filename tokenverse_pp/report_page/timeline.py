"""The time line of an utterance: turns, speaker changes, endpoints and entities; reference above, hypothesis below."""

from __future__ import annotations

from typing import List, Optional, Sequence

from lhotse.cut import Cut

from tokenverse_pp.hypotheses import Hypothesis
from tokenverse_pp.report_page.alignment import Said
from tokenverse_pp.report_page.html import tag, text
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.turns import Turn, turns_of

SHADES = 4  # colours for speakers
TICKS = 6  # at most about so many numbers under the line


def timeline(cut: Cut, hyp: Hypothesis, tasks: TaskSet, said: Sequence[Said]) -> str:
    """Lanes of a cut; nothing where neither side has any time."""
    lanes = [
        _lane("ref", reference_marks(cut)),
        _lane("hyp", hypothesis_marks(cut, hyp, said)),
        _lane("ents", entity_marks(cut, hyp)),
    ]
    if not any(lanes):
        return ""
    return tag("div", *lanes, _axis(cut.duration), tag("i", class_="head", hidden=True), class_="timeline")


def reference_marks(cut: Cut) -> List[str]:
    """The turns of the reference, and the endpoints where it is labelled for them."""
    labelled = (cut.custom or {}).get("tasks", ())
    turns = turns_of(cut) if labelled else []
    speakers = {speaker: i for i, speaker in enumerate(dict.fromkeys(turn.speaker for turn in turns))}
    marks = [
        _bar(cut, turn.start, turn.end, turn.text, _name(turn), f"turn s{speakers[turn.speaker] % SHADES}")
        for turn in turns
    ]
    if "endp" in labelled:
        marks += [_mark(cut, turn.end, "endpoint", "reference") for turn in turns if turn.custom.get("endpoint")]
    return marks


def _name(turn: Turn) -> str:
    return f"reference, speaker {turn.speaker}" if turn.speaker else "reference"


def hypothesis_marks(cut: Cut, hyp: Hypothesis, said: Sequence[Said]) -> List[str]:
    """The turns of the hypothesis (all its words as one without ``scd``), speaker changes and endpoints."""
    turns = hyp.get("turns")
    if turns is None:
        timed = [word for word in said if word.start is not None and word.end is not None]
        words = " ".join(word.text for word in timed)
        turns = [{"text": words, "start": timed[0].start, "end": timed[-1].end}] if timed else []
    marks = [
        _bar(cut, turn["start"], turn["end"], turn["text"], f"hypothesis, turn {i + 1}", f"turn s{i % 2}")
        for i, turn in enumerate(turns)
    ]
    marks += [_mark(cut, time, "speaker change", "hypothesis") for time in hyp.get("speaker_changes") or ()]
    return marks + [_mark(cut, time, "endpoint", "hypothesis") for time in hyp.get("endpoints") or ()]


def entity_marks(cut: Cut, hyp: Hypothesis) -> List[str]:
    """The entities of the hypothesis."""
    return [
        _bar(cut, e["start"], e["end"], e["text"], f"entity {e.get('type') or ''}".strip(), "entity")
        for e in hyp.get("entities") or ()
    ]


def _share(cut: Cut, time: float) -> float:
    """A time as a percentage of the cut."""
    return 100 * min(max(time / cut.duration, 0.0), 1.0)


def _bar(cut: Cut, start: float, end: float, words: str, what: str, kind: str) -> str:
    left = _share(cut, start)
    style = f"left:{left:.2f}%;width:{max(_share(cut, end) - left, 0.5):.2f}%"
    title = f"{what}, {start:.2f} to {end:.2f} s: {words}"
    return tag("button", text(words), class_=kind, style=style, data_t=start, title=title)


def _mark(cut: Cut, time: float, what: str, side: str) -> str:
    title = f"{side}: {what} at {time:.2f} s"
    kind = what.replace(" ", "-")
    return tag("button", class_=f"mark {kind}", style=f"left:{_share(cut, time):.2f}%", data_t=time, title=title)


def _lane(name: str, marks: Sequence[str]) -> str:
    return tag("div", tag("span", name, class_="lane-name"), *marks, class_=f"lane {name}") if marks else ""


def _axis(seconds: float) -> str:
    """Numbers under the line, at round steps."""
    step: Optional[float] = next((s for s in (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800) if seconds / s <= TICKS), 3600)
    ticks = []
    time = 0.0
    while time < 0.96 * seconds and step:  # a number needs some room
        ticks.append(tag("span", f"{time:g} s", style=f"left:{100 * time / seconds:.2f}%"))
        time += step
    return tag("div", *ticks, class_="axis")

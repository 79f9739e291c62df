"""One utterance of the report: error rates, audio player, time line, and the alignment of reference and hypothesis."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import AbstractSet, Any, Dict, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import quote

import soundfile
from lhotse.cut import Cut, MixedCut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.languages import language_group
from tokenverse_pp.data.access import check_access
from tokenverse_pp.data.dataset import SAMPLING_RATE, audio_files, load_inputs
from tokenverse_pp.data.hypotheses import Hypothesis
from tokenverse_pp.evaluation.scoring import percent
from tokenverse_pp.metrics.error_rates import error_rates
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.result import written_words
from tokenverse_pp.tasks.transcript import Word, is_task_token, transcript_of, turns_of

LONGEST = 120.0  # seconds: longer cuts are linked, never embedded
CHUNK = SAMPLING_RATE  # samples: libsndfile's Vorbis encoder overflows its stack on long writes


@dataclass(frozen=True)
class PlayerSource:
    """Where a player finds a cut: a URL, and the second at which the cut starts there."""

    url: str
    offset: float


def source_of(cut: Cut, folder: Path, embed: bool) -> Optional[PlayerSource]:
    """Return a cut's audio for a page in ``folder``; None if a browser could not open it.

    Args:
        embed: put the audio itself into the URL (mono, 16 kHz, Vorbis: about 6 kB a second).

    Raises:
        UserError: if the audio is to be embedded, but comes from a command or URL that is not allowed.
    """
    if embed and cut.duration <= LONGEST:
        check_access(cut)
        try:
            samples = load_inputs(cut, convert=True).numpy()
        except UserError:
            return None
        memory = io.BytesIO()
        with soundfile.SoundFile(memory, "w", SAMPLING_RATE, 1, format="OGG", subtype="VORBIS") as file:
            for start in range(0, len(samples), CHUNK):
                file.write(samples[start : start + CHUNK])
        return PlayerSource(f"data:audio/ogg;base64,{base64.b64encode(memory.getvalue()).decode()}", 0.0)
    files = audio_files(cut)
    if isinstance(cut, MixedCut) or len(files) != 1:
        return None
    return PlayerSource(quote(Path(os.path.relpath(files[0], folder)).as_posix()), float(cut.start))


MOST_CELLS = 1_000_000  # of the alignment's table: about a second


@dataclass(frozen=True)
class Pair:
    """One column of an alignment.

    ``kind``: ``ok``, ``sub``, ``ins`` or ``del``; for task tokens ``ok``, ``ins`` (too many), ``del`` (missed), or
    ``free`` if the reference is not labelled for the token's task.
    """

    kind: str
    ref: Optional[str]
    hyp: Optional[Word]

    @property
    def is_token(self) -> bool:
        """True for a task token."""
        return is_task_token(self.ref if self.ref is not None else self.hyp.text)  # type: ignore[union-attr]


def align(ref: Sequence[str], hyp: Sequence[Word], judged: AbstractSet[str]) -> Optional[List[Pair]]:
    """Align words and task tokens of a reference with those of a hypothesis.

    As in `metrics.f1.count_aligned`, the fewest word errors come first (Levenshtein), then the most matching task
    tokens, then the most right words; a task token is never paired with a word.

    Args:
        ref: words and task tokens.
        hyp: words and task tokens.
        judged: the task tokens that the reference is labelled for.

    Returns:
        The columns in order; None if the two are too long.
    """
    if (len(ref) + 1) * (len(hyp) + 1) > MOST_CELLS:
        return None
    said = [item.text for item in hyp]
    costs = _costs(ref, said)
    pairs: List[Pair] = []
    i, j = len(ref), len(hyp)
    unit = _unit(ref, said)
    while i or j:
        here = costs[i][j]
        if i and j and here == costs[i - 1][j - 1] + _replace(ref[i - 1], said[j - 1], unit):
            i, j = i - 1, j - 1
            pairs.append(Pair("ok" if ref[i] == said[j] else "sub", ref[i], hyp[j]))
        elif j and here == costs[i][j - 1] + _alone(said[j - 1], unit):
            j -= 1
            kind = "free" if is_task_token(said[j]) and said[j] not in judged else "ins"
            pairs.append(Pair(kind, None, hyp[j]))
        else:
            i -= 1
            pairs.append(Pair("del", ref[i], None))
    return pairs[::-1]


def count_errors(pairs: Sequence[Pair]) -> Tuple[int, int, int]:
    """Insertions, deletions and substitutions of words."""
    kinds = [pair.kind for pair in pairs if not pair.is_token]
    return kinds.count("ins"), kinds.count("del"), kinds.count("sub")


def _unit(ref: Sequence[str], hyp: Sequence[str]) -> int:
    """The cost of an unmatched task token: more than all substituted words (1 each, in addition to their error)."""
    return len(ref) + len(hyp) + 1


def _alone(symbol: str, unit: int) -> int:
    """The cost of an unmatched symbol; a word error costs more than all task tokens together."""
    return unit if is_task_token(symbol) else unit * unit


def _replace(ref: str, hyp: str, unit: int) -> int:
    if ref == hyp:
        return 0
    # With a task token this costs more than leaving both unmatched, so it is never chosen.
    return 3 * unit * unit if is_task_token(ref) or is_task_token(hyp) else unit * unit + 1


def _costs(ref: Sequence[str], hyp: Sequence[str]) -> List[List[int]]:
    """Least cost of turning the first i of ``ref`` into the first j of ``hyp``, (len(ref) + 1, len(hyp) + 1)."""
    unit = _unit(ref, hyp)
    insert = [_alone(symbol, unit) for symbol in hyp]
    rows = [[0]]
    for cost in insert:
        rows[0].append(rows[0][-1] + cost)
    for symbol in ref:
        above, delete = rows[-1], _alone(symbol, unit)
        row = [above[0] + delete]
        for j, other in enumerate(hyp):
            row.append(min(above[j] + _replace(symbol, other, unit), row[j] + insert[j], above[j + 1] + delete))
        rows.append(row)
    return rows


SHADES = 4  # colours for speakers
TICKS = 6  # about the most numbers under the line


@dataclass(frozen=True)
class TimelineMark:
    """A button of the time line. ``kind``: its CSS classes. ``style``: its place. ``time``: where it seeks to."""

    kind: str
    style: str
    time: float
    title: str
    text: str = ""


def timeline(cut: Cut, hyp: Hypothesis, said: Sequence[Word]) -> Dict[str, List[TimelineMark]]:
    """The lanes of a cut that have marks."""
    entities = [
        _bar(cut, e["start"], e["end"], e["text"], f"entity {e.get('type') or ''}".strip(), "entity")
        for e in hyp.get("entities") or ()
    ]
    lanes = {"ref": reference_marks(cut), "hyp": hypothesis_marks(cut, hyp, said), "ents": entities}
    return {name: marks for name, marks in lanes.items() if marks}


def reference_marks(cut: Cut) -> List[TimelineMark]:
    """The turns of the reference, and the endpoints if it is labelled for them."""
    labelled = (cut.custom or {}).get("tasks", ())
    turns = turns_of(cut) if labelled else []
    speakers = {speaker: i for i, speaker in enumerate(dict.fromkeys(turn.speaker for turn in turns))}
    marks = []
    for turn in turns:
        name = f"reference, speaker {turn.speaker}" if turn.speaker else "reference"
        marks.append(_bar(cut, turn.start, turn.end, turn.text, name, f"turn s{speakers[turn.speaker] % SHADES}"))
    if "endp" in labelled:
        marks += [_mark(cut, turn.end, "endpoint", "reference") for turn in turns if turn.custom.get("endpoint")]
    return marks


def hypothesis_marks(cut: Cut, hyp: Hypothesis, said: Sequence[Word]) -> List[TimelineMark]:
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


def _share(cut: Cut, time: float) -> float:
    """A time as a percentage of the cut."""
    return 100 * min(max(time / cut.duration, 0.0), 1.0)


def _bar(cut: Cut, start: float, end: float, words: str, what: str, kind: str) -> TimelineMark:
    left = _share(cut, start)
    style = f"left:{left:.2f}%;width:{max(_share(cut, end) - left, 0.5):.2f}%"
    return TimelineMark(kind, style, start, f"{what}, {start:.2f} to {end:.2f} s: {words}", words)


def _mark(cut: Cut, time: float, what: str, side: str) -> TimelineMark:
    style = f"left:{_share(cut, time):.2f}%"
    return TimelineMark(f"mark {what.replace(' ', '-')}", style, time, f"{side}: {what} at {time:.2f} s")


def _ticks(seconds: float) -> List[Tuple[str, float]]:
    """Numbers under the time line at round steps, each with its place in percent."""
    step: Optional[float] = next((s for s in (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800) if seconds / s <= TICKS), 3600)
    ticks = []
    time = 0.0
    while time < 0.96 * seconds and step:  # a number needs some room
        ticks.append((f"{time:g} s", 100 * time / seconds))
        time += step
    return ticks


KINDS = {
    "sub": "substituted",
    "ins": "inserted",
    "del": "missing",
    "free": "not judged: the cut is not labelled for it",
}


@dataclass(frozen=True)
class Utterance:
    """A cut with its hypothesis, and the values by which the report lists them.

    ``rates`` (`metrics.error_rates.error_rates`) is None if the cut is not labelled; ``confidence`` is the mean over
    the words, None if the hypothesis has none.
    """

    cut: Cut
    hyp: Hypothesis
    rates: Optional[Mapping[str, Any]]
    confidence: Optional[float]
    language: str
    corpus: str


def utterance_of(cut: Cut, hyp: Hypothesis, corpus: Optional[str], apart: Sequence[str] = ()) -> Utterance:
    """Compare the words of a cut with those of its hypothesis.

    Args:
        apart: languages that are listed separately (see `languages.language_group`).
    """
    labelled = "tasks" in (cut.custom or {})
    turns = turns_of(cut)
    words = [word.text for word in written_words(hyp) if not word.is_task_token]
    rates = error_rates([([word for turn in turns for word in turn.words], words)]) if labelled else None
    plain = [word for word in hyp.get("words") or () if not is_task_token(word["text"])]
    confidences = [word["confidence"] for word in plain if word["confidence"] is not None]
    mean = sum(confidences) / len(confidences) if confidences else None
    languages = {language_group(turn.language, apart) for turn in turns if turn.language}
    language = languages.pop() if len(languages) == 1 else hyp.get("language")
    return Utterance(cut, hyp, rates, mean, language or "", corpus or "")


def card(item: Utterance, tasks: TaskSet, source: Optional[PlayerSource]) -> Dict[str, Any]:
    """The values of the macro ``card`` in utterance.html.j2."""
    cut, hyp = item.cut, item.hyp
    ref, judged = reference(cut, hyp, tasks)
    said = written_words(hyp)
    pairs = align(ref, said, judged) if item.rates is not None else [Pair("free", None, word) for word in said]
    return {
        "id": cut.id,
        "language": item.language,
        "corpus": item.corpus,
        "errors": item.rates["errors"] if item.rates else 0,
        "wer": item.rates["wer"] if item.rates else 0,
        "seconds": cut.duration,
        "about": _about(item, pairs),
        "source": source,
        "lanes": timeline(cut, hyp, said),
        "ticks": _ticks(cut.duration),
        # Texts that are too long to be aligned are shown without alignment.
        "columns": None if pairs is None else [column(pair) for pair in pairs],
        "reference": " ".join(ref),
        "hypothesis": " ".join(word.text for word in said),
    }


def reference(cut: Cut, hyp: Hypothesis, tasks: TaskSet) -> Tuple[List[str], frozenset]:
    """Words and task tokens of the decoded tasks, and all task tokens of those that the cut is labelled for."""
    decoded = tasks if hyp.get("tasks") is None else tasks.subset(hyp["tasks"])
    labelled = (cut.custom or {}).get("tasks", ())
    judged = frozenset(symbol for task in decoded.tasks if task.name in labelled for symbol in task.symbols)
    return decoded.render(transcript_of(cut, decoded)).split(), judged


def column(pair: Pair) -> Dict[str, Any]:
    """One column of the alignment: the reference above, the hypothesis below."""
    start, notes = None, [KINDS[pair.kind]] if pair.kind in KINDS else []
    if pair.hyp is not None:
        start = pair.hyp.start
        if start is not None:
            notes.append(f"{start:.2f} s")
        if pair.hyp.confidence is not None:
            notes.append(f"confidence {pair.hyp.confidence:.2f}")
    return {
        "kind": f"{pair.kind} token" if pair.is_token else pair.kind,
        "time": start,
        "title": ", ".join(notes) or None,
        "ref": "" if pair.ref is None else pair.ref,
        "hyp": "" if pair.hyp is None else pair.hyp.text,
    }


def _about(item: Utterance, pairs: Optional[Sequence[Pair]]) -> List[str]:
    """Language, corpus, length and errors."""
    about = [part for part in (item.language, item.corpus, f"{item.cut.duration:.1f} s") if part]
    if item.rates is not None:
        ins, delete, sub = count_errors(pairs) if pairs is not None else (None, None, None)
        parts = "" if pairs is None else f" ({sub} substituted, {delete} missing, {ins} inserted)"
        wrong = f"{item.rates['errors']} of {item.rates['words']} words"
        about.append(f"WER {percent(item.rates['wer'])} %: {wrong}{parts}")
        about.append(f"labelled for {', '.join((item.cut.custom or {}).get('tasks', ()))}")
    if item.confidence is not None:
        about.append(f"confidence {item.confidence:.2f}")
    return about

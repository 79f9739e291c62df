"""Does a recording hold its text? Whisper-base hears the clips of a corpus, and their texts are compared with it.

Whisper hears 30 seconds at a time, so that short clips are heard several together, in windows with pauses between
them. A window's words are aligned with the texts of its clips, letter by letter, and each clip gets the errors that
fall on it. Clips with too many are heard once more, in windows with others beside them and longer pauses, and are bad
only if they have too many there as well.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import kaldialign
import numpy as np
from corpus.clips import Clip
from whisper_pass import load_whisper
from whisper_words import spell_numbers

from tokenverse_pp.base.errors import UserError

SAMPLE_RATE = 16000
LONGEST_WINDOW = 28.0
ROUNDS = ((0.5, 100), (1.5, 5))
"""Pause between clips in seconds, and clips a window at most, when first heard and when heard again."""

MOST_ERRORS = 0.5
"""Errors by letter of the text, above which a pair is bad: insertions, deletions and substitutions."""

SEED = 1
EPSILON = "*"


@dataclass(frozen=True)
class Window:
    """Clips that were heard together in one round, and what Whisper wrote of them."""

    round: int
    clips: Tuple[str, ...]
    text: str


def plan_windows(clips: Sequence[str], seconds: Mapping[str, float], pause: float, most: int) -> List[Tuple[str, ...]]:
    """Clips in the order given, as many in a window as fit; a clip longer than a window is alone in one."""
    windows: List[List[str]] = []
    length = 0.0
    for clip in clips:
        if not windows or length + pause + seconds[clip] > LONGEST_WINDOW or len(windows[-1]) >= most:
            windows.append([])
            length = 0.0
        windows[-1].append(clip)
        length += seconds[clip] + pause
    return [tuple(window) for window in windows]


def letters(text: str) -> str:
    """What is compared: the normalised words, numbers in letters, without spaces and apostrophes."""
    return "".join(word for word, _ in spell_numbers(text, "en")).replace("'", "")


def clip_errors(texts: Sequence[str], heard: str) -> List[float]:
    """Errors by letter of each text (letters only), once all are aligned with what was heard.

    What was heard between two texts counts for both.
    """
    owner = [index for index, text in enumerate(texts) for _ in text]
    counts = [0] * len(texts)
    position = 0
    for ref, hyp in kaldialign.align(list("".join(texts)), list(heard), EPSILON):
        if ref == EPSILON:
            around = {owner[min(position, len(owner) - 1)], owner[max(position - 1, 0)]} if owner else set()
            for index in around:
                counts[index] += 1
            continue
        counts[owner[position]] += ref != hyp
        position += 1
    return [count / max(1, len(text)) for count, text in zip(counts, texts)]


def read_windows(path: Path) -> List[Window]:
    """What was heard so far; a last line that a kill cut short is left out.

    Raises:
        UserError: naming file and line, for anything else that is no record.
    """
    if not path.is_file():
        return []
    found = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            found.append(Window(int(row["round"]), tuple(row["clips"]), str(row["text"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: expected a record of a window: {error}") from error
    if lines[-1]:
        path.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
    return found


def errors_of(clips: Iterable[Clip], windows: Iterable[Window]) -> Dict[str, float]:
    """The least error of each clip that was heard."""
    texts = {clip.id: letters(clip.text) for clip in clips}
    errors: Dict[str, float] = {}
    for window in windows:
        if any(clip not in texts for clip in window.clips):
            continue  # heard when other clips were read from the packages
        found = clip_errors([texts[clip] for clip in window.clips], letters(window.text))
        for clip, error in zip(window.clips, found):
            errors[clip] = min(error, errors.get(clip, error))
    return errors


class Listener:
    """faster-whisper on one CPU thread, English, greedy.

    Raises:
        UserError: faster-whisper is not installed.
    """

    def __init__(self, folder: Path, compute_type: str):
        self.model = load_whisper(folder, compute_type)

    def __call__(self, samples: np.ndarray) -> str:
        """What is heard in ``(T,)`` samples of at most 30 seconds."""
        segments, _ = self.model.transcribe(
            samples,
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
            no_speech_threshold=None,
        )
        return " ".join(segment.text.strip() for segment in segments)


def hear_all(
    clips: Sequence[Clip],
    load: Callable[[Clip], np.ndarray],
    listen: Callable[[np.ndarray], str],
    output: Path,
    progress: Callable[[Sequence], Iterable] = lambda windows: windows,
) -> Dict[str, float]:
    """Hears what `output` does not hold yet, both rounds, and returns the least error of each clip.

    Args:
        clips: in a fixed order, on which the windows depend.
        load: samples ``(T,)`` of a clip at 16 kHz.
        listen: what is heard in samples.
        output: JSON lines, one a window, appended to: a stopped run goes on where it was.
        progress: around the windows of a round, for a progress bar.
    """
    by_id = {clip.id: clip for clip in clips}
    seconds = {clip.id: len(load(clip)) / SAMPLE_RATE for clip in clips}
    order: Optional[List[str]] = [clip.id for clip in clips]
    output.parent.mkdir(parents=True, exist_ok=True)
    for number, (pause, most) in enumerate(ROUNDS, start=1):
        if number > 1:
            errors = errors_of(clips, (window for window in read_windows(output) if window.round < number))
            order = [clip for clip in order or () if errors[clip] > MOST_ERRORS]
            random.Random(SEED).shuffle(order)
        done = {(window.round, window.clips) for window in read_windows(output)}
        plan = [w for w in plan_windows(order or (), seconds, pause, most) if (number, w) not in done]
        with open(output, "a", encoding="utf-8") as file:
            for window in progress(plan):
                text = listen(join([load(by_id[clip]) for clip in window], pause))
                row = {"round": number, "clips": window, "text": text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
    return errors_of(clips, read_windows(output))


def join(pieces: Sequence[np.ndarray], pause: float) -> np.ndarray:
    """The pieces with a pause of digital silence behind each."""
    silence = np.zeros(round(pause * SAMPLE_RATE), np.float32)
    return np.concatenate([part for piece in pieces for part in (piece, silence)])

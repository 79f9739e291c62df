"""A hypothesis as one line of hyps.jsonl: text, tokens, times, and what the tasks said, in seconds."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from tokenverse_pp.search.confidence import Calibration
from tokenverse_pp.search.hypothesis import Hypothesis, TimedWord
from tokenverse_pp.tasks.base import TaskSet, seconds
from tokenverse_pp.tasks.transcript import Mark, Transcript
from tokenverse_pp.tokenizer import Tokenizer

CONFIDENCE_DIGITS = 6  # most words of a good model are between 0.999 and 1


def read_words(words: Sequence[TimedWord], tasks: TaskSet) -> Tuple[Transcript, List[TimedWord], List[Mark]]:
    """Timed words and task tokens -> transcript, its plain words, and the task tokens between them."""
    plain = [word for word in words if not word.is_task_token]
    marks, position = [], 0
    for word in words:
        if word.is_task_token:
            marks.append(Mark(position, word.text, word.start))
        else:
            position += 1
    return tasks.read([word.text for word in plain], marks), plain, marks


def to_record(
    cut_id: str,
    hypothesis: Hypothesis,
    tokenizer: Tokenizer,
    active: TaskSet,
    frame_shift: float,
    calibration: Optional[Calibration] = None,
) -> Dict[str, Any]:
    """One line of hyps.jsonl (docs/decoding.md).

    Args:
        cut_id: of the utterance.
        hypothesis: its best.
        tokenizer: gives the pieces.
        active: the tasks that were decoded; an inactive task's key is absent, not empty.
        frame_shift: seconds an encoder output frame.
        calibration: of the model (`read_calibration`); without one, ``confidence`` is the raw value.
    """
    pieces = tokenizer.pieces(hypothesis.tokens)
    words = hypothesis.words(pieces, frame_shift)
    transcript, plain, marks = read_words(words, active)
    record: Dict[str, Any] = {
        "id": cut_id,
        "text": " ".join(word.text for word in words),
        "tokens": pieces,
        "times": [seconds(time) for time in hypothesis.times(frame_shift)],
        "words": [_word(word, calibration) for word in words],
        "score": hypothesis.score,
        "tasks": list(active.names),
    }
    for task in active.tasks:
        record.update(task.record(transcript, plain, [mark for mark in marks if task.owns(mark.token)]))
    return record


def _word(word: TimedWord, calibration: Optional[Calibration]) -> Dict[str, Any]:
    record = {"text": word.text, "start": seconds(word.start), "end": seconds(word.end)}
    raw = round(word.confidence, CONFIDENCE_DIGITS)
    if calibration is None:
        return {**record, "confidence": raw}
    calibrated = calibration(word.text, word.confidence)
    return {**record, "confidence": round(calibrated, CONFIDENCE_DIGITS), "raw_confidence": raw}

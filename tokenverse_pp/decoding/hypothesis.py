"""A decoded hypothesis: tokens with their frames and log-probabilities; words with times and confidences.

Confidences that mean what they say: of all words with confidence 0.8, four in five should be right.

`Hypothesis.words` gives the geometric mean of a word's posteriors, which is too sure or too shy, as the model happens
to be. A `Calibration` maps it, p, to

    logit(confidence) = a ln p - b ln(1 - p) + c,    a, b > 0

(beta calibration: Kull, Silva Filho and Flach, 2017; a = b is Platt scaling of the logit, a = b = 1 and c = 0 leave p
as it is), with one curve for words and one for task tokens. The order of confidences stays: only their meaning changes.
The curves are fitted on decoded speech that has labels (`tokenverse-pp calibrate`), and are kept beside the weights.

A hypothesis as one line of hyps.jsonl: text, tokens, times, and what the tasks said, in seconds.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_json
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.tasks.base import TaskSet, seconds
from tokenverse_pp.tasks.transcript import Answers, TaskMark, TimedWord, is_task_token, pieces_to_words


@dataclass(frozen=True)
class Hypothesis:
    """What a search found.

    Args:
        tokens: vocabulary ids, without blanks.
        frames: for each token the encoder frame at which it was written (only ``full_beam`` writes several at one).
        log_probs: for each token its log-probability (natural logarithm) at that frame, given the tokens before it.
        log_prob: of the token sequence: summed over frames, blanks included, and over those alignments that the
            search merged.
        score: what the n-best list is sorted by: ``log_prob`` with the bonuses for hotwords and length (which the other
            numbers leave out); under ``SearchOptions.length_norm`` divided by (tokens + context size).
    """

    tokens: Tuple[int, ...]
    frames: Tuple[int, ...]
    log_probs: Tuple[float, ...]
    log_prob: float
    score: float

    def times(self, frame_shift: float) -> List[float]:
        """The start of each token's frame in seconds; ``frame_shift`` is the model's ``output_frame_shift``."""
        return [frame * frame_shift for frame in self.frames]

    def words(self, pieces: Sequence[str], frame_shift: float) -> List[TimedWord]:
        """Words and task tokens with times and confidences.

        A word starts where the frame of its first piece starts, and ends where the frame of its last piece ends: a
        transducer says when it wrote a piece, not how long it was spoken, so a word of one piece lasts one frame. Its
        confidence is the geometric mean of its pieces' probabilities.

        Args:
            pieces: the surface of each of ``tokens`` (SentencePiece pieces and task tokens).
            frame_shift: seconds an encoder frame.
        """
        if len(pieces) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens, but {len(pieces)} pieces")
        # `pieces_to_words` takes the first piece's time: with indices as times it says which pieces make a word.
        texts, starts = pieces_to_words(pieces, [float(i) for i in range(len(pieces))])
        bounds = [int(start) for start in starts or []] + [len(pieces)]
        return [self._word(text, a, b, frame_shift) for text, a, b in zip(texts, bounds, bounds[1:])]

    def _word(self, text: str, first: int, end: int, frame_shift: float) -> TimedWord:
        mean = sum(self.log_probs[first:end]) / (end - first)
        return TimedWord(
            text,
            start=self.frames[first] * frame_shift,
            end=(self.frames[end - 1] + 1) * frame_shift,
            confidence=min(1.0, math.exp(mean)),
        )


CALIBRATION = "calibration.json"  # in a model folder
LEAST = 1e-6  # p is kept this far from 0 and 1
FEWEST = 20  # examples that a curve is fitted to
BINS = 10
Example = Tuple[float, bool]  # raw confidence of a word or task token, and whether it is right


@dataclass(frozen=True)
class Curve:
    """One beta calibration; by default it changes nothing."""

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0

    def __call__(self, p: float) -> float:
        """The calibrated confidence of a raw one."""
        p = min(max(p, LEAST), 1 - LEAST)
        logit = self.a * math.log(p) - self.b * math.log1p(-p) + self.c
        return 1 / (1 + math.exp(-logit)) if logit > 0 else math.exp(logit) / (1 + math.exp(logit))


@dataclass(frozen=True)
class Calibration:
    """One curve for words, one for task tokens."""

    words: Curve = field(default_factory=Curve)
    tasks: Curve = field(default_factory=Curve)

    def __call__(self, text: str, confidence: float) -> float:
        """The calibrated confidence of a word or task token."""
        return (self.tasks if is_task_token(text) else self.words)(confidence)

    def write(self, path: Union[str, Path], more: Optional[Mapping[str, Any]] = None) -> None:
        """Write as JSON, with whatever else should be known of it."""
        write_json(path, {**asdict(self), **(more or {})})


def read_calibration(folder: Optional[Path]) -> Optional[Calibration]:
    """The calibration of a model folder (such as `Loaded.folder`); None where there is none.

    Raises:
        UserError: for a file that is no calibration.
    """
    if folder is None or not (folder / CALIBRATION).is_file():
        return None
    try:
        data = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))
        curves = [Curve(*(float(data[name][key]) for key in "abc")) for name in ("words", "tasks")]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise UserError(f"{folder / CALIBRATION}: no calibration: expected a, b, c of 'words' and of 'tasks'") from None
    return Calibration(*curves)


def fit_curve(examples: Sequence[Example]) -> Curve:
    """The curve of least cross-entropy (L-BFGS), under a weak normal prior around the one that changes nothing.

    With fewer than `FEWEST` examples, that one itself.
    """
    import torch  # only to fit: `tokenverse_pp.runtime`, which has none, calibrates too

    if len(examples) < FEWEST:
        return Curve()
    p = torch.tensor([p for p, _ in examples], dtype=torch.float64).clamp(LEAST, 1 - LEAST)
    right = torch.tensor([right for _, right in examples], dtype=torch.float64)
    at = torch.zeros(3, dtype=torch.float64, requires_grad=True)  # ln a, ln b, c
    optimiser = torch.optim.LBFGS([at], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logit = at[0].exp() * p.log() - at[1].exp() * torch.log1p(-p) + at[2]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logit, right, reduction="sum")
        value = value + at.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    log_a, log_b, c = at.tolist()
    return Curve(math.exp(log_a), math.exp(log_b), c)


def expected_calibration_error(examples: Sequence[Example]) -> float:
    """ECE (Guo et al., 2017): |mean confidence - share that is right| of 10 equal bins, weighted by their examples."""
    bins: List[List[Example]] = [[] for _ in range(BINS)]
    for p, right in examples:
        bins[min(int(p * BINS), BINS - 1)].append((p, right))
    gaps = (abs(sum(p for p, _ in members) - sum(right for _, right in members)) for members in bins)
    return sum(gaps) / max(len(examples), 1)


def brier_score(examples: Sequence[Example]) -> float:
    """Mean squared difference between the confidence and 1 (right) or 0 (wrong)."""
    return sum((p - right) ** 2 for p, right in examples) / max(len(examples), 1)


def quality(examples: Sequence[Example]) -> Dict[str, float]:
    """Examples, share that is right, ECE and Brier score."""
    return {
        "examples": len(examples),
        "right": sum(right for _, right in examples) / max(len(examples), 1),
        "ece": expected_calibration_error(examples),
        "brier": brier_score(examples),
    }


def cross_validate(utterances: Sequence[Sequence[Example]]) -> Dict[str, Dict[str, float]]:
    """`quality` before and after: every second utterance is calibrated by a curve fitted on the others."""
    halves = [[example for examples in utterances[start::2] for example in examples] for start in (0, 1)]
    after: List[Example] = []
    for mine, others in (halves, halves[::-1]):
        curve = fit_curve(others)
        after.extend((curve(p), right) for p, right in mine)
    return {"before": quality(halves[0] + halves[1]), "after": quality(after)}


CONFIDENCE_DIGITS = 6  # most words of a good model are between 0.999 and 1


def read_words(words: Sequence[TimedWord], tasks: TaskSet) -> Tuple[Answers, List[TimedWord], List[TaskMark]]:
    """Timed words and task tokens -> transcript, its plain words, and the task tokens between them."""
    plain = [word for word in words if not word.is_task_token]
    marks, position = [], 0
    for word in words:
        if word.is_task_token:
            marks.append(TaskMark(position, word.text, word.start))
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

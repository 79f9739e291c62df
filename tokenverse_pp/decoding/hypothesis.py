"""Hypotheses of the search, and the calibration of confidences.

Four in five words with a calibrated confidence of 0.8 should be correct. The geometric mean p of a word's posteriors is
too high or too low, depending on the model. A `Calibration` maps p to

    logit(confidence) = a ln p - b ln(1 - p) + c,    a, b > 0

(beta calibration: Kull, Silva Filho and Flach, 2017; a = b is Platt scaling of the logit, a = b = 1 and c = 0 leave p
unchanged), with one curve for words and one for task tokens. The order of confidences does not change. The curves are
fitted on decoded, labelled speech (`tokenverse-pp calibrate`) and stored in the model's folder.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple, Union

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import write_json
from tokenverse_pp.tasks.result import words_of_tokens
from tokenverse_pp.tasks.transcript import Word, is_task_token


@dataclass(frozen=True)
class Hypothesis:
    """A hypothesis of a search.

    Args:
        tokens: vocabulary ids, without blanks.
        frames: the encoder frame at which each token was written (only ``full_beam``, and greedy search of models with
            ``symbols_per_frame``, write several tokens at one frame).
        log_probs: the log-probability (natural logarithm) of each token at its frame, given the tokens before it.
        log_prob: the log-probability of the token sequence, summed over frames, blanks included, and over the
            alignments that the search merged.
        score: the sort key of the n-best list: ``log_prob`` plus the bonuses for hotwords, length and language model
            (which the other numbers leave out); with ``SearchOptions.length_norm`` divided by (tokens + context size).
        pauses: if requested, for each token the probability of an endpoint before the next word piece (0 for task
            tokens); see `tokenverse_pp.decoding.pauses`.
    """

    tokens: Tuple[int, ...]
    frames: Tuple[int, ...]
    log_probs: Tuple[float, ...]
    log_prob: float
    score: float
    pauses: Optional[Tuple[float, ...]] = None

    def times(self, frame_shift: float) -> List[float]:
        """The start of each token's frame in seconds; ``frame_shift`` is the model's ``output_frame_shift``."""
        return [frame * frame_shift for frame in self.frames]

    def words(self, pieces: Sequence[str], frame_shift: float) -> List[Word]:
        """Words and task tokens with times and confidences, from the surface of each token (`words_of_tokens`)."""
        if len(pieces) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens, but {len(pieces)} pieces")
        return words_of_tokens(pieces, self.frames, self.log_probs, frame_shift)


NOTHING = Hypothesis((), (), (), 0.0, 0.0)
CALIBRATION = "calibration.json"  # in a model folder
LEAST = 1e-6  # p is kept this far from 0 and 1


@dataclass(frozen=True)
class Curve:
    """One beta calibration; by default it changes nothing."""

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0

    def __call__(self, p: float) -> float:
        """Return the calibrated confidence for the raw confidence ``p``."""
        p = min(max(p, LEAST), 1 - LEAST)
        logit = self.a * math.log(p) - self.b * math.log1p(-p) + self.c
        return 1 / (1 + math.exp(-logit)) if logit > 0 else math.exp(logit) / (1 + math.exp(logit))


@dataclass(frozen=True)
class Calibration:
    """Curves for words and for task tokens, and thresholds of endpoint probabilities.

    ``endpoints`` maps a median latency in milliseconds to the threshold of endpoint probabilities with the fewest false
    cut-offs (`tokenverse-pp endpoints --store`). ``endpoint_chunk_ms``: the chunk size for which they hold, 0 for full
    context.
    """

    words: Curve = field(default_factory=Curve)
    tasks: Curve = field(default_factory=Curve)
    endpoints: Mapping[int, float] = field(default_factory=dict, hash=False)
    endpoint_chunk_ms: Optional[int] = None

    def __call__(self, text: str, confidence: float) -> float:
        """The calibrated confidence of a word or task token."""
        return (self.tasks if is_task_token(text) else self.words)(confidence)

    def write(self, path: Union[str, Path], more: Optional[Mapping[str, Any]] = None) -> None:
        """Write as JSON, with the additional entries ``more``."""
        found = {"words": asdict(self.words), "tasks": asdict(self.tasks)}
        if self.endpoints:
            thresholds = {str(latency): threshold for latency, threshold in self.endpoints.items()}
            found["endpoints"] = {"chunk_ms": self.endpoint_chunk_ms, "thresholds": thresholds}
        write_json(path, {**found, **(more or {})})

    def update(self, path: Union[str, Path], target: Union[str, Path, None] = None) -> None:
        """Update the JSON file and keep its other entries. Write to ``target`` instead if ``path`` is a copy of it."""
        path = Path(path)
        said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        more = {key: value for key, value in said.items() if key not in ("words", "tasks", "endpoints")}
        self.write(target or path, more)


def read_calibration(folder: Optional[Path]) -> Optional[Calibration]:
    """Read the calibration of a model folder; None if it has none (raises UserError for a file that is none)."""
    if folder is None or not (folder / CALIBRATION).is_file():
        return None
    try:
        data = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))
        words, tasks = (Curve(*(float(data[name][key]) for key in "abc")) for name in ("words", "tasks"))
        for curve in (words, tasks):
            if not all(map(math.isfinite, (curve.a, curve.b, curve.c))) or min(curve.a, curve.b) <= 0:
                raise ValueError(curve)
        stored = data.get("endpoints") or {"chunk_ms": None, "thresholds": {}}
        endpoints = {int(latency): float(threshold) for latency, threshold in stored["thresholds"].items()}
        if not all(0 <= threshold <= 1 for threshold in endpoints.values()):
            raise ValueError(endpoints)
        chunk_ms = None if stored["chunk_ms"] is None else int(stored["chunk_ms"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        said = "no calibration: expected a, b (above 0) and c of 'words' and of 'tasks'"
        raise UserError(f"{folder / CALIBRATION}: {said}") from None
    return Calibration(words, tasks, endpoints, chunk_ms)

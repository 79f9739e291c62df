"""Confidences that mean what they say: of all words with confidence 0.8, four in five should be right.

`Hypothesis.words` gives the geometric mean of a word's posteriors, which is too sure or too shy, as the model happens
to be. A `Calibration` maps it, p, to

    logit(confidence) = a ln p - b ln(1 - p) + c,    a, b > 0

(beta calibration: Kull, Silva Filho and Flach, 2017; a = b is Platt scaling of the logit, a = b = 1 and c = 0 leave p
as it is), with one curve for words and one for task tokens. The order of confidences stays: only their meaning changes.
The curves are fitted on decoded speech that has labels (`tokenverse-pp calibrate`), and are kept beside the weights.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from tokenverse_pp.errors import UserError
from tokenverse_pp.files import write_json
from tokenverse_pp.tasks.transcript import is_task_token

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

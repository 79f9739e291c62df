"""False cut-offs against latency: how turn detectors for voice agents are scored.

As in LiveKit's eot-bench (github.com/livekit/eot-bench, "Evaluation Model"): each pause of a turn is a decision. At the
pauses inside it the detector should wait ("hold"), at the last one it should fire. A detector gives scores at some
times of a pause; a policy fires at the first time at which the score is at least ``threshold`` and the
pause has lasted ``delay`` seconds, and at the latest after ``timeout`` seconds. Then

- the false cut-off rate is the share of inner pauses at which it fired before speech resumed;
- the latency is the time from the end of speech to the firing at the true ends, computing time not counted.

eot-bench reports the mean latency, which a timeout keeps finite. Here the median is also reported: it is finite without
a timeout, as long as the detector fires at more than half of the ends. Sweeping threshold and delay gives a curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

import numpy as np

BUDGETS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # seconds of latency at which rates are published
THRESHOLDS = tuple(round(0.01 * i, 2) for i in range(1, 100))
DELAYS = tuple(round(0.05 * i, 2) for i in range(21))


@dataclass(frozen=True)
class ScoredPause:
    """A pause and the scores of a detector.

    Args:
        times: seconds after the end of speech at which a score became known, in order; one before 0 still holds at 0.
        scores: the score from each of these times on.
        is_end: whether the turn is complete; otherwise the pause is inside it.
        length: seconds until speech resumes; infinite at a true end.
    """

    times: Tuple[float, ...]
    scores: Tuple[float, ...]
    is_end: bool
    length: float = math.inf

    def __post_init__(self) -> None:
        if len(self.times) != len(self.scores) or any(a >= b for a, b in zip(self.times, self.times[1:])):
            raise ValueError("expected a score for each time, and times that grow")


@dataclass(frozen=True)
class OperatingPoint:
    """The results of a policy; rates are fractions, latencies seconds (infinite if it never fires)."""

    threshold: float
    delay: float
    false_cutoffs: float
    median_latency: float
    mean_latency: float


def firing_times(
    pauses: Sequence[ScoredPause], thresholds: Sequence[float], delay: float = 0.0, timeout: float = math.inf
) -> np.ndarray:
    """Seconds after the end of speech at which each policy fires, even if speech has resumed: (thresholds, pauses).

    >>> pause = ScoredPause((-0.2, 0.1, 0.4), (0.2, 0.6, 0.9), True)
    >>> firing_times([pause], [0.1, 0.5, 0.9, 0.95], delay=0.2).tolist()
    [[0.2], [0.2], [0.4], [inf]]
    """
    wanted = np.asarray(thresholds, dtype=float)[:, None]
    found = np.full((len(wanted), len(pauses)), timeout)
    for n, pause in enumerate(pauses):
        times = np.asarray(pause.times, dtype=float)
        # A score holds until the next one: those that end before the pause has lasted `delay` are too early.
        valid = np.append(times[1:], math.inf) > delay
        fired = (np.asarray(pause.scores, dtype=float) >= wanted) & valid
        at = np.where(fired, np.maximum(times, delay), math.inf).min(axis=1, initial=math.inf)
        found[:, n] = np.minimum(at, timeout)
    return found


def operating_points(
    pauses: Sequence[ScoredPause],
    thresholds: Sequence[float] = THRESHOLDS,
    delays: Sequence[float] = DELAYS,
    timeout: float = math.inf,
) -> List[OperatingPoint]:
    """The operating point of each policy of a grid (raises ValueError without a true end or inner pause)."""
    is_end = np.array([pause.is_end for pause in pauses], dtype=bool)
    lengths = np.array([pause.length for pause in pauses])
    if is_end.all() or not is_end.any():
        raise ValueError("expected pauses at the ends of turns and pauses inside them")
    points = []
    for delay in delays:
        at = firing_times(pauses, thresholds, delay, timeout)
        cut = (at[:, ~is_end] < lengths[~is_end]).mean(1)
        latencies = np.sort(at[:, is_end], axis=1)
        count = latencies.shape[1]
        middle = (latencies[:, (count - 1) // 2] + latencies[:, count // 2]) / 2  # np.median computes inf - inf
        rows = zip(thresholds, cut.tolist(), middle.tolist(), latencies.mean(1).tolist())
        points += [OperatingPoint(float(threshold), float(delay), *row) for threshold, *row in rows]
    return points


def best_within(points: Sequence[OperatingPoint], latency: float) -> OperatingPoint:
    """The point with the fewest false cut-offs among those with at most this median latency (in ties, the fastest).

    If there is none, a point that always cuts off and never answers (rate 1, latency infinite).
    """
    quick = [point for point in points if point.median_latency <= latency + 1e-9]
    nothing = OperatingPoint(math.nan, math.nan, 1.0, math.inf, math.inf)
    return min(quick, key=lambda point: (point.false_cutoffs, point.median_latency), default=nothing)


def frontier(points: Sequence[OperatingPoint]) -> List[OperatingPoint]:
    """The Pareto-optimal points in rate and (finite) median latency, sorted by latency."""
    kept: List[OperatingPoint] = []
    for point in sorted(points, key=lambda p: (p.median_latency, p.false_cutoffs)):
        if math.isfinite(point.median_latency) and (not kept or point.false_cutoffs < kept[-1].false_cutoffs):
            kept.append(point)
    return kept


def silence_points(pauses: Sequence[ScoredPause], lengths: Sequence[float] = DELAYS) -> List[OperatingPoint]:
    """The detector that fires after a fixed length of silence, on the same pauses."""
    silent = [ScoredPause((0.0,), (1.0,), pause.is_end, pause.length) for pause in pauses]
    return operating_points(silent, (1.0,), lengths)


def fit_thresholds(points: Sequence[OperatingPoint], budgets: Sequence[float] = BUDGETS) -> Dict[int, float]:
    """The threshold of the best point within each budget (s), by milliseconds; unreachable budgets are left out.

    ``points``: of policies without a delay.

    >>> pauses = [ScoredPause((0.1,), (0.9,), True), ScoredPause((0.1,), (0.4,), False, 0.6)]
    >>> fit_thresholds(operating_points(pauses, (0.3, 0.5), (0.0,)), (0.05, 0.1))
    {100: 0.5}
    """
    best = {round(1000 * budget): best_within(points, budget) for budget in budgets}
    return {name: point.threshold for name, point in best.items() if math.isfinite(point.median_latency)}

"""Bootstrap confidence intervals of corpus scores, and of the difference between two systems.

Every score is a ratio of sums over utterances: WER = errors / words, F1 = 2 tp / (2 tp + fp + fn), accuracy = correct /
all. Each utterance is represented by its numerator and denominator. Utterances are resampled with replacement (Bisani
and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004). Two systems on the
same utterances are compared on the same draws (paired bootstrap).

Several trainings of a system (seeds) share each draw, and the score is the mean over them. The interval then covers
the choice of utterances, not the choice of seed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
BLOCK = 1_000  # resamples held in memory at a time

Interval = Tuple[float, float]


@dataclass(frozen=True)
class RatioCounts:
    """Numerator and denominator of each utterance, for one or more seeds of a system.

    Args:
        numerators: (S, N), the contribution of utterance n for seed s.
        denominators: (S, N).
        empty: the score if both sum to 0: 1 for an F1 with nothing to find and nothing found, 0 for a WER without words
            and errors. Errors without words are the WER, as in `error_rates.error_rates`.
    """

    numerators: np.ndarray
    denominators: np.ndarray
    empty: float = 0.0

    def __post_init__(self) -> None:
        if self.numerators.shape != self.denominators.shape or self.numerators.ndim != 2 or not self.numerators.size:
            raise ValueError(
                f"expected two arrays of the same shape (seeds, utterances), neither of them empty; got "
                f"{self.numerators.shape} and {self.denominators.shape}"
            )

    @classmethod
    def of(cls, seeds: Sequence[Sequence[Tuple[float, float]]], empty: float = 0.0) -> RatioCounts:
        """Counts from (numerator, denominator) of each utterance, for each seed."""
        both = np.asarray(seeds, dtype=np.float64)  # (S, N, 2)
        if both.ndim != 3 or both.shape[2] != 2:
            raise ValueError(f"expected (seeds, utterances, 2), the same utterances of every seed; got {both.shape}")
        return cls(both[:, :, 0], both[:, :, 1], empty)

    @property
    def utterances(self) -> int:
        """The number of utterances, N."""
        return int(self.numerators.shape[1])

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """The mean score over the seeds if utterance n occurs ``weights[r, n]`` times: (R, N) -> (R,)."""
        return self.scores_by_seed(weights).mean(axis=1)

    def scores_by_seed(self, weights: np.ndarray) -> np.ndarray:
        """Like `scores`, for each seed: (R, N) -> (R, S)."""
        tops, bottoms = weights @ self.numerators.T, weights @ self.denominators.T
        return np.where(bottoms > 0, tops / np.where(bottoms > 0, bottoms, 1.0), self.empty + tops)

    def score(self) -> float:
        """The mean score over the seeds, with each utterance once."""
        return float(self.scores(np.ones((1, self.utterances)))[0])

    def by_seed(self) -> List[float]:
        """The score of each seed."""
        return [float(x) for x in self.scores_by_seed(np.ones((1, self.utterances)))[0]]


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same utterances: scores, difference ``a - b``, and (95%) intervals of all three."""

    a: float
    b: float
    difference: float
    a_interval: Interval
    b_interval: Interval
    interval: Interval
    utterances: int
    resamples: int

    def as_dict(self) -> Dict[str, Any]:
        """As a JSON object."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}


@functools.lru_cache(maxsize=4)  # a test set has few sizes: all cuts, and those labelled for a task
def draws(utterances: int, resamples: int, seed: int) -> List[np.ndarray]:
    """The number of times each utterance is drawn in each resample: blocks of (R, N), fixed by the seed."""
    rng = np.random.default_rng(seed)
    chances = np.full(utterances, 1.0 / utterances)
    sizes = [min(BLOCK, resamples - done) for done in range(0, resamples, BLOCK)]
    return [rng.multinomial(utterances, chances, size=size).astype(np.float32) for size in sizes]


def bootstrap(counts: RatioCounts, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL) -> Interval:
    """The percentile interval of a score.

    >>> certain = RatioCounts.of([[(1, 2)] * 50])
    >>> bootstrap(certain, resamples=100)
    (0.5, 0.5)
    """
    return percentiles(np.concatenate([counts.scores(w) for w in draws(counts.utterances, resamples, seed)]), level)


def compare(
    a: RatioCounts, b: RatioCounts, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Comparison:
    """Compare two systems on the same utterances, in the same order (paired bootstrap; else ValueError)."""
    if a.utterances != b.utterances:
        raise ValueError(f"paired: both need the same utterances, got {a.utterances} and {b.utterances}")
    both = [(a.scores(w), b.scores(w)) for w in draws(a.utterances, resamples, seed)]
    of_a, of_b = (np.concatenate(parts) for parts in zip(*both))
    return Comparison(
        a.score(),
        b.score(),
        a.score() - b.score(),
        percentiles(of_a, level),
        percentiles(of_b, level),
        percentiles(of_a - of_b, level),
        a.utterances,
        resamples,
    )


def percentiles(samples: np.ndarray, level: float = LEVEL) -> Interval:
    """The central interval that contains the share ``level`` of the samples."""
    outside = (1.0 - level) / 2.0
    low, high = np.quantile(samples, [outside, 1.0 - outside])
    return float(low), float(high)

"""Scores of events that one token marks (speaker change, endpoint): by place in the words, and by time."""

from __future__ import annotations

import heapq
from typing import List, Sequence, Tuple

from tokenverse_pp.metrics.align import count_aligned
from tokenverse_pp.metrics.f1 import Prf, f1_score

Interval = Tuple[float, float]
Positions = Tuple[Sequence[str], Sequence[int], Sequence[str], Sequence[int]]


def score_positions(examples: Sequence[Positions]) -> Prf:
    """Precision, recall and F1 of tokens by their place in the aligned words, micro-averaged.

    Args:
        examples: (reference words, reference positions, hypothesis words, hypothesis positions) of each
            utterance; position p is the gap before word p. What counts as the same place:
            `align.count_aligned`.

    >>> score_positions([("ja nee".split(), [1, 2], "ja nou nee".split(), [2])])["recall"]
    0.5
    """
    tp = sum(count_aligned(*example) for example in examples)
    references = sum(len(example[1]) for example in examples)
    hypotheses = sum(len(example[3]) for example in examples)
    return f1_score(tp, hypotheses - tp, references - tp)


def score_times(examples: Sequence[Tuple[Sequence[Interval], Sequence[float]]], collar: float) -> Prf:
    """Precision, recall and F1 of events by their time, micro-averaged.

    Args:
        examples: (reference intervals, hypothesised times) of each utterance, in seconds. A time is right
            within ``[start - collar, end + collar]`` of an interval; each time and each interval counts once,
            and as many as possible are paired.
        collar: seconds of tolerance at both ends.

    >>> score_times([([(1.0, 1.5), (3.0, 3.0)], [1.7, 2.0])], collar=0.25)["f1"]
    0.5
    """
    tp = sum(_most_pairs(intervals, times, collar) for intervals, times in examples)
    references = sum(len(intervals) for intervals, _ in examples)
    hypotheses = sum(len(times) for _, times in examples)
    return f1_score(tp, hypotheses - tp, references - tp)


def _most_pairs(intervals: Sequence[Interval], times: Sequence[float], collar: float) -> int:
    """The size of a maximum one-to-one matching of times to intervals.

    Times in order; each takes, of the free intervals that hold it, the one that ends first (the usual
    exchange argument shows that no other choice pairs more).
    """
    ahead = sorted((start - collar, end + collar) for start, end in intervals)
    open_ends: List[float] = []
    pairs = seen = 0
    for time in sorted(times):
        while seen < len(ahead) and ahead[seen][0] <= time:
            heapq.heappush(open_ends, ahead[seen][1])
            seen += 1
        while open_ends and open_ends[0] < time:
            heapq.heappop(open_ends)
        if open_ends:
            heapq.heappop(open_ends)
            pairs += 1
    return pairs

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.metrics.f1 import score_positions, score_times

seconds = st.integers(0, 40).map(lambda n: n / 8)  # exact in binary: no rounding at the edges
intervals = st.lists(st.tuples(seconds, seconds).map(lambda pair: tuple(sorted(pair))), max_size=5)


def most_pairs(intervals, times, collar):
    """Try every assignment of times (or of nothing) to intervals."""
    slots = [*times, *[None] * len(intervals)]
    return max(
        sum(t is not None and a - collar <= t <= b + collar for (a, b), t in zip(intervals, order))
        for order in permutations(slots, len(intervals))
    )


@given(intervals, st.lists(seconds, max_size=4), st.sampled_from([0.0, 0.25, 0.5]))
def test_times_equal_brute_force(intervals, times, collar):
    scores = score_times([(intervals, times)], collar)
    tp = most_pairs(intervals, times, collar)
    assert (scores["tp"], scores["fp"], scores["fn"]) == (tp, len(times) - tp, len(intervals) - tp)


def test_collar_is_inclusive_at_both_ends():
    example = [([(1.0, 2.0)], [0.75]), ([(1.0, 2.0)], [2.25]), ([(1.0, 2.0)], [2.26])]
    assert score_times(example, collar=0.25)["tp"] == 2


def test_two_times_in_one_interval_count_once():
    scores = score_times([([(1.0, 2.0)], [1.2, 1.8])], collar=0.25)
    assert (scores["tp"], scores["fp"], scores["fn"]) == (1, 1, 0)


def test_utterances_are_not_mixed():
    """A time of one utterance never pairs with an interval of another."""
    assert score_times([([(1.0, 1.0)], []), ([], [1.0])], collar=0.5)["f1"] == 0


def test_positions_are_pooled():
    example = ("a b".split(), [1, 2], "a b".split(), [1])
    scores = score_positions([example, (["a"], [1], ["a"], [])])
    assert scores["precision"] == 1
    assert scores["recall"] == pytest.approx(1 / 3)

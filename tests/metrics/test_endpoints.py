"""False cut-offs against latency: the vectorised sweep against a loop that walks through each pause."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.metrics.endpoints import (
    ScoredPause,
    best_within,
    firing_times,
    fit_thresholds,
    frontier,
    operating_points,
    silence_points,
)

TENTHS = st.integers(0, 10).map(lambda i: i / 10)


@st.composite
def pauses(draw):
    is_end = draw(st.booleans())
    times = sorted(draw(st.lists(st.integers(-5, 20).map(lambda i: i / 10), max_size=6, unique=True)))
    scores = draw(st.lists(TENTHS, min_size=len(times), max_size=len(times)))
    length = math.inf if is_end else draw(st.integers(1, 20)) / 10
    return ScoredPause(tuple(times), tuple(scores), is_end, length)


SOME = st.lists(pauses(), max_size=8).map(
    lambda some: [*some, ScoredPause((0.1,), (0.5,), True), ScoredPause((0.1,), (0.5,), False, 0.3)]
)


def walked(pause, threshold, delay, timeout):
    """When a policy fires, by looking at what is known at every moment at which anything happens."""
    for now in sorted({*pause.times, delay}):
        known = [score for time, score in zip(pause.times, pause.scores) if time <= now]
        if now >= timeout:
            break
        if now >= delay and known and known[-1] >= threshold:
            return now
    return timeout


@given(SOME, st.lists(TENTHS, min_size=1, max_size=3), TENTHS, st.sampled_from([0.5, 1.5, math.inf]))
def test_firing_times_are_those_of_a_loop(some, thresholds, delay, timeout):
    found = firing_times(some, thresholds, delay, timeout)
    for row, threshold in zip(found.tolist(), thresholds):
        assert row == [walked(pause, threshold, delay, timeout) for pause in some]


@given(SOME, TENTHS, TENTHS, st.sampled_from([1.5, math.inf]))
def test_rates_and_latencies_are_those_of_a_loop(some, threshold, delay, timeout):
    (point,) = operating_points(some, [threshold], [delay], timeout)
    inner = [pause for pause in some if not pause.is_end]
    cut = sum(walked(pause, threshold, delay, timeout) < pause.length for pause in inner)
    latencies = [walked(pause, threshold, delay, timeout) for pause in some if pause.is_end]
    assert point.false_cutoffs == pytest.approx(cut / len(inner))
    assert point.median_latency == pytest.approx(statistics.median(latencies))
    assert point.mean_latency == pytest.approx(statistics.fmean(latencies))


@given(SOME, TENTHS)
def test_later_or_stricter_policies_cut_off_no_more_and_are_no_quicker(some, delay):
    steady = [ScoredPause(p.times, tuple(sorted(p.scores)), p.is_end, p.length) for p in some]
    points = operating_points(steady, [0.2, 0.5, 0.8], [delay, delay + 0.1])
    for first, second in (*zip(points, points[1:3]), (points[0], points[3])):
        assert second.false_cutoffs <= first.false_cutoffs
        assert second.median_latency >= first.median_latency


@given(SOME)
def test_the_best_point_within_a_latency_is_on_the_frontier_and_no_other_beats_it(some):
    points = operating_points(some, [0.1, 0.5, 0.9], [0.0, 0.2, 0.5])
    for budget in (0.1, 0.3, 1.0):
        best = best_within(points, budget)
        quick = [p for p in points if p.median_latency <= budget + 1e-9]
        assert best.false_cutoffs == min((p.false_cutoffs for p in quick), default=1.0)
        on_frontier = [p.false_cutoffs for p in frontier(points) if p.median_latency <= budget + 1e-9]
        assert min(on_frontier, default=1.0) == best.false_cutoffs


def test_silence_of_a_fixed_length_cuts_off_every_longer_pause_and_is_as_late_as_it_is_long():
    some = [ScoredPause((), (), False, length) for length in (0.2, 0.4, 0.6, 0.8)] + [ScoredPause((), (), True)]
    (point,) = silence_points(some, [0.5])
    assert (point.false_cutoffs, point.median_latency) == (0.5, 0.5)


def test_a_detector_that_knows_beats_silence_and_a_latency_that_is_not_reached_has_no_threshold():
    some = [ScoredPause((0.1,), (0.9,), True), ScoredPause((0.1,), (0.2,), False, 0.7)]
    assert best_within(operating_points(some), 0.3).false_cutoffs == 0.0
    assert best_within(silence_points(some), 0.3).false_cutoffs == 1.0
    assert set(fit_thresholds(operating_points(some, delays=(0.0,)), (0.05, 0.1, 0.3))) == {100, 300}


def test_without_ends_or_without_inner_pauses_there_is_no_rate():
    for one in (ScoredPause((), (), True), ScoredPause((), (), False, 0.5)):
        with pytest.raises(ValueError, match="expected pauses"):
            operating_points([one])
    with pytest.raises(ValueError, match="times that grow"):
        ScoredPause((0.1, 0.1), (0.1, 0.1), True)

"""Bootstrap intervals against scipy, against a plain loop, and by what must hold of any of them."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenverse_pp.metrics.bootstrap import RatioCounts, bootstrap, compare, draws, percentiles

COUNT = st.tuples(st.integers(0, 5), st.integers(1, 9))


def made_up(utterances=120, seeds=1, seed=0):
    """Counts like those of a WER: 1 to 12 words, a third of them wrong."""
    rng = np.random.default_rng(seed)
    words = np.tile(rng.integers(1, 13, size=utterances), (seeds, 1))
    return RatioCounts(rng.binomial(words, 1 / 3).astype(float), words.astype(float))


def by_plain_loop(a, b, resamples, seed):
    """The interval of the difference of two mean scores, drawn one utterance at a time."""
    rng = random.Random(seed)
    found = []
    for _ in range(resamples):
        ids = [rng.randrange(a.utterances) for _ in range(a.utterances)]
        scores = []
        for counts in (a, b):
            ratios = []
            for tops, bottoms in zip(counts.numerators, counts.denominators):
                top = bottom = 0.0
                for i in ids:
                    top += tops[i]
                    bottom += bottoms[i]
                ratios.append(top / bottom if bottom else counts.empty)
            scores.append(sum(ratios) / len(ratios))
        found.append(scores[0] - scores[1])
    found.sort()
    return found[round(0.025 * resamples)], found[round(0.975 * resamples) - 1]


def test_the_interval_is_that_of_scipy():
    scipy_stats = pytest.importorskip("scipy.stats")
    counts = made_up()
    data = (counts.numerators[0], counts.denominators[0])
    ratio = lambda errors, words, axis: errors.sum(axis=axis) / words.sum(axis=axis)
    theirs = scipy_stats.bootstrap(
        data, ratio, paired=True, vectorized=True, method="percentile", n_resamples=10_000, random_state=1
    ).confidence_interval
    ours = bootstrap(counts)
    width = theirs.high - theirs.low
    assert np.allclose(ours, (theirs.low, theirs.high), atol=0.04 * width), (ours, theirs)


def test_the_paired_interval_is_that_of_scipy():
    scipy_stats = pytest.importorskip("scipy.stats")
    a, b = made_up(seed=1), made_up(seed=2)
    b = RatioCounts(b.numerators.clip(max=a.denominators), a.denominators)
    difference = lambda x, y, n, axis: (x.sum(axis=axis) - y.sum(axis=axis)) / n.sum(axis=axis)
    theirs = scipy_stats.bootstrap(
        (a.numerators[0], b.numerators[0], a.denominators[0]), difference, paired=True, vectorized=True,
        method="percentile", n_resamples=10_000, random_state=1,
    ).confidence_interval  # fmt: skip
    ours = compare(a, b).interval
    assert np.allclose(ours, (theirs.low, theirs.high), atol=0.04 * (theirs.high - theirs.low)), (ours, theirs)


def test_seeds_are_drawn_jointly_as_a_plain_loop_does():
    a, b = made_up(60, seeds=3, seed=3), made_up(60, seeds=2, seed=4)
    low, high = by_plain_loop(a, b, 2000, seed=5)
    ours = compare(a, b, resamples=4000).interval
    assert np.allclose(ours, (low, high), atol=0.1 * (high - low)), (ours, low, high)


def test_pairing_cancels_what_is_hard_for_both():
    a = made_up(seed=6)
    b = RatioCounts(np.maximum(a.numerators - (np.arange(a.utterances) % 10 == 0), 0), a.denominators)
    found = compare(a, b)
    own = found.a_interval[1] - found.a_interval[0]
    assert found.interval[1] - found.interval[0] < own / 4
    assert found.interval[0] >= 0 and found.difference == pytest.approx(found.a - found.b)


def test_a_system_differs_from_itself_by_nothing():
    found = compare(made_up(), made_up(), resamples=500)
    assert found.difference == 0 and found.interval == (0.0, 0.0) and found.a_interval == found.b_interval


@given(st.lists(st.lists(COUNT, min_size=4, max_size=4), min_size=1, max_size=3), st.integers(0, 3))
@settings(max_examples=50)
def test_what_holds_of_any_counts(seeds, seed):
    counts = RatioCounts.of(seeds)
    each = [sum(n for n, _ in ratios) / sum(d for _, d in ratios) for ratios in seeds]
    assert counts.by_seed() == pytest.approx(each)
    assert counts.score() == pytest.approx(sum(each) / len(each))
    low, high = bootstrap(counts, resamples=200, seed=seed)
    single = [n / d for ratios in seeds for n, d in ratios]
    assert min(single) - 1e-9 <= low <= high <= max(single) + 1e-9
    # The order of the utterances does not matter to scores; the same seed gives the same interval.
    assert RatioCounts.of([ratios[::-1] for ratios in seeds]).score() == pytest.approx(counts.score())
    assert bootstrap(counts, resamples=200, seed=seed) == (low, high)


def test_draws_hold_as_many_utterances_as_there_are():
    blocks = draws(7, 2500, seed=0)
    weights = np.concatenate(blocks)
    assert weights.shape == (2500, 7) and (weights.sum(axis=1) == 7).all()
    assert np.allclose(weights.mean(axis=0), 1.0, atol=0.1)


def test_nothing_to_find_scores_as_f1_does():
    nothing = RatioCounts.of([[(0, 0)] * 5], empty=1.0)
    assert nothing.score() == 1.0 and bootstrap(nothing, resamples=100) == (1.0, 1.0)
    assert RatioCounts.of([[(0, 0)] * 5]).score() == 0.0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="the same utterances, got 5 and 6"):
        compare(made_up(5), made_up(6))
    with pytest.raises(ValueError, match="neither of them empty"):
        RatioCounts.of(np.zeros((1, 0, 2)))
    with pytest.raises(ValueError):
        RatioCounts.of([[(1, 2)], [(1, 2), (3, 4)]])


def test_percentiles_leave_out_as_much_at_both_ends():
    assert percentiles(np.arange(1001.0), 0.9) == pytest.approx((50.0, 950.0))

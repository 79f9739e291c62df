import pytest

from tokenverse_pp.metrics.f1 import f1_score


def test_ratios():
    scores = f1_score(tp=6, fp=2, fn=4)
    assert (scores["precision"], scores["recall"]) == (0.75, 0.6)
    assert scores["f1"] == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((0, 0, 0), (1, 1, 1)), ((0, 3, 0), (0, 0, 0)), ((0, 0, 3), (0, 0, 0)), ((0, 2, 2), (0, 0, 0))],
)
def test_zero_over_zero(counts, expected):
    scores = f1_score(*counts)
    assert (scores["precision"], scores["recall"], scores["f1"]) == expected

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.metrics.error_rates import error_rates, score_languages

words = st.lists(st.sampled_from("abcd"), max_size=8)


def levenshtein(ref, hyp):
    """Wagner and Fischer's algorithm."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(hyp) + 1)] for i in range(len(ref) + 1)]
    for i in range(1, len(ref) + 1):
        for j in range(1, len(hyp) + 1):
            table[i][j] = min(
                table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (ref[i - 1] != hyp[j - 1])
            )
    return table[-1][-1]


@given(st.lists(st.tuples(words, words), max_size=4))
def test_counts_equal_textbook(pairs):
    rates = error_rates(pairs)
    total = sum(len(ref) for ref, _ in pairs)
    assert rates["words"] == total
    assert rates["errors"] == sum(levenshtein(ref, hyp) for ref, hyp in pairs)
    assert rates["wer"] == pytest.approx(rates["errors"] / max(total, 1))
    assert rates["ins"] + rates["del"] + rates["sub"] == pytest.approx(rates["wer"])
    more_words = sum(len(hyp) - len(ref) for ref, hyp in pairs)
    assert (rates["ins"] - rates["del"]) * max(total, 1) == pytest.approx(more_words)


@given(st.lists(st.tuples(words, words), max_size=4))
def test_cer_is_over_the_joined_text(pairs):
    texts = [(" ".join(ref), " ".join(hyp)) for ref, hyp in pairs]
    errors = sum(levenshtein(ref, hyp) for ref, hyp in texts)
    assert error_rates(pairs)["cer"] == pytest.approx(errors / max(sum(len(ref) for ref, _ in texts), 1))


def test_empty_reference_gives_finite_numbers():
    assert error_rates([])["wer"] == 0
    rates = error_rates([([], ["a", "b"])])
    assert (rates["wer"], rates["ins"], rates["words"]) == (2, 2, 0)
    json.dumps(rates, allow_nan=False)


def test_errors_are_pooled_not_averaged():
    assert error_rates([(["a"], ["b"]), (["a"] * 9, ["a"] * 9)])["wer"] == pytest.approx(0.1)


def test_confusion_and_accuracy():
    scores = score_languages([("fr", "fr"), ("fr", "nl"), ("nl", "nl"), ("nl", None), ("nl", "")])
    assert scores["accuracy"] == 0.4
    assert scores["confusion"] == {"fr": {"fr": 1, "nl": 1}, "nl": {"nl": 1, "none": 2}}
    assert scores["utterances"] == 5


def test_nothing_to_score():
    assert score_languages([]) == {"accuracy": 0.0, "confusion": {}, "utterances": 0}

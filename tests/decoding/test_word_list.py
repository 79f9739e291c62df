"""The n-gram model of a word list, against the textbook's recursion."""

import gzip
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.decoding.ngram import ngrams_of_words, read_words

V = 4
BEGIN, END = V, V + 1
words = st.lists(
    st.tuples(st.lists(st.integers(0, V - 1), min_size=1, max_size=5), st.sampled_from([0.5, 1.0, 3.0, 20.0])),
    min_size=1,
    max_size=8,
)


def witten_bell(given_words, token, context):
    """(c + T P(token | shorter)) / (C + T) by counting; ``<s>`` is never predicted."""
    lower = witten_bell(given_words, token, context[1:]) if context else 1 / (V + 1)
    counts = {}
    for ids, weight in given_words:
        sentence = (BEGIN, *ids, END)
        for i in range(1, len(sentence)):
            if i >= len(context) and sentence[i - len(context) : i] == context:
                counts[sentence[i]] = counts.get(sentence[i], 0.0) + weight
    kinds = len(counts)
    return (counts.get(token, 0.0) + kinds * lower) / (sum(counts.values()) + kinds) if kinds else lower


@settings(max_examples=60, deadline=None)
@given(words, st.integers(1, 5), st.lists(st.integers(0, V - 1), max_size=5))
def test_probabilities_are_those_of_witten_and_bell_and_sum_to_one(given_words, order, history):
    model = ngrams_of_words(given_words, V, order)
    state = model.start
    for token in history:
        state = model.advance(state, token)
    found = np.exp(model.row(state))
    context = (BEGIN, *history)[-(order - 1) :] if order > 1 else ()
    expected = [0.0 if token == BEGIN else witten_bell(given_words, token, context) for token in range(V + 2)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    assert found.sum() == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(words, st.integers(2, 5))
def test_states_are_told_apart_by_what_follows_alone(given_words, order):
    """A state is the longest suffix that the model holds, so histories with the same last tokens meet in it."""
    model = ngrams_of_words(given_words, V, order)
    met = {}
    for history in itertools.product(range(V), repeat=3):
        state = 0
        for token in history:
            state = model.advance(state, token)
        assert 0 <= state < model.states
        met.setdefault(state, []).append(model.row(state))
    for rows in met.values():
        assert all((row == rows[0]).all() for row in rows)


def test_words_are_read_from_plain_and_packed_lists(tmp_path):
    plain, packed = tmp_path / "en.tsv", tmp_path / "en.tsv.gz"
    text = "the\t50000\ncat\t3.5\n\nthe\t2\n"
    plain.write_text(text, encoding="utf-8")
    with gzip.open(packed, "wt", encoding="utf-8") as file:
        file.write(text)
    assert read_words(plain) == read_words(packed) == {"the": 50002.0, "cat": 3.5}


@pytest.mark.parametrize("line", ["the", "the\tmany", "the\t0", "the\t-1", "the\tnan", "the\tinf", "the cat\t3", "\t3"])
def test_a_line_that_is_none_is_named(tmp_path, line):
    path = tmp_path / "en.tsv"
    path.write_text(f"a\t1\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"en\.tsv, line 2: expected 'word TAB number above 0'"):
        read_words(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\t1", b""])
def test_a_file_without_words_is_refused(tmp_path, content):
    path = tmp_path / "en.tsv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"en\.tsv: "):
        read_words(path)


def test_a_broken_gzip_file_is_refused(tmp_path):
    path = tmp_path / "en.tsv.gz"
    path.write_bytes(gzip.compress(b"the\t1\n" * 1000)[:20])
    with pytest.raises(UserError, match="cannot read words"):
        read_words(path)

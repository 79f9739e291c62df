from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenverse_pp.metrics.f1 import count_aligned, score_positions


def count(ref, hyp):
    """`count_aligned` of texts with a bar for each token."""
    return count_aligned(*_split(ref), *_split(hyp))


def _split(text):
    words, positions = [], []
    for word in text.split():
        if word == "|":
            positions.append(len(words))
        else:
            words.append(word)
    return words, positions


def most_matches(ref_words, ref_positions, hyp_words, hyp_positions):
    """By exhaustive recursion: walk every alignment of the words alone, gap by gap, tokens as a second thought."""

    @cache
    def best(i, j, ref_used, hyp_used):
        here = i in ref_positions and j in hyp_positions and not ref_used and not hyp_used
        options = []
        if here:
            errors, matches = best(i, j, True, True)
            options.append((errors, matches - 1))
        if i == len(ref_words) and j == len(hyp_words):
            options.append((0, 0))
        if i < len(ref_words):
            errors, matches = best(i + 1, j, False, hyp_used)
            options.append((errors + 1, matches))
        if j < len(hyp_words):
            errors, matches = best(i, j + 1, ref_used, False)
            options.append((errors + 1, matches))
        if i < len(ref_words) and j < len(hyp_words):
            errors, matches = best(i + 1, j + 1, False, False)
            options.append((errors + (ref_words[i] != hyp_words[j]), matches))
        return min(options)

    return -best(0, 0, False, False)[1]


@st.composite
def marked_words(draw):
    words = draw(st.lists(st.sampled_from("abc"), max_size=6))
    return words, sorted(draw(st.sets(st.integers(0, len(words)))))


@settings(max_examples=300)
@given(marked_words(), marked_words())
def test_equals_exhaustive_search(ref, hyp):
    assert count_aligned(*ref, *hyp) == most_matches(*ref, *hyp)


@pytest.mark.parametrize(
    ("ref", "hyp", "right"),
    [
        ("a b | c d", "a b | c d", 1),
        ("a b | c d", "a b c | d", 0),  # right words: one off is wrong
        ("a b | c d", "a x | c d", 1),  # the word before is wrong
        ("a b | c d", "a b | x d", 1),  # the word after is wrong
        ("a b | c d", "a b x | c d", 1),  # a word inserted before
        ("a b | c d", "a b | x c d", 1),  # a word inserted after
        ("a b | c d", "a | c d", 1),  # the word before deleted
        ("a b | c d", "a b | d", 1),  # the word after deleted
        ("a b |", "a b |", 1),
        ("a | b |", "a b x |", 1),
        ("a a a | a", "a a | a a", 0),  # equal words do not blur the place
        ("| a", "a |", 0),
        ("|", "|", 1),
        ("", "| |", 0),
    ],
)
def test_examples(ref, hyp, right):
    assert count(ref, hyp) == right


def test_one_to_one():
    """One reference token, and a hypothesised one on both sides of an inserted word."""
    assert count("a | b", "a | x | b") == 1
    assert count("a | x | b", "a | b") == 1


@given(marked_words(), st.data())
def test_right_words_need_the_same_positions(ref, data):
    words, positions = ref
    others = data.draw(st.sets(st.integers(0, len(words))))
    scores = score_positions([(words, positions, words, sorted(others))])
    assert scores["tp"] == len(others & set(positions))
    assert scores["fp"] == len(others - set(positions))
    assert scores["fn"] == len(set(positions) - others)

"""Metrics of events and entities against exhaustive search, networkx, and SLUE's scorer."""

from collections import Counter
from functools import cache
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenverse_pp.metrics.f1 import (
    count_aligned,
    f1_score,
    maximum_matching,
    score_entities,
    score_positions,
    score_times,
    similarity,
)


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


def test_edges_of_the_collar_are_inside():
    """Of decimal seconds: 173 of these 4000 were outside by rounding."""
    for collar in (0.25, 0.5):
        ends = [i / 100 for i in range(2000)]
        late = [([(end, end)], [round(end + collar, 3)]) for end in ends]
        soon = [([(end, end)], [round(end - collar, 3)]) for end in ends]
        assert score_times([*late, *soon], collar)["fn"] == 0
        assert score_times([([(end, end)], [round(end + collar + 0.001, 3)]) for end in ends], collar)["tp"] == 0


def test_utterances_are_not_mixed():
    """A time of one utterance never pairs with an interval of another."""
    assert score_times([([(1.0, 1.0)], []), ([], [1.0])], collar=0.5)["f1"] == 0


def test_positions_are_pooled():
    example = ("a b".split(), [1, 2], "a b".split(), [1])
    scores = score_positions([example, (["a"], [1], ["a"], [])])
    assert scores["precision"] == 1
    assert scores["recall"] == pytest.approx(1 / 3)


WORDS = ["ab", "abc", "xb", "y"]
phrases = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(["A", "B", "C"])), max_size=5)
graphs = st.integers(1, 7).flatmap(lambda n: st.lists(st.lists(st.integers(0, n), unique=True), max_size=7))


@settings(max_examples=300)
@given(graphs)
def test_matching_equals_networkx(admissible):
    networkx = pytest.importorskip("networkx")
    graph = networkx.Graph()
    left = [("left", i) for i in range(len(admissible))]
    graph.add_nodes_from(left)
    graph.add_edges_from((("left", i), ("right", j)) for i, row in enumerate(admissible) for j in row)
    expected = networkx.bipartite.hopcroft_karp_matching(graph, top_nodes=left)
    assert maximum_matching(admissible) == len(expected) // 2


def slue_f1(examples):
    """As in SLUE's scorer: repeated (tag, phrase) pairs get a running number, then sets are intersected."""

    def distinct(items):
        seen = Counter()
        numbered = set()
        for phrase, tag in items:
            numbered.add((tag, phrase, seen[(tag, phrase)]))
            seen[(tag, phrase)] += 1
        return numbered

    right = sum(len(distinct(ref) & distinct(hyp)) for ref, hyp in examples)
    references, hypotheses = (sum(len(example[k]) for example in examples) for k in (0, 1))
    precision, recall = right / max(hypotheses, 1), right / max(references, 1)
    return 2 * precision * recall / (precision + recall) if right else 0.0


@given(st.lists(st.tuples(phrases, phrases), max_size=4))
def test_exact_and_label_equal_slue(examples):
    scores = score_entities(examples)
    if any(ref or hyp for ref, hyp in examples):
        assert scores["exact"]["f1"] == pytest.approx(slue_f1(examples))
        tags = [tuple([("phrase", tag) for _, tag in side] for side in example) for example in examples]
        assert scores["label"]["f1"] == pytest.approx(slue_f1(tags))
    assert scores["exact"]["tp"] <= scores["soft"]["tp"] <= scores["label"]["tp"]


@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(["A", "B", None])), max_size=5), phrases)
def test_a_reference_without_a_type_goes_with_any(ref, hyp):
    """Most entities are right: those with a type do not lose theirs to those without."""
    scores = score_entities([(ref, hyp)])
    for name, count in (("exact", 2), ("label", 1)):
        same = [[h[-count:][:-1] == r[-count:][:-1] and r[1] in (None, h[1]) for h in hyp] for r in ref]
        assert scores[name]["tp"] == maximum_matching([[j for j, fits in enumerate(row) if fits] for row in same])
    assert scores["exact"]["tp"] <= scores["soft"]["tp"] <= scores["label"]["tp"]


def test_soft_forgives_spelling_but_not_type():
    ref = [("amélie", "PER")]
    assert score_entities([(ref, [("amélia", "PER")])])["soft"]["f1"] == 1
    assert score_entities([(ref, [("amélie", "LOC")])])["soft"]["f1"] == 0
    assert score_entities([(ref, [("bruxelles", "PER")])])["soft"]["f1"] == 0


def test_similarity():
    assert similarity("", "") == similarity("ab", "ab") == 1
    assert similarity("ab", "") == similarity("ab", "cd") == 0
    assert similarity("abcd", "abxd") == 0.75

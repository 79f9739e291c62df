from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenverse_pp.metrics.f1 import maximum_matching, score_entities, similarity

phrases = st.lists(st.tuples(st.sampled_from(["ab", "abc", "xb", "y"]), st.sampled_from([None, "A", "B"])), max_size=5)
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


def test_soft_forgives_spelling_but_not_type():
    ref = [("amélie", "PER")]
    assert score_entities([(ref, [("amélia", "PER")])])["soft"]["f1"] == 1
    assert score_entities([(ref, [("amélie", "LOC")])])["soft"]["f1"] == 0
    assert score_entities([(ref, [("bruxelles", "PER")])])["soft"]["f1"] == 0


def test_soft_is_one_to_one():
    scores = score_entities([([("abcd", None)], [("abcd", None), ("abcx", None)])])["soft"]
    assert (scores["tp"], scores["fp"]) == (1, 1)


def test_order_does_not_count():
    assert score_entities([([("a", "X"), ("b", "Y")], [("b", "Y"), ("a", "X")])])["exact"]["f1"] == 1


def test_similarity():
    assert similarity("", "") == similarity("ab", "ab") == 1
    assert similarity("ab", "") == similarity("ab", "cd") == 0
    assert similarity("abcd", "abxd") == 0.75

"""Alignments of the report: as many errors as others count, and task tokens that meet their like."""

import kaldialign
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.evaluation.report import utterance as alignment
from tokenverse_pp.evaluation.report.utterance import align, count_errors
from tokenverse_pp.metrics.f1 import count_aligned
from tokenverse_pp.tasks.transcript import UNKNOWN, Word, split_marks

SYMBOLS = ["a", "b", "c", "[SCD]"]
texts = st.lists(st.sampled_from(SYMBOLS), max_size=12)


def said_at(words, times=()):
    return [Word(word, times[i] if times else UNKNOWN, UNKNOWN, UNKNOWN) for i, word in enumerate(words)]


def pairs_of(ref, hyp, judged=("[SCD]", "[ENDP]", "[FR]", "[NL]")):
    found = align(ref.split(), said_at(hyp.split()), frozenset(judged))
    return [(pair.kind, pair.ref, pair.hyp and pair.hyp.text) for pair in found]


@given(texts, texts)
def test_fewest_word_errors_then_most_tokens(ref, hyp):
    found = align(ref, said_at(hyp, range(len(hyp))), frozenset(["[SCD]"]))
    assert [pair.ref for pair in found if pair.ref is not None] == ref
    assert [pair.hyp.start for pair in found if pair.hyp is not None] == list(range(len(hyp)))
    (words, marks), (said, written) = split_marks(ref), split_marks(hyp)
    assert sum(count_errors(found)) == kaldialign.edit_distance(list(words), list(said))["total"]
    tokens = [pair for pair in found if pair.is_token]
    positions = [sorted({mark.position for mark in side}) for side in (marks, written)]
    if len(positions[0]) == len(marks) and len(positions[1]) == len(written):
        expected = count_aligned(words, positions[0], said, positions[1])
        assert sum(pair.kind == "ok" for pair in tokens) == expected
    for pair in found:
        assert (pair.kind in ("ok", "sub")) == (pair.ref is not None and pair.hyp is not None)
        assert (pair.kind == "ok") == (pair.hyp is not None and pair.ref == pair.hyp.text)


def test_kinds():
    found = pairs_of("[FR] a b [ENDP] c", "[NL] a x c d [ENDP]")
    assert set(found[:2]) == {("del", "[FR]", None), ("ins", None, "[NL]")}
    assert found[2:] == [
        ("ok", "a", "a"),
        ("sub", "b", "x"),
        ("del", "[ENDP]", None),
        ("ok", "c", "c"),
        ("ins", None, "d"),
        ("ins", None, "[ENDP]"),
    ]


def test_tokens_that_nobody_labelled_are_not_judged():
    assert pairs_of("a", "[FR] a [ENDP]", judged=["[FR]"]) == [
        ("ins", None, "[FR]"),
        ("ok", "a", "a"),
        ("free", None, "[ENDP]"),
    ]


def test_what_is_too_long_is_not_aligned(monkeypatch):
    monkeypatch.setattr(alignment, "MOST_CELLS", 9)
    assert align(["a", "b"], said_at("ab"), frozenset()) is not None
    assert align(["a", "b"], said_at("abc"), frozenset()) is None

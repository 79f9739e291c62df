import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.tasks.transcript import split_marks, word_spans

TOKENS = ["[FR]", "[SCD]", "[/NE]"]
words = st.lists(st.text("abé", min_size=1, max_size=5) | st.sampled_from(TOKENS), max_size=8)


@given(words, st.data())
def test_pieces_join_to_the_words_however_they_are_cut(words, data):
    pieces, spans = [], []
    for word in words:
        at = data.draw(st.integers(0, len(word)))  # 0: the space sign stands alone
        parts = [word] if word in TOKENS else [part for part in ("▁" + word[:at], word[at:]) if part]
        spans.append((word, len(pieces), len(pieces) + len(parts)))
        pieces += parts
    assert word_spans(pieces) == spans


@pytest.mark.parametrize(
    ("pieces", "spans"),
    [
        (["▁", "[SCD]", "▁"], [("[SCD]", 1, 3)]),  # a space sign alone is no word
        (["[FR]", "ou", "i", "[SCD]", "non"], [("[FR]", 0, 1), ("oui", 1, 3), ("[SCD]", 3, 4), ("non", 4, 5)]),
    ],
)
def test_odd_pieces(pieces, spans):
    assert word_spans(pieces) == spans


def test_marks_carry_positions_and_times():
    plain, marks = split_marks(["[FR]", "a", "[ENDP]", "[SCD]", "b"], [0.0, 0.1, 0.2, 0.3, 0.4])
    assert plain == ("a", "b")
    assert [(m.position, m.token, m.time) for m in marks] == [(0, "[FR]", 0.0), (1, "[ENDP]", 0.2), (1, "[SCD]", 0.3)]

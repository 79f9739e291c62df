from hypothesis import given
from hypothesis import strategies as st

from tokenverse_pp.tasks.transcript import group_marks, pieces_to_words, split_marks

TOKENS = ["[FR]", "[SCD]", "[/NE]"]
words = st.lists(st.text("abé", min_size=1, max_size=5) | st.sampled_from(TOKENS), max_size=8)


@given(words, st.data())
def test_pieces_join_to_the_words_however_they_are_cut(words, data):
    pieces, times, starts = [], [], []
    for word in words:
        starts.append(float(len(pieces)))
        if word in TOKENS:
            parts = [word]
        else:
            at = data.draw(st.integers(0, len(word)))  # 0: the space sign stands alone
            parts = [part for part in ("▁" + word[:at], word[at:]) if part]
        for part in parts:
            times.append(float(len(pieces)))
            pieces.append(part)
    assert pieces_to_words(pieces, times) == (words, starts)
    assert pieces_to_words(pieces) == (words, None)


def test_space_sign_alone_is_no_word():
    assert pieces_to_words(["▁", "[SCD]", "▁"], [0.0, 0.1, 0.2]) == (["[SCD]"], [0.1])


def test_word_begun_without_space_sign_after_a_token():
    assert pieces_to_words(["[FR]", "ou", "i", "[SCD]", "non"]) == (["[FR]", "oui", "[SCD]", "non"], None)


def test_marks_carry_positions_and_times():
    plain, marks = split_marks(["[FR]", "a", "[ENDP]", "[SCD]", "b"], [0.0, 0.1, 0.2, 0.3, 0.4])
    assert plain == ("a", "b")
    assert [(m.position, m.token, m.time) for m in marks] == [(0, "[FR]", 0.0), (1, "[ENDP]", 0.2), (1, "[SCD]", 0.3)]
    assert {position: len(group) for position, group in group_marks(marks).items()} == {0: 1, 1: 2}

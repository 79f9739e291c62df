import math

import pytest

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.decoding.hypothesis import Hypothesis


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "viterbi"},
        {"beam": 0},
        {"beam": 2.0},
        {"beam": True},
        {"nbest": 5},
        {"method": "full_beam", "max_symbols": 0},
        {"method": "k2_fast_beam", "lattice_beam": 0.0},
        {"max_states": 1.5},
        {"max_contexts": -1},
        {"method": "greedy", "nbest": 2},
        {"temperature": 0},
        {"temperature": math.nan},
        {"blank_penalty": math.inf},
        {"joiner_dtype": "int8"},
        {"languages": "fr"},
        {"languages": []},
    ],
)
def test_wrong_options_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=f"search option '{list(wrong)[-1]}'"):
        SearchOptions(**wrong)


def test_greedy_keeps_one_hypothesis():
    assert SearchOptions(method="greedy", beam=8).width == 1
    assert SearchOptions(beam=8).width == 8
    assert SearchOptions(languages=["fr", "nl"]).languages == ("fr", "nl")


FOUND = Hypothesis(
    tokens=(3, 10, 11, 5, 12),
    frames=(0, 4, 6, 7, 20),
    log_probs=(0.0, math.log(0.5), math.log(0.125), -0.1, -1.0),
    log_prob=-9.0,
    score=-9.0 / 7,
)
PIECES = ["[FR]", "▁bon", "jour", "[ENDP]", "▁oui"]


def test_words_have_times_and_confidences():
    words = FOUND.words(PIECES, frame_shift=0.02)
    assert [w.text for w in words] == ["[FR]", "bonjour", "[ENDP]", "oui"]
    assert [w.is_task_token for w in words] == [True, False, True, False]
    assert [w.start for w in words] == pytest.approx([0, 0.08, 0.14, 0.4])
    assert [w.end for w in words] == pytest.approx([0.02, 0.14, 0.16, 0.42])
    assert [w.confidence for w in words] == pytest.approx([1, 0.25, math.exp(-0.1), math.exp(-1)])
    assert FOUND.times(0.02) == pytest.approx([0, 0.08, 0.12, 0.14, 0.4])


def test_words_never_overlap_and_a_lone_space_sign_is_no_word():
    words = FOUND.words(["[FR]", "▁", "[ENDP]", "▁a", "▁"], frame_shift=1.0)
    assert [w.text for w in words] == ["[FR]", "[ENDP]", "a"]
    assert all(a.end <= b.start for a, b in zip(words, words[1:]))


def test_nothing_was_said():
    assert Hypothesis((), (), (), -1.0, -0.5).words([], 0.02) == []


def test_pieces_must_be_those_of_the_tokens():
    with pytest.raises(ValueError, match="5 tokens, but 1 pieces"):
        FOUND.words(["▁a"], 0.02)

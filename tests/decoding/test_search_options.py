import math

import pytest

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "viterbi"},
        {"beam": 0},
        {"beam": 2.0},
        {"beam": True},
        {"beam": 10**6},
        {"method": "full_beam", "max_symbols": 10**20},
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

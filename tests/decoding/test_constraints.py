import itertools
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabulary import ALL, Vocabulary, is_well_formed, know

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.constraints import (
    Constraints,
    InOrder,
    Spans,
    Suppress,
    compile_constraints,
    constraints_for,
)
from tokenverse_pp.decoding.recognizer import search_frames
from tokenverse_pp.decoding.scorer import ConstraintTable
from tokenverse_pp.tasks import TaskSet
from tokenverse_pp.tasks.base import RANK_CHANGE, RANK_CLOSE, RANK_END, RANK_OPEN, PositionTask

TASKS = know(*ALL)
VOCABULARY = Vocabulary(TASKS)


ALLOWED = """
[FR] ▁a [ENDP] [SCD] ▁b c [ENDP]
[NE] ▁a [/NE] [ENDP]
[NL] [NE] ▁a c [SCD] ▁b [/NE] [ENDP] [SCD] [NE] ▁a [/NE] [NE] ▁b [/NE]
▁a [ENDP] ▁ c [ENDP]
"""
NOT_ALLOWED = """▁a [FR], ▁ [FR], [FR] [NL], [FR] [FR], [NE] [FR], [SCD], [FR] [SCD], [ENDP], ▁ [ENDP], ▁a [SCD] [SCD],
▁a [ENDP] [ENDP], ▁a [ENDP] ▁ [ENDP], ▁a [SCD] [ENDP], ▁a [ENDP] [/NE], ▁a [/NE], [NE] [/NE], [NE] ▁ [/NE],
[NE] ▁a [NE], [NE] ▁a [/NE] [/NE], ▁a [NE] [SCD], <unk>"""


def test_only_what_is_well_formed_is_allowed():
    constraints = constraints_for(TASKS, ALL, VOCABULARY, force_language=False)
    for text in ["", *ALLOWED.splitlines()]:
        assert constraints.allows(VOCABULARY.ids(text)), text
    for text in NOT_ALLOWED.split(","):
        ids = VOCABULARY.ids(text)
        assert constraints.allows(ids[:-1]) or len(ids) == 1, text
        assert not constraints.allows(ids), text


def test_tokens_of_inactive_tasks_are_suppressed_wherever_they_would_stand():
    constraints = constraints_for(TASKS, ["asr", "endp"], VOCABULARY)
    assert constraints.allows(VOCABULARY.ids("▁a [ENDP] ▁b"))
    for symbol in set(TASKS.symbols) - {"[ENDP]"}:
        for before in ("", "▁a ", "▁a [ENDP] "):
            assert not constraints.allows(VOCABULARY.ids(before + symbol))


def test_languages_can_be_limited_and_forced():
    only = constraints_for(TASKS, ALL, VOCABULARY, languages=["nl"], force_language=False)
    assert only.allows(VOCABULARY.ids("[NL] ▁a")) and only.allows(VOCABULARY.ids("▁a"))
    assert not only.allows(VOCABULARY.ids("[FR] ▁a"))
    for force in (None, True):  # None is the default
        forced = constraints_for(TASKS, ALL, VOCABULARY, languages=["nl"], force_language=force)
        assert forced.allows(VOCABULARY.ids("[NL] [NE] ▁a"))
        for text in ("▁a", "[NE]", "▁", "[FR]"):
            assert not forced.allows(VOCABULARY.ids(text))
    assert SearchOptions().force_language is None
    assert constraints_for(TASKS, ["asr"], VOCABULARY).allows(VOCABULARY.ids("▁a"))  # no effect without lid


def test_errors_name_the_option():
    with pytest.raises(UserError, match="task 'emotion'"):
        constraints_for(TASKS, ["emotion"], VOCABULARY)
    with pytest.raises(UserError, match=r"'languages'.*\[DE\] but \[FR\], \[NL\]"):
        constraints_for(TASKS, ALL, VOCABULARY, languages=["de"])
    with pytest.raises(UserError, match="'lid' is not active"):
        constraints_for(TASKS, ["scd"], VOCABULARY, languages=["fr"])


def test_the_blank_is_always_allowed_and_changes_nothing():
    constraints = constraints_for(TASKS, ALL, VOCABULARY, force_language=True)
    assert (constraints.weights[:, 0] == 0).all()
    assert constraints.following[:, 0].tolist() == list(range(len(constraints.weights)))


def test_composed_constraints_allow_what_each_allows():
    ids = {"[X]": 2, "[NE]": 3, "[/NE]": 4}
    parts = [Suppress(["[X]"]), Spans(["[NE]"], ["[/NE]"]), InOrder({"[NE]": (RANK_OPEN, 0), "[/NE]": (RANK_CLOSE, 0)})]
    alone = [compile_constraints([part], ids, 5) for part in parts]
    together = compile_constraints(parts, ids, 5)
    for tokens in itertools.product(range(5), repeat=4):
        assert together.allows(tokens) == all(c.allows(tokens) for c in alone)


def test_each_utterance_can_have_its_own_constraints(tiny):
    model = tiny(3, V=VOCABULARY.vocab_size, lens=[30, 20, 25], blank_bias=0)
    some, none = constraints_for(TASKS, ALL, VOCABULARY), constraints_for(TASKS, ["asr"], VOCABULARY)
    mixed = search_frames(*model, SearchOptions(), [some, none, some])
    for i, constraints in enumerate([some, none, some]):
        assert mixed[i][0].tokens == search_frames(*model, SearchOptions(), constraints)[i][0].tokens
    assert mixed[0][0].tokens != search_frames(*model, SearchOptions(), none)[0][0].tokens


def test_without_anything_to_suppress_scores_are_unchanged(tiny):
    model = tiny(1)
    assert search_frames(*model, SearchOptions(), compile_constraints([], {}, 9)) == search_frames(
        *model, SearchOptions()
    )


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    known=st.sets(st.sampled_from(ALL)),
    active=st.sets(st.sampled_from(ALL)),
    types=st.sampled_from([(), ("NUM",), ("NUM", "DAY")]),
    method=st.sampled_from(["greedy", "beam", "full_beam"]),
    force=st.booleans(),
)
def test_every_hypothesis_of_any_model_is_well_formed(tiny, seed, known, active, types, method, force):
    tasks = know(*known, types=types)
    vocabulary = Vocabulary(tasks)
    active_tasks = tasks.subset(active)
    model = tiny(seed, V=vocabulary.vocab_size, lens=[25, 12], blank_bias=seed % 3 - 1, context=1)
    options = SearchOptions(method=method, beam=4, nbest=1 if method == "greedy" else 4)
    constraints = constraints_for(tasks, active_tasks.names, vocabulary, force_language=force)
    for hypotheses in search_frames(*model, options, constraints):
        assert hypotheses
        for found in hypotheses:
            assert is_well_formed(found, vocabulary, active_tasks)


class Laughter(PositionTask):
    """A task that the search has never heard of."""

    name: ClassVar[str] = "laughter"
    token: ClassVar[str] = "[HAHA]"
    rank: ClassVar[int] = RANK_END

    def stands_at(self, position, num_words):
        return 0 < position <= num_words

    def check(self, cut):
        return []

    def from_cut(self, cut):
        return ()

    def intervals(self, cut):
        return []


def test_a_new_task_needs_no_search_code():
    tasks = TaskSet((*TASKS.tasks, Laughter()))
    vocabulary = Vocabulary(tasks)
    constraints = constraints_for(tasks, tasks.names, vocabulary, force_language=False)
    assert RANK_END < RANK_CHANGE
    for text in ("▁a [HAHA] ▁b", "▁a [ENDP] [HAHA] [SCD] ▁b"):
        assert constraints.allows(vocabulary.ids(text))
    for text in ("[HAHA]", "▁a [HAHA] [HAHA]", "▁a [HAHA] [ENDP]", "▁a [SCD] [HAHA]"):
        assert not constraints.allows(vocabulary.ids(text))
    without = constraints_for(tasks, ALL, vocabulary, force_language=False)
    assert without.allows(vocabulary.ids("▁a")) and not without.allows(vocabulary.ids("▁a [HAHA]"))


def test_a_table_numbers_states_one_after_the_other():
    one = Constraints(np.zeros((2, 3), np.float32), np.array([[0, 1, 1], [1, 0, 0]]))
    two = Constraints(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.int64))
    batch = ConstraintTable(3, torch.device("cpu")).batch([two, one, two, one])
    assert batch.start.flatten().tolist() == [0, 1, 0, 1]
    assert batch.following.view(-1, 3).tolist() == [[0, 0, 0], [1, 2, 2], [2, 1, 1]]

"""Searches that are carried on from chunk to chunk, against the same searches over the whole encoder output."""

import dataclasses
import functools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vocabulary import ALL, Vocabulary, begun, know

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.constraints import Constraints, constraints_for
from tokenverse_pp.decoding.context_graph import ContextGraph, FusedScorers
from tokenverse_pp.decoding.language_models import LanguageModel
from tokenverse_pp.decoding.ngram import ngrams_of_words
from tokenverse_pp.decoding.recognizer import search_frames
from tokenverse_pp.decoding.scorer import ConstraintTable
from tokenverse_pp.decoding.streaming.search import StreamingSearch

LOOSE = {"abs": 2e-4, "rel": 2e-5}
TASKS = know(*ALL)
VOCABULARY = Vocabulary(TASKS)


@pytest.fixture(scope="session")
def model_of(tiny):
    return lambda seed, lens, **more: tiny(
        seed, VOCABULARY.vocab_size, lens, blank_bias=seed % 4, sharpness=2.0, **more
    )


@functools.lru_cache(None)
def constraints_of(*active, force_language=False):
    return constraints_for(TASKS, active, VOCABULARY, force_language=force_language)


def outputs(model):
    return [out[:n] for out, n in zip(model.encoder_out, model.lens.tolist())]


def streamed(search, outs, states, random_):
    """Each stream in chunks of its own, and any of the streams in a step. -> settled tokens, open ones, states."""
    states, at = list(states), [0] * len(outs)
    settled, open_ = [[] for _ in outs], [search.open(state) for state in states]
    while any(a < len(out) for a, out in zip(at, outs)):
        some = random_.sample(range(len(outs)), random_.randint(1, len(outs)))
        ends = {i: min(len(outs[i]), at[i] + random_.choice([0, 1, 2, 5, 9])) for i in some}
        found, after = search.step([outs[i][at[i] : ends[i]] for i in some], [states[i] for i in some])
        for i, one, state in zip(some, found, after):
            states[i], at[i], open_[i] = state, ends[i], one.open
            settled[i] += one.settled
    return settled, open_, states


def assert_same(tokens, hypothesis):
    assert tuple(token.id for token in tokens) == hypothesis.tokens
    assert tuple(token.frame for token in tokens) == hypothesis.frames
    assert [token.log_prob for token in tokens] == pytest.approx(hypothesis.log_probs, **LOOSE)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    method=st.sampled_from(["greedy", "beam", "hotwords"]),
    length_norm=st.booleans(),
    active=st.lists(st.sets(st.sampled_from(ALL[1:])), min_size=1, max_size=4),
    kind=st.sampled_from([dict(context=2), dict(context=0), dict(context=0, most=3), dict(context=2, most=2)]),
)
def test_chunk_by_chunk_gives_what_the_whole_gives(model_of, seed, method, length_norm, active, kind):
    random_ = random.Random(seed)
    model = model_of(seed, [random_.randint(1, 40) for _ in active], **kind)
    constraints = [constraints_of(*sorted(names)) for names in active]
    bonus, options = None, SearchOptions("greedy" if method == "greedy" else "beam", 3, length_norm=length_norm)
    if method == "hotwords":
        a, b, c = (VOCABULARY.id_of(piece) for piece in ("▁a", "▁b", "c"))
        bonus = ContextGraph([([a, c], 1.0), ([b, b, c], 1.7), ([c, c], 0.6)], VOCABULARY.all, length_bonus=0.2)
        options = dataclasses.replace(options, hotwords=("made by hand",))
    search = StreamingSearch(model.predictor, model.joiner, options, bonus)
    found = streamed(search, outputs(model), [search.start(each) for each in constraints], random_)
    for settled, open_, (expected,) in zip(*found[:2], search_frames(*model, options, constraints, bonus)):
        assert_same([*settled, *open_], expected)


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_what_is_settled_is_what_all_hypotheses_will_say(model_of, method):
    """At every frame: settled tokens never change, and are the common prefix of an n-best list of the frames so far."""
    model = model_of(6, [40])
    constraints, options = constraints_of(*ALL), SearchOptions(method, 3)
    search = StreamingSearch(model.predictor, model.joiner, options)
    state, settled = search.start(constraints), []
    for t, out in enumerate(outputs(model)[0].split(1), start=1):
        (one,), (state,) = search.step([out], [state])
        settled += one.settled
        so_far = model._replace(lens=torch.tensor([t]))
        nbest = search_frames(*so_far, SearchOptions(method, 3, nbest=options.width), constraints)[0]
        each = [tuple(zip(h.tokens, h.frames)) for h in nbest]
        common = next((i for i, column in enumerate(zip(*each)) if len(set(column)) > 1), min(map(len, each)))
        assert tuple((token.id, token.frame) for token in settled) == each[0][:common]
        assert_same([*settled, *one.open], nbest[0])
    assert len(settled) > 5


def test_a_step_leaves_the_states_that_it_was_given_as_they_were(model_of):
    model = model_of(6, [40])
    search = StreamingSearch(model.predictor, model.joiner, SearchOptions(beam=3))
    first, second = outputs(model)[0].split(20)
    _, (state,) = search.step([first], [search.start(constraints_of(*ALL))])
    once, twice = (search.step([second], [state])[0] for _ in range(2))
    assert once == twice


def disagreeing(tiny, frames):
    """A model whose two best hypotheses differ in the first token, and are equally good for ever."""
    model = tiny(0, V=4, lens=(frames,), blank_bias=0.0)
    with torch.no_grad():
        for parameter in (*model.joiner.parameters(), *model.predictor.parameters()):
            parameter.zero_()
        model.joiner.encoder_proj.weight[:2, :2] = torch.eye(2)
        # The first input asks for tokens 2 and 3 alike, the second one for token 2, none for a blank.
        model.joiner.output.weight[:, :2] = torch.tensor([[-9.0, -9.0], [-9.0, -9.0], [9.0, 18.0], [9.0, -9.0]])
        model.joiner.output.bias.copy_(torch.tensor([9.0, -9.0, 0.0, 0.0]))
    model.encoder_out.zero_()
    model.encoder_out[0, 0, 0] = model.encoder_out[0, 5::5, 1] = 3.0
    return model


def test_hypotheses_that_never_agree_do_not_let_memory_grow(tiny):
    model = disagreeing(tiny, 600)
    (expected,) = search_frames(*model, SearchOptions(beam=2))[0]
    constraints = Constraints(np.zeros((1, 4), dtype=np.float32), np.zeros((1, 4), dtype=np.int64))  # anything goes
    longest = {}
    for limit in (math.inf, 50):
        search = StreamingSearch(model.predictor, model.joiner, SearchOptions(beam=2), decide_after=limit)
        state, tokens, longest[limit] = search.start(constraints), [], 0
        for out in outputs(model)[0].split(8):
            (one,), (state,) = search.step([out], [state])
            tokens += one.settled
            longest[limit] = max(longest[limit], *(len(tail) for tail in state.memory.tails))
        assert_same([*tokens, *one.open], expected)
    assert longest[math.inf] == 120 and longest[50] <= 12


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_the_states_of_an_lstm_are_freed_as_the_stream_goes_on(model_of, method):
    model = model_of(5, [400], context=0)
    search = StreamingSearch(model.predictor, model.joiner, SearchOptions(method, 3))
    state, most, settled = search.start(constraints_of(*ALL)), 0, 0
    for out in outputs(model)[0].split(8):
        (one,), (state,) = search.step([out], [state])
        most, settled = max(most, len(search.scorer.contexts)), settled + len(one.settled)
    assert settled > 40 and most <= 2 * 3  # a slot's, and the one that it is a token longer than
    state = None
    assert len(search.scorer.contexts) == 0


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), method=st.sampled_from(["greedy", "beam"]), context=st.sampled_from([2, 0]))
@example(seed=108, method="beam", context=2)  # hypotheses become the best with their endpoint and a token after it
def test_at_an_endpoint_the_search_starts_anew(model_of, seed, method, context):
    """With reset, what follows each endpoint is a search of its own, whose constraints know what was before."""
    random_ = random.Random(seed)
    model, constraints = model_of(seed, [24, 9], context=context), constraints_of(*ALL, force_language=True)
    options, endpoint = SearchOptions(method, 3), VOCABULARY.id_of("[ENDP]")
    search = StreamingSearch(model.predictor, model.joiner, options, endpoint=endpoint)
    found = streamed(search, outputs(model), [search.start(constraints)] * 2, random_)
    for out, settled, open_ in zip(outputs(model), *found[:2]):
        expected = list(segments(model, out, options, constraints, endpoint))
        assert [(token.id, token.frame) for token in [*settled, *open_]] == expected


def segments(model, out, options, constraints, endpoint):
    """Tokens and frames, from a search of each segment that ends where its most probable hypothesis has an endpoint."""
    raw, start, said = dataclasses.replace(options, length_norm=False), 0, []
    for end in range(1, len(out) + 1):
        best = segment(model, out[start:end], raw, constraints, said)
        if any(token.id == endpoint for token in best) or end == len(out):
            if all(token.id != endpoint for token in best):
                best = segment(model, out[start:end], options, constraints, said)
            yield from ((token.id, token.frame + start) for token in best)
            start, said = end, [*said, *(token.id for token in best)]


def segment(model, out, options, constraints, said):
    """The best hypothesis of a segment, searched without endpoints. Of what was said the predictor knows the last."""
    search = StreamingSearch(model.predictor, model.joiner, options)
    state = search.start(begun(constraints, said))
    if said:
        contexts, memory = search.scorer.contexts, state.memory
        if hasattr(memory, "rows"):
            context = contexts.longer(memory.rows.context, np.full(memory.rows.context.shape, said[-1]))
            memory = memory._replace(rows=memory.rows._replace(context=context))
        elif contexts.size == 2:
            memory = memory._replace(last=np.array([0, said[-1]]))
        else:
            memory = memory._replace(last=contexts.longer(memory.last, np.array([said[-1]])))
        state = dataclasses.replace(state, memory=memory)
    ((found,), _) = search.step([out], [state])
    return [*found.settled, *found.open]


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_what_follows_an_endpoint_goes_on_with_the_stream(model_of, method):
    """With reset a speaker change may follow an endpoint, and no second language is written."""
    model, endpoint = model_of(4, [200, 200]), VOCABULARY.id_of("[ENDP]")
    search = StreamingSearch(model.predictor, model.joiner, SearchOptions(method, 3), endpoint=endpoint)
    state = search.start(constraints_of(*ALL, force_language=True))
    after = set()
    for settled, open_ in zip(*streamed(search, outputs(model), [state] * 2, random.Random(1))[:2]):
        said = VOCABULARY.pieces([token.id for token in (*settled, *open_)])
        after |= {second for first, second in zip(said, said[1:]) if first == "[ENDP]"}
        assert said[0] in ("[FR]", "[NL]") and not {"[FR]", "[NL]"} & set(said[1:])
    assert "[SCD]" in after


def test_bonuses_start_anew_at_an_endpoint_but_for_the_language(model_of):
    """With a language model for each language, that of the stream's language counts after an endpoint too."""
    model, options = model_of(8, [100]), SearchOptions("beam", 3, hotwords=("made by hand",))
    a, b, c, fr, nl, endpoint = (VOCABULARY.id_of(piece) for piece in ("▁a", "▁b", "c", "[FR]", "[NL]", "[ENDP]"))
    lists = {"[FR]": [((a, c), 5.0)], "[NL]": [((b,), 3.0), ((b, c), 2.0)]}
    models = {name: (ngrams_of_words(words, VOCABULARY.vocab_size), True) for name, words in lists.items()}
    hotwords = ContextGraph([([a, c], 1.0)], VOCABULARY.all)
    bonus = FusedScorers(LanguageModel(models, VOCABULARY.all, 0.5, 0.5), hotwords)
    search = StreamingSearch(model.predictor, model.joiner, options, bonus, endpoint=endpoint)
    state, said, ends = search.start(constraints_of(*ALL, force_language=True)), [], 0
    for out in outputs(model)[0].split(1):
        (one,), (state,) = search.step([out], [state])
        said += [token.id for token in one.settled]
        if one.settled and said[-1] == endpoint:
            ends += 1
            assert said[0] in (fr, nl)
            assert state.memory.rows.earning[0, 0] == bonus.advance(0, said[0])
    assert ends > 1


@pytest.mark.parametrize("method", ["greedy", "beam"])
@pytest.mark.parametrize("seed", range(12))
def test_constraints_follow_a_change_of_tasks(model_of, method, seed):
    model = model_of(4 * seed, [90])
    search = StreamingSearch(model.predictor, model.joiner, SearchOptions(method, 3))
    parts, said = outputs(model)[0].split(30), []
    state = search.start(constraints_of("scd", "ner"))
    for part, names in zip(parts, (["scd", "ner"], ["endp"], ALL)):
        state = search.change(state, constraints_of(*names))
        (one,), (state,) = search.step([part], [state])
        said.append(one)
    tokens = [token for one in said for token in one.settled] + said[-1].open
    surfaces = [[VOCABULARY.all[t.id] for t in tokens if t.frame // 30 == i] for i in range(3)]
    assert not {"[ENDP]", "[FR]", "[NL]"} & set(surfaces[0])
    assert not {"[SCD]", "[NE]", "[/NE]", "[FR]", "[NL]"} & set(surfaces[1])
    assert not {"[FR]", "[NL]"} & set(surfaces[2])  # a language comes at a stream's start only
    opened = False  # what was open when ner was switched off is given up
    for surface in surfaces[2]:
        assert surface != ("[NE]" if opened else "[/NE]")
        opened = surface == "[NE]" or (opened and surface != "[/NE]")


def allowed_after(text, old, new, symbols):
    """Which symbols the constraints ``new`` allow in a stream that has written a text under ``old``."""
    table = ConstraintTable(VOCABULARY.vocab_size, torch.device("cpu"))
    state = table.add(old) + old.after(VOCABULARY.ids(text))
    after = table.translate(state, old, new) - table.add(new)
    return [s for s in symbols.split() if new.weights[after, VOCABULARY.id_of(s)] == 0]


@pytest.mark.parametrize("first, then", [(ALL, ALL), (ALL, ["ner", "lid"]), (["ner"], ["scd", "endp", "ner"])])
def test_a_span_that_both_know_stays_open(first, then):
    old, new = constraints_of(*first), constraints_of(*then)
    assert allowed_after("▁a [NE] ▁b", old, new, "[NE] [/NE] ▁a c") == ["[/NE]", "▁a", "c"]


@pytest.mark.parametrize("force", [False, None, True])
def test_languages_when_lid_is_switched_on(force):
    """At a stream's start a language comes first; a stream that has begun goes on without one."""
    old, new = constraints_of("ner", "scd"), constraints_of("ner", "scd", "lid", force_language=force)
    first = ["[FR]", "[NL]"] if force is not False else ["[NE]", "[FR]", "[NL]", "▁a", "c"]
    assert allowed_after("", old, new, "[NE] [/NE] [SCD] [FR] [NL] ▁a c") == first
    for text, expected in (
        ("▁a", "[NE] [SCD] ▁a c"),
        ("▁a [NE]", "▁a c"),
        ("[NE] ▁a", "[/NE] [SCD] ▁a c"),
        ("▁", "[NE] ▁a c"),
    ):
        assert allowed_after(text, old, new, "[NE] [/NE] [SCD] [FR] [NL] ▁a c") == expected.split()
    # Nothing is left of a text that the new tasks cannot write: the stream is at its start.
    only_lid = constraints_of("lid", force_language=True)
    assert allowed_after("[NE]", old, only_lid, "[NE] [FR] ▁a") == ["[FR]"]


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_a_stream_is_not_silenced_by_lid(model_of, method):
    """Switched on after the first words, a language that must come first changes nothing: words go on without it."""
    model = model_of(8, [90])
    search = StreamingSearch(model.predictor, model.joiner, SearchOptions(method, 3))
    begin, rest = outputs(model)[0].split([30, 60])
    _, (state,) = search.step([begin], [search.start(constraints_of("scd", "ner"))])
    found = []
    for force in (True, False):
        (one,), _ = search.step([rest], [search.change(state, constraints_of(*ALL, force_language=force))])
        found.append([VOCABULARY.all[token.id] for token in (*one.settled, *one.open) if token.frame >= 30])
    assert found[0] == found[1] and not {"[FR]", "[NL]"} & set(found[0])
    assert len([piece for piece in found[0] if not piece.startswith("[")]) > 5


@pytest.mark.parametrize("options", [{"method": "full_beam"}, {"method": "k2_fast_beam"}, {"beam": 4, "nbest": 2}])
def test_searches_that_streams_do_not_know_are_refused(model_of, options):
    model = model_of(0, [1])
    with pytest.raises(UserError, match=r"search option .(method|nbest)"):
        StreamingSearch(model.predictor, model.joiner, SearchOptions(**options))

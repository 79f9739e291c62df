"""k2's lattices, and the n-best lists out of them: in the environment with real k2."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabulary import ALL, Vocabulary, is_well_formed, know

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.constraints import constraints_for
from tokenverse_pp.decoding.context_graph import ContextGraph
from tokenverse_pp.decoding.recognizer import search_frames

WIDE = {"lattice_beam": 100.0, "max_states": 4000, "max_contexts": 500}
LOOSE = {"abs": 1e-3, "rel": 1e-4}


def run(model, *constraints, **options):
    return search_frames(*model, SearchOptions(method="k2_fast_beam", **options), *constraints)


@pytest.mark.skipif(importlib.util.find_spec("k2") is not None, reason="k2 is installed")
def test_without_k2_the_option_is_named(tiny):
    with pytest.raises(UserError, match="k2_fast_beam needs the package k2, which is missing"):
        run(tiny(0))


@pytest.mark.k2
@pytest.mark.parametrize("context", [1, 2, 3])
def test_a_wide_lattice_holds_the_best_hypothesis_of_a_wide_beam(tiny, context):
    same = total = 0
    for seed in range(20):
        model = tiny(seed, lens=[9, 5, 1], context=context, blank_bias=seed % 3, sharpness=6.0)
        found = run(model, beam=64, nbest=3, **WIDE)
        for a, b in zip(found, search_frames(*model, SearchOptions(beam=256))):
            total += 1
            same += a[0].tokens == b[0].tokens
            assert [h.score for h in a] == sorted((h.score for h in a), reverse=True)
            assert len({h.tokens for h in a}) == len(a)
    assert same >= 0.95 * total


@pytest.mark.k2
@pytest.mark.parametrize("seed", range(6))
def test_a_lattice_without_pruning_holds_every_sequence_and_all_its_alignments(tiny, seed):
    model = tiny(seed, V=4, lens=[4, 3, 1], context=1 + seed % 3, blank_bias=seed % 3)
    found = run(model, beam=400, nbest=400, **WIDE)
    expected = search_frames(*model, SearchOptions(beam=400, nbest=400))
    for a, b in zip(found, expected):
        log_probs = {h.tokens: h.log_prob for h in a}
        assert log_probs == pytest.approx({h.tokens: h.log_prob for h in b}, **LOOSE)


@pytest.mark.k2
def test_tokens_have_their_frames_and_log_probs(tiny, reference):
    model = tiny(3, lens=[12])
    (found,) = run(model, nbest=4)
    assert any(h.tokens for h in found)
    for h in found:
        for i, (token, t, log_prob) in enumerate(zip(h.tokens, h.frames, h.log_probs)):
            expected = reference.log_probs_at(model, 0, t, h.tokens[:i])[token]
            assert log_prob == pytest.approx(float(expected), **LOOSE)


@pytest.mark.k2
def test_a_batch_gives_what_each_utterance_gives_alone(tiny):
    model = tiny(5, lens=[3, 14, 0, 14, 1, 9])
    model.encoder_out[torch.arange(14)[None] >= model.lens[:, None]] = float("nan")  # padding must never be read
    together = run(model, nbest=4)
    for i, n in enumerate(model.lens.tolist()):
        alone = model._replace(encoder_out=model.encoder_out[i : i + 1, :n], lens=model.lens[i : i + 1])
        (expected,) = run(alone, nbest=4)
        assert [(h.tokens, h.frames) for h in together[i]] == [(h.tokens, h.frames) for h in expected]
        assert [h.log_prob for h in together[i]] == pytest.approx([h.log_prob for h in expected], **LOOSE)


@pytest.mark.k2
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), active=st.sets(st.sampled_from(ALL)), force=st.booleans(), narrow=st.booleans())
def test_every_hypothesis_of_any_model_is_well_formed(tiny, seed, active, force, narrow):
    tasks = know(*ALL)
    vocabulary, names = Vocabulary(tasks), tasks.subset(active).names
    model = tiny(seed, V=vocabulary.vocab_size, lens=[25, 12], blank_bias=seed % 3 - 1, context=1 + seed % 2)
    size = {"lattice_beam": 2.0, "max_states": 4, "max_contexts": 2} if narrow else {}
    for hypotheses in run(model, constraints_for(tasks, names, vocabulary, force_language=force), nbest=4, **size):
        assert hypotheses
        assert all(is_well_formed(h, vocabulary, tasks.subset(active)) for h in hypotheses)


@pytest.mark.k2
def test_hotwords_are_heeded(tiny):
    model = tiny(4, lens=[10], blank_bias=1.0)
    pieces = ["<blk>", *(f"▁{i}" for i in range(1, 9))]
    options = {"beam": 32, "hotwords": ("x",), "length_norm": False}  # the phrase itself is given as tokens below
    bonus = ContextGraph([([7, 3], 3.0)], pieces)
    found = run(model, None, bonus, **options, **WIDE)[0][0]
    expected = search_frames(*model, SearchOptions(**options), None, bonus)[0][0]
    assert found.tokens == expected.tokens
    assert (found.score, found.log_prob) == pytest.approx((expected.score, expected.log_prob), abs=0.05)
    assert found.score > found.log_prob  # so the phrase is in it

import itertools
import math

import pytest
import torch

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.recognizer import search_frames

LOOSE = {"abs": 2e-4, "rel": 2e-5}


def run(model, **options):
    return search_frames(*model, SearchOptions(**options))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("context, most", [(2, 1), (2, 3), (0, 1), (0, 3)])
def test_greedy_is_the_textbook_greedy_search(tiny, reference, seed, context, most):
    model = tiny(seed, blank_bias=seed % 4, context=context, most=most)
    for utterance, (found,) in enumerate(run(model, method="greedy")):
        tokens, frames, total = reference.greedy(model, utterance)
        assert (found.tokens, found.frames) == (tokens, frames)
        assert found.log_prob == pytest.approx(total, **LOOSE)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("beam", [2, 4, 7])
def test_beam_is_icefalls_modified_beam_search(tiny, reference, seed, beam):
    model = tiny(seed, context=seed % 4, lens=[10, 6, 1], blank_bias=seed % 3)
    for utterance, found in enumerate(run(model, beam=beam, nbest=beam)):
        expected = reference.beam(model, utterance, beam)
        assert {h.tokens for h in found} == set(expected)
        for h in found:
            assert h.log_prob == pytest.approx(expected[h.tokens][0], **LOOSE)
            assert h.frames == expected[h.tokens][1]
        context = model.predictor.context_size
        best = max(expected, key=lambda tokens: expected[tokens][0] / (len(tokens) + context))
        assert found[0].tokens == best


@pytest.mark.parametrize(
    "options", [{"temperature": 1.7}, {"blank_penalty": 1.5}, {"temperature": 0.6, "blank_penalty": -1}]
)
def test_temperature_and_blank_penalty(tiny, reference, options):
    model = tiny(3)
    for utterance, (found,) in enumerate(run(model, length_norm=False, **options)):
        expected = reference.beam(model, utterance, 4, **options)
        best = max(expected, key=lambda tokens: expected[tokens][0])
        assert found.tokens == best
        assert found.log_prob == pytest.approx(expected[best][0], **LOOSE)


def every_sequence(model, reference, utterance):
    """tokens -> log of the summed probability of all its alignments, and the frames of the most probable one."""
    totals, alignments = {}, {}
    V = model.joiner.output.out_features
    for symbols in itertools.product(range(V), repeat=int(model.lens[utterance])):
        tokens, total = (), 0.0
        for t, v in enumerate(symbols):
            total += float(reference.log_probs_at(model, utterance, t, tokens)[v])
            tokens = (*tokens, v) if v else tokens
        totals[tokens] = totals.get(tokens, 0.0) + math.exp(total)
        frames = tuple(t for t, v in enumerate(symbols) if v)
        alignments[tokens] = max(alignments.get(tokens, (-math.inf, ())), (total, frames))
    return {tokens: math.log(p) for tokens, p in totals.items()}, {t: frames for t, (_, frames) in alignments.items()}


@pytest.mark.parametrize("seed", range(4))
def test_merging_sums_all_alignments_and_keeps_the_best_when_nothing_is_pruned(tiny, reference, seed):
    model = tiny(seed, V=3, lens=[5, 3], context=2 * (seed % 2))
    for utterance, found in enumerate(run(model, beam=200, nbest=200, length_norm=False)):
        expected, frames = every_sequence(model, reference, utterance)
        assert {h.tokens for h in found} == set(expected)
        for h in found:
            assert h.log_prob == pytest.approx(expected[h.tokens], **LOOSE)
            assert h.frames == frames[h.tokens]
        assert sum(math.exp(h.log_prob) for h in found) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_no_beam_beats_the_full_search_and_a_wide_one_finds_it(tiny, reference, seed):
    model = tiny(seed, V=4, lens=[4], blank_bias=0.5)
    expected, _ = every_sequence(model, reference, 0)
    best = max(expected, key=lambda tokens: expected[tokens])
    for beam in (1, 2, 4, 300):
        found = run(model, beam=beam, length_norm=False)[0][0]
        assert found.log_prob <= expected[found.tokens] + 1e-4
    assert found.tokens == best


@pytest.mark.parametrize("options", [{"method": "greedy"}, {"nbest": 4}, {"method": "full_beam", "nbest": 4}])
@pytest.mark.parametrize("context, most", [(2, 1), (0, 3)])
def test_a_batch_gives_what_each_utterance_gives_alone(tiny, options, context, most):
    model = tiny(5, lens=[3, 14, 14, 1, 9], context=context, most=most)
    model.encoder_out[torch.arange(14)[None] >= model.lens[:, None]] = math.nan  # padding must never be read
    together = run(model, **options)
    for i, n in enumerate(model.lens.tolist()):
        alone = model._replace(encoder_out=model.encoder_out[i : i + 1, :n], lens=model.lens[i : i + 1])
        (expected,) = run(alone, **options)
        assert [(h.tokens, h.frames) for h in together[i]] == [(h.tokens, h.frames) for h in expected]
        assert [h.log_prob for h in together[i]] == pytest.approx([h.log_prob for h in expected], **LOOSE)


@pytest.mark.parametrize("method", ["beam", "full_beam"])
@pytest.mark.parametrize("length_norm", [True, False])
def test_nbest_is_sorted_distinct_and_repeatable(tiny, length_norm, method):
    model = tiny(8, lens=[20, 13])
    options = {"method": method, "beam": 8, "nbest": 5, "length_norm": length_norm}
    found = run(model, **options)
    for hypotheses in found:
        assert len({h.tokens for h in hypotheses}) == len(hypotheses) == 5
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
    assert run(model, **options) == found


@pytest.mark.parametrize("method", ["beam", "full_beam"])
def test_equal_scores_are_broken_in_the_same_way_each_time(tiny, method):
    model = tiny(0, lens=[6, 6])
    with torch.no_grad():
        model.joiner.output.weight.zero_()
        model.joiner.output.bias.zero_()
    found = run(model, method=method, nbest=4)
    assert found[0] == found[1]
    assert run(model, method=method, nbest=4) == found


@pytest.mark.parametrize("beam", [1, 2, 3])
def test_of_equal_symbols_the_first_is_kept(tiny, reference, beam):
    model = tiny(0, lens=[3])
    with torch.no_grad():
        model.joiner.output.weight.zero_()
        model.joiner.output.bias.copy_(torch.tensor([0.0, 0, 0, 1, 1, 1, 1, 1, 0]))
    found = run(model, beam=beam, nbest=beam)[0]
    assert {h.tokens for h in found} == set(reference.beam(model, 0, beam))


def test_token_log_probs_are_those_of_the_model(tiny, reference):
    model = tiny(11, lens=[15])
    (found,) = run(model, beam=4, nbest=4)
    assert any(h.tokens for h in found)
    for h in found:
        for i, (token, t, log_prob) in enumerate(zip(h.tokens, h.frames, h.log_probs)):
            expected = reference.log_probs_at(model, 0, t, h.tokens[:i])[token]
            assert log_prob == pytest.approx(float(expected), **LOOSE)


@pytest.mark.parametrize("method", ["greedy", "beam", "full_beam"])
def test_no_frames_and_no_utterances(tiny, method):
    model = tiny(0, lens=[4, 2])
    empty = model._replace(lens=torch.tensor([4, 0]))
    found = run(empty, method=method)
    assert found[0][0].tokens == run(model, method=method)[0][0].tokens
    assert (found[1][0].tokens, found[1][0].log_prob) == ((), 0)
    nothing = model._replace(encoder_out=torch.zeros(2, 0, 6), lens=torch.tensor([0, 0]))
    assert [h[0].tokens for h in run(nothing, method=method)] == [(), ()]
    assert run(model._replace(encoder_out=torch.zeros(0, 3, 6), lens=torch.zeros(0)), method=method) == []


def test_scores_stay_exact_over_many_frames(tiny, reference):
    model = tiny(2, V=5, lens=[600], sharpness=1.0)
    (found,) = run(model, method="greedy")[0]
    assert found.log_prob == pytest.approx(reference.greedy(model, 0)[2], rel=1e-6)


def test_under_autocast_the_result_is_the_same(tiny):
    model = tiny(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(model) == run(model)
        inside = run(model)
    assert inside == run(model)


def test_bfloat16_joiner_stays_close(tiny, reference):
    model = tiny(4, blank_bias=3.0)
    exact, close = run(model, method="greedy"), run(model, method="greedy", joiner_dtype="bfloat16")
    for (a,), (b,) in zip(exact, close):
        assert b.log_prob == pytest.approx(a.log_prob, abs=0.2)


def test_large_inputs_of_the_joiner_do_not_overflow(tiny, reference):
    model = tiny(6)
    with torch.no_grad():
        model.joiner.encoder_proj.weight.mul_(60)
        model.joiner.predictor_proj.weight.mul_(20)
    for utterance, (found,) in enumerate(run(model, method="greedy")):
        assert found.tokens == reference.greedy(model, utterance)[0]


def test_a_full_context_table_is_emptied_and_goes_on(tiny, monkeypatch):
    model = tiny(9, lens=[20, 20, 20])
    expected = run(model, nbest=4)
    monkeypatch.setattr("tokenverse_pp.decoding.scorer.FEWEST_ROWS", 1)  # room for 4 rows a hypothesis
    assert run(model, nbest=4) == expected


def test_nan_names_the_utterance(tiny):
    model = tiny(0, lens=[5, 9, 7])
    model.encoder_out[2, 3] = math.nan
    with pytest.raises(UserError, match="utterance 2 of the batch"):
        run(model)


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_greedy_search_is_a_beam_of_one(tiny, batch):
    """Greedy search looks ahead by more frames the fewer utterances there are; the result must not depend on it."""
    model = tiny(batch, V=30, lens=[1 + (37 * i + 41 * batch) % 60 for i in range(batch)], blank_bias=2)
    greedy, beam = run(model, method="greedy"), run(model, beam=1)
    assert sum(len(h.tokens) for (h,) in greedy) > batch
    for (a,), (b,) in zip(greedy, beam):
        assert (a.tokens, a.frames) == (b.tokens, b.frames)
        assert a.log_prob == pytest.approx(b.log_prob, **LOOSE)
        assert a.log_probs == pytest.approx(b.log_probs, **LOOSE)

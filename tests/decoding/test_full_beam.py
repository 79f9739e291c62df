"""Several symbols a frame: the sum over all alignments, written out plainly, and the modified beam search as a case."""

import math

import pytest

from tokenverse_pp.base.options import SearchOptions
from tokenverse_pp.decoding.recognizer import search_frames

LOOSE = {"abs": 2e-4, "rel": 2e-5}


def run(model, **options):
    return search_frames(*model, SearchOptions(method="full_beam", **options))


def every_sequence(model, reference, utterance, most):
    """tokens -> (log of the summed probability of its alignments, probability and frames of the best one).

    In each frame up to ``most`` symbols, then a blank, which is left out behind ``most`` symbols.
    """
    totals = {(): (0.0, 0.0, ())}
    symbols = range(1, model.joiner.output.out_features)
    for t in range(int(model.lens[utterance])):
        after = {}
        writing = totals
        for written in range(most + 1):
            longer = {}
            for tokens, (total, best, frames) in writing.items():
                if written == most:
                    add(after, tokens, total, best, frames)
                    continue
                log_probs = reference.log_probs_at(model, utterance, t, tokens).tolist()
                add(after, tokens, total + log_probs[0], best + log_probs[0], frames)
                for v in symbols:
                    add(longer, (*tokens, v), total + log_probs[v], best + log_probs[v], (*frames, t))
            writing = longer
        totals = after
    return totals


def add(totals, tokens, log_prob, *alignment):
    before, *other = totals.get(tokens, (-math.inf, -math.inf, ()))
    high, low = max(before, log_prob), min(before, log_prob)
    totals[tokens] = (high + math.log1p(math.exp(low - high)), *max(alignment, tuple(other)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("most, V, lens", [(1, 3, [4, 3]), (2, 3, [3, 2, 0]), (3, 2, [4, 1]), (4, 3, [1])])
def test_all_alignments_are_summed_when_nothing_is_pruned(tiny, reference, seed, most, V, lens):
    model = tiny(seed, V=V, lens=lens, blank_bias=0.0, context=2 * (seed % 2))
    for utterance, found in enumerate(run(model, beam=400, nbest=400, max_symbols=most, length_norm=False)):
        expected = every_sequence(model, reference, utterance, most)
        assert {h.tokens for h in found} == set(expected)
        for h in found:
            total, _, frames = expected[h.tokens]
            assert h.log_prob == pytest.approx(total, **LOOSE)
            assert h.frames == frames
        assert sum(math.exp(h.log_prob) for h in found) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_one_symbol_a_frame_is_the_modified_beam_search(tiny, seed):
    model = tiny(seed, V=4, lens=[4, 3, 1], blank_bias=seed % 3)
    full = run(model, beam=300, nbest=300, max_symbols=1)
    modified = search_frames(*model, SearchOptions(beam=300, nbest=300))
    for a, b in zip(full, modified):
        in_full, in_modified = ({h.tokens: h for h in hypotheses} for hypotheses in (a, b))
        assert in_full.keys() == in_modified.keys()
        for tokens, h in in_full.items():
            other = in_modified[tokens]
            assert (h.log_prob, h.score) == pytest.approx((other.log_prob, other.score), **LOOSE)


def test_one_symbol_a_frame_with_a_narrow_beam_is_better_than_the_modified_beam_search(tiny):
    """The one merges before it prunes, the other after it, as icefall: its twins take up room in the beam."""
    gain = 0.0
    for seed in range(40):
        model = tiny(seed, lens=[15], blank_bias=1.5)
        every = search_frames(*model, SearchOptions(beam=64, nbest=64, length_norm=False))[0]
        log_prob = {h.tokens: h.log_prob for h in every}
        full = run(model, beam=4, max_symbols=1, length_norm=False)[0][0]
        modified = search_frames(*model, SearchOptions(beam=4, length_norm=False))[0][0]
        gain += log_prob[full.tokens] - log_prob[modified.tokens]
    assert gain > 0


@pytest.mark.parametrize("seed", range(6))
def test_more_symbols_a_frame_are_written_with_their_frames_and_log_probs(tiny, reference, seed):
    model = tiny(seed, lens=[8], blank_bias=-1.5, context=2 * (seed % 2))
    for h in run(model, beam=4, nbest=4, max_symbols=3)[0]:
        assert list(h.frames) == sorted(h.frames)
        assert max(h.frames.count(t) for t in range(8)) == 3
        for i, (token, t, log_prob) in enumerate(zip(h.tokens, h.frames, h.log_probs)):
            expected = reference.log_probs_at(model, 0, t, h.tokens[:i])[token]
            assert log_prob == pytest.approx(float(expected), **LOOSE)


@pytest.mark.parametrize("seed", range(6))
def test_no_beam_beats_the_full_sum_and_a_wide_one_reaches_it(tiny, reference, seed):
    model = tiny(seed, V=3, lens=[3], blank_bias=0.0)
    expected = {tokens: total for tokens, (total, *_) in every_sequence(model, reference, 0, 2).items()}
    for beam in (1, 2, 4, 300):
        found = run(model, beam=beam, max_symbols=2, length_norm=False)[0][0]
        assert found.log_prob <= expected[found.tokens] + 1e-4
    assert found.tokens == max(expected, key=lambda tokens: expected[tokens])

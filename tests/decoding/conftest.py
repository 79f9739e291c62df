"""Tiny random models, and two reference searches: written plainly, one utterance at a time, from the algorithms."""

import math
from collections import namedtuple

import pytest
from tiny_transducers import build_tiny, log_probs_at


@pytest.fixture(scope="session")
def tiny():
    """``tiny(seed, V=.., lens=[..])``: a model and a batch."""
    return build_tiny


def reference_greedy(model, utterance):
    """The best symbols of each frame, up to a blank. -> tokens, frames, total log-probability."""
    tokens, frames, total = [], [], 0.0
    for t in range(int(model.lens[utterance])):
        for _ in range(model.predictor.symbols_per_frame):
            log_probs = log_probs_at(model, utterance, t, tokens)
            best = int(log_probs.argmax())
            total += float(log_probs[best])
            if best == 0:
                break
            tokens.append(best)
            frames.append(t)
    return tuple(tokens), tuple(frames), total


def reference_beam(model, utterance, beam, temperature=1.0, blank_penalty=0.0):
    """Modified beam search (icefall), with the frames of the most probable alignment.

    -> {tokens: (log-probability, frames)} after the last frame.
    """
    hypotheses = {(): (0.0, 0.0, ())}
    for t in range(int(model.lens[utterance])):
        candidates = []
        for tokens, (total, path, frames) in hypotheses.items():
            log_probs = log_probs_at(model, utterance, t, tokens, temperature, blank_penalty)
            candidates += [(total + float(p), path + float(p), tokens, frames, v) for v, p in enumerate(log_probs)]
        candidates.sort(key=lambda c: -c[0])
        hypotheses = {}
        for total, path, tokens, frames, v in candidates[:beam]:
            if v != 0:
                tokens, frames = (*tokens, v), (*frames, t)
            if tokens in hypotheses:
                better, *kept = hypotheses[tokens]
                total = better + math.log1p(math.exp(total - better))
                hypotheses[tokens] = (total, *max((path, frames), kept, key=lambda found: found[0]))
            else:
                hypotheses[tokens] = (total, path, frames)
    return {tokens: (total, frames) for tokens, (total, _, frames) in hypotheses.items()}


@pytest.fixture
def reference():
    """The reference searches, by name."""
    return namedtuple("Reference", "log_probs_at greedy beam")(log_probs_at, reference_greedy, reference_beam)

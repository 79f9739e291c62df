"""Tiny random models, and two reference searches: written plainly, one utterance at a time, from the algorithms."""

import math
from collections import namedtuple

import pytest
import torch

from tokenverse_pp.models.transducer import Joiner, StatelessPredictor

Tiny = namedtuple("Tiny", "predictor joiner encoder_out lens")


def build_tiny(seed, V=9, lens=(12, 7, 1), dim=8, context=2, blank_bias=1.0, sharpness=3.0):
    """Predictor, joiner and encoder output, sharp enough for near ties to be rare."""
    torch.manual_seed(seed)
    predictor = StatelessPredictor(V, dim, context)
    joiner = Joiner(6, dim, 16, V)
    with torch.no_grad():
        joiner.output.weight.mul_(sharpness)
        joiner.output.bias[0] += blank_bias
    out = torch.randn(len(lens), max(lens), 6) * 2
    return Tiny(predictor, joiner, out, torch.tensor(lens))


@pytest.fixture(scope="session")
def tiny():
    """``tiny(seed, V=.., lens=[..])``: a model and a batch."""
    return build_tiny


@torch.no_grad()
def log_probs_at(model, utterance, t, tokens, temperature=1.0, blank_penalty=0.0):
    """(V,) log-probabilities of the next symbol, straight through the modules."""
    state = model.predictor(torch.tensor([list(tokens)], dtype=torch.int64))[0, -1]
    am = model.joiner.encoder_proj(model.encoder_out[utterance, t])
    logits = model.joiner(am, model.joiner.predictor_proj(state)).double()
    logits[0] -= blank_penalty
    return (logits / temperature).log_softmax(-1)


def reference_greedy(model, utterance):
    """The best symbol of each frame. -> tokens, frames, total log-probability."""
    tokens, frames, total = [], [], 0.0
    for t in range(int(model.lens[utterance])):
        log_probs = log_probs_at(model, utterance, t, tokens)
        best = int(log_probs.argmax())
        total += float(log_probs[best])
        if best != 0:
            tokens.append(best)
            frames.append(t)
    return tuple(tokens), tuple(frames), total


def reference_beam(model, utterance, beam, temperature=1.0, blank_penalty=0.0):
    """Modified beam search (icefall). -> {tokens: (log-probability, frames)} after the last frame."""
    hypotheses = {(): (0.0, ())}
    for t in range(int(model.lens[utterance])):
        candidates = []
        for tokens, (total, frames) in hypotheses.items():
            log_probs = log_probs_at(model, utterance, t, tokens, temperature, blank_penalty)
            candidates += [(total + float(p), tokens, frames, v) for v, p in enumerate(log_probs)]
        candidates.sort(key=lambda c: -c[0])
        hypotheses = {}
        for total, tokens, frames, v in candidates[:beam]:
            if v != 0:
                tokens, frames = (*tokens, v), (*frames, t)
            if tokens in hypotheses:
                better, kept = hypotheses[tokens]
                hypotheses[tokens] = (better + math.log1p(math.exp(total - better)), kept)
            else:
                hypotheses[tokens] = (total, frames)
    return hypotheses


@pytest.fixture
def reference():
    """The reference searches, by name."""
    return namedtuple("Reference", "log_probs_at greedy beam")(log_probs_at, reference_greedy, reference_beam)

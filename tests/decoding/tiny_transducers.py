"""Small predictors and joiners with random encoder output, and their probabilities without a search."""

from collections import namedtuple

import torch

from tokenverse_pp.models.predictor import LstmPredictor, StatelessPredictor
from tokenverse_pp.models.transducer import Joiner

Tiny = namedtuple("Tiny", "predictor joiner encoder_out lens")


def build_tiny(seed, V=9, lens=(12, 7, 1), dim=8, context=2, blank_bias=1.0, sharpness=3.0, most=1):
    """Predictor, joiner and encoder output, sharp enough for near ties to be rare.

    With ``context`` 0 the predictor is an LSTM and the joiner has ReLU, as Parakeet's; ``most``: symbols of a frame.
    """
    torch.manual_seed(seed)
    predictor = StatelessPredictor(V, dim, context) if context else LstmPredictor(V, dim, 2)
    predictor.symbols_per_frame = most
    joiner = Joiner(6, dim, 16, V, "tanh" if context else "relu")
    with torch.no_grad():
        if not context:
            predictor.lstm.weight_hh_l0.mul_(3)
            joiner.predictor_proj.weight.mul_(4)
        joiner.output.weight.mul_(sharpness)
        joiner.output.bias[0] += blank_bias
    out = torch.randn(len(lens), max(lens), 6) * 2
    return Tiny(predictor, joiner, out, torch.tensor(lens))


@torch.no_grad()
def log_probs_at(model, utterance, t, tokens, temperature=1.0, blank_penalty=0.0):
    """(V,) log-probabilities of the next symbol, straight through the modules."""
    state = model.predictor(torch.tensor([list(tokens)], dtype=torch.int64))[0, -1]
    am = model.joiner.encoder_proj(model.encoder_out[utterance, t])
    logits = model.joiner(am, model.joiner.predictor_proj(state)).double()
    logits[0] -= blank_penalty
    return (logits / temperature).log_softmax(-1)

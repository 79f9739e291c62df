"""The transducer loss as in the textbook: one cell at a time, float64, plain numpy. Slow and obvious."""

from __future__ import annotations

import numpy as np


def log_softmax(x: np.ndarray) -> np.ndarray:
    top = x.max(-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))


def transducer_loss(
    logits: np.ndarray,
    symbols: np.ndarray,
    blank: int = 0,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    keep: np.ndarray | None = None,
) -> float:
    """Negative log-likelihood of one utterance by Graves' forward recursion (2012, equation 16).

    logits (T, U + 1, V), symbols (U,); `keep` (T, U + 1): positions that are not pruned away.
    """
    num_frames, positions, _ = logits.shape
    log_probs = log_softmax(logits.astype(np.float64))
    if keep is not None:
        log_probs = np.where(keep[:, :, None], log_probs, -np.inf)
    alpha = np.full((num_frames + 1, positions), -np.inf)
    alpha[0, 0] = 0.0
    for t in range(num_frames + 1):
        for u in range(positions):
            ways = [alpha[t, u]]
            if t > 0:
                ways.append(alpha[t - 1, u] + log_probs[t - 1, u, blank])
            # The frame from which the last symbol was taken, and where that leads.
            source = t if rnnt_type == "regular" else t - 1
            if u > 0 and 0 <= source < num_frames:
                symbol = log_probs[source, u - 1, symbols[u - 1]]
                symbol += delay_penalty * ((num_frames - 1) / 2 - source)
                if rnnt_type == "constrained":
                    symbol += log_probs[source, u, blank]
                ways.append(alpha[source, u - 1] + symbol)
            alpha[t, u] = np.logaddexp.reduce(ways)
    return float(-alpha[num_frames, positions - 1])


def smoothed_logits_loss(
    am: np.ndarray,
    lm: np.ndarray,
    unigram: np.ndarray,
    symbols: np.ndarray,
    lm_scale: float,
    am_scale: float,
    rnnt_type: str = "regular",
) -> float:
    """The smoothed loss of one utterance: am (T, V), lm (U + 1, V), unigram (V,) probabilities.

    The interpolated log-probabilities are not normalised; adding a column that restores the sum would change
    nothing else, so the recursion above is given them through its log-softmax by a spare symbol.
    """
    both = log_softmax(am[:, None] + lm[None])
    lm_only = np.broadcast_to(log_softmax(lm)[None], both.shape)
    am_only = np.broadcast_to(log_softmax(am + np.log(unigram))[:, None], both.shape)
    mixed = (1 - lm_scale - am_scale) * both + lm_scale * lm_only + am_scale * am_only
    # By Jensen's inequality the mixture sums to at most one: the rest goes to the spare symbol.
    rest = np.log(np.maximum(1.0 - np.exp(mixed).sum(-1, keepdims=True), 1e-300))
    return transducer_loss(np.concatenate([mixed, rest], -1), symbols, rnnt_type=rnnt_type)

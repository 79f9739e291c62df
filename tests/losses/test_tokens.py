"""The expected log-probability of each token, against a sum over all alignments one by one."""

import itertools

import numpy as np
import pytest
import torch
from textbook import log_softmax

from tokenverse_pp.losses import native
from tokenverse_pp.losses.entry import token_log_probs


def by_enumeration(logits, symbols, one_a_frame):
    """logits (T, U + 1, V): for each alignment (the frame of each token) its score; then posterior means."""
    frames, _, _ = logits.shape
    log_probs = log_softmax(logits)
    scores, arcs = [], []
    for at in itertools.combinations_with_replacement(range(frames), len(symbols)):
        if one_a_frame and len(set(at)) < len(at):
            continue
        arc = [log_probs[t, u, symbols[u]] for u, t in enumerate(at)]
        score = sum(arc)
        for t in range(frames):
            written = sum(a <= t for a in at)
            if not (one_a_frame and t in at):  # a symbol takes the whole frame
                score += log_probs[t, written, 0]
        scores.append(score)
        arcs.append(arc)
    posterior = np.exp(np.array(scores) - np.logaddexp.reduce(scores))
    return posterior @ np.array(arcs)


@pytest.mark.parametrize("rnnt_type", ["regular", "modified"])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_mean_over_all_alignments(seed, rnnt_type):
    torch.manual_seed(seed)
    n, frames, length, dim, vocab = 2, 5, 3, 8, 6
    am, lm = torch.randn(n, frames, dim).double(), torch.randn(n, length + 1, dim).double()
    joiner = torch.nn.Linear(dim, vocab).double()
    torch.nn.init.normal_(joiner.weight)
    symbols = torch.randint(1, vocab, (n, length))
    boundary = torch.tensor([[0, 0, length, frames], [0, 0, length - 1, frames - 1]])
    simple = torch.randn(n, frames, vocab).double(), torch.randn(n, length + 1, vocab).double()
    options = {"prune_range": length + 1, "rnnt_type": rnnt_type}
    found = token_log_probs(*simple, am, lm, joiner, symbols, boundary, **options)
    logits = joiner(torch.tanh(am[:, :, None] + lm[:, None])).detach().numpy()
    for i, (_, _, u, t) in enumerate(boundary.tolist()):
        expected = by_enumeration(logits[i, :t, : u + 1], symbols[i, :u].tolist(), rnnt_type == "modified")
        np.testing.assert_allclose(found[i, :u].numpy(), expected, rtol=1e-9)
        assert (found[i, u:] == 0).all()


def test_no_tokens_and_tokens_that_have_no_path():
    torch.manual_seed(0)
    am, lm, joiner = torch.randn(1, 2, 4), torch.randn(1, 1, 4), torch.nn.Linear(4, 3)
    assert (
        token_log_probs(am @ joiner.weight.T, lm @ joiner.weight.T, am, lm, joiner, torch.zeros(1, 0).long()).numel()
        == 0
    )
    lm = torch.randn(1, 5, 4)
    symbols = torch.ones(1, 4, dtype=torch.int64)
    found = token_log_probs(
        am @ joiner.weight.T, lm @ joiner.weight.T, am, lm, joiner, symbols, rnnt_type="modified", prune_range=5
    )
    assert torch.isfinite(found).all()


def test_the_windows_are_found_without_smoothing(monkeypatch):
    # k2's own defaults smooth, and its unigram is the whole batch's: an utterance would depend on its neighbours.
    torch.manual_seed(0)
    asked = []
    plain = native.rnnt_loss_smoothed

    def recording(**options):
        asked.append((options["lm_only_scale"], options["am_only_scale"]))
        return plain(**options)

    monkeypatch.setattr(native, "rnnt_loss_smoothed", recording)
    joiner = torch.nn.Linear(4, 3)
    am, lm, symbols = torch.randn(1, 6, 4), torch.randn(1, 3, 4), torch.ones(1, 2, dtype=torch.int64)
    token_log_probs(am @ joiner.weight.T, lm @ joiner.weight.T, am, lm, joiner, symbols)
    assert asked == [(0.0, 0.0)]

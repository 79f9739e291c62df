"""The auxiliary CTC loss, against a sum over all alignments written out."""

import itertools
import math

import torch
from lhotse import CutSet
from toy_runs import read_cuts, toy_parts

from tokenverse_pp.training.steps import forward


def collapse(path):
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != 0)


def test_off_by_default_and_without_a_layer(tiny_corpus):
    parts = toy_parts(tiny_corpus)
    batch = parts.dataset[CutSet.from_cuts(read_cuts(tiny_corpus)[:2])]
    assert parts.model.ctc is None
    assert forward(parts.model, batch, stored=False).ctc.tolist() == [0.0, 0.0]


def test_equals_the_sum_over_all_alignments(tiny_corpus):
    model = toy_parts(tiny_corpus, model__loss__ctc_scale=1.0).model.eval()
    out = torch.randn(2, 4, model.encoder.output_dim)
    lens, tokens, token_lens = torch.tensor([4, 3]), torch.tensor([[1, 2], [2, 0]]), torch.tensor([2, 1])
    found = model._ctc_loss(out, lens, tokens, token_lens)
    log_probs = model.ctc(out).log_softmax(-1)[..., :3].double()
    for i in range(2):
        target = tuple(tokens[i, : token_lens[i]].tolist())
        paths = [p for p in itertools.product(range(3), repeat=int(lens[i])) if collapse(p) == target]
        total = torch.logsumexp(torch.stack([sum(log_probs[i, t, s] for t, s in enumerate(p)) for p in paths]), 0)
        assert math.isclose(found[i].item(), -total.item(), rel_tol=1e-5)


def test_a_target_without_room_counts_nothing(tiny_corpus):
    model = toy_parts(tiny_corpus, model__loss__ctc_scale=1.0).model
    out = torch.randn(1, 2, model.encoder.output_dim, requires_grad=True)
    # The same token twice needs a blank between: three frames.
    loss = model._ctc_loss(out, torch.tensor([2]), torch.tensor([[5, 5]]), torch.tensor([2]))
    loss.sum().backward()
    assert loss.item() == 0 and not out.grad.any()

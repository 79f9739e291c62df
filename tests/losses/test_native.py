"""The native functions against a textbook recursion, finite differences and their own laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import Case, cases, make_case
from hypothesis import given, settings
from textbook import smoothed_logits_loss, transducer_loss

from tokenverse_pp.losses import native

quick = settings(max_examples=60, deadline=None)


def lengths(case: Case):
    for b, (_, _, u, t) in enumerate(case.boundary.tolist()):
        yield b, u, t


def simple_loss(case: Case, lm_scale: float, am_scale: float, **kwargs):
    return native.rnnt_loss_smoothed(
        case.lm_simple, case.am_simple, case.symbols, 0, lm_scale, am_scale, case.boundary, case.rnnt_type,
        case.delay_penalty, "none", **kwargs,
    )  # fmt: skip


@quick
@given(cases())
def test_simple_loss_is_the_textbook_loss(case):
    loss = simple_loss(case, 0.0, 0.0)
    for b, u, t in lengths(case):
        logits = (case.am_simple[b, :t, None] + case.lm_simple[b, None, : u + 1]).numpy()
        expected = transducer_loss(logits, case.symbols[b].numpy(), 0, case.rnnt_type, case.delay_penalty)
        assert loss[b].item() == pytest.approx(expected, abs=1e-10)


@quick
@given(cases())
def test_smoothed_loss_mixes_log_probabilities(case):
    case = case._replace(delay_penalty=0.0)
    loss = simple_loss(case, 0.2, 0.1)
    unigram = case.lm_simple.softmax(2).mean((0, 1)).numpy()
    for b, u, t in lengths(case):
        expected = smoothed_logits_loss(
            case.am_simple[b, :t].numpy(), case.lm_simple[b, : u + 1].numpy(), unigram,
            case.symbols[b].numpy(), 0.2, 0.1, case.rnnt_type,
        )  # fmt: skip
        assert loss[b].item() == pytest.approx(expected, abs=1e-8)


@quick
@given(cases())
def test_full_loss_is_the_textbook_loss(case):
    logits = torch.tanh(case.am.unsqueeze(2) + case.lm.unsqueeze(1)) @ case.weight.t() + case.bias
    loss = native.rnnt_loss(logits, case.symbols, 0, case.boundary, case.rnnt_type, case.delay_penalty, "none")
    for b, u, t in lengths(case):
        expected = transducer_loss(
            logits[b, :t, : u + 1].numpy(), case.symbols[b].numpy(), 0, case.rnnt_type, case.delay_penalty
        )
        assert loss[b].item() == pytest.approx(expected, abs=1e-10)


@quick
@given(cases())
def test_pruned_loss_is_the_textbook_loss_over_the_kept_positions(case):
    _, (px_grad, py_grad) = simple_loss(case, 0.0, 0.0, return_grad=True)
    ranges = native.get_rnnt_prune_ranges(px_grad, py_grad, case.boundary, case.prune_range)
    am, lm = native.do_rnnt_pruning(case.am, case.lm, ranges)
    logits = torch.tanh(am + lm) @ case.weight.t() + case.bias
    loss = native.rnnt_loss_pruned(
        logits, case.symbols, ranges, 0, case.boundary, case.rnnt_type, case.delay_penalty, "none"
    )
    full = torch.tanh(case.am.unsqueeze(2) + case.lm.unsqueeze(1)) @ case.weight.t() + case.bias
    for b, u, t in lengths(case):
        keep = np.zeros((t, case.symbols.shape[1] + 1), dtype=bool)
        np.put_along_axis(keep, ranges[b, :t].numpy(), True, axis=1)
        expected = transducer_loss(
            full[b, :t, : u + 1].numpy(), case.symbols[b].numpy(), 0, case.rnnt_type, case.delay_penalty,
            keep[:, : u + 1],
        )  # fmt: skip
        assert loss[b].item() == pytest.approx(expected, abs=1e-10)


@quick
@given(cases())
def test_prune_ranges_are_reachable_windows(case):
    _, (px_grad, py_grad) = simple_loss(case, 0.0, 0.0, return_grad=True)
    ranges = native.get_rnnt_prune_ranges(px_grad, py_grad, case.boundary, case.prune_range)
    width = min(case.prune_range, case.symbols.shape[1] + 1)
    assert ranges.shape == (*case.am.shape[:2], width)
    assert torch.equal(ranges, ranges[:, :, :1] + torch.arange(width))
    begin = ranges[:, :, 0]
    steps = begin.diff(dim=1)
    assert (begin[:, 0] == 0).all() and (steps >= 0).all()
    assert (steps <= (width - 1 if case.rnnt_type == "regular" else 1)).all()
    for b, u, t in lengths(case):
        assert u <= ranges[b, t - 1, -1] <= case.symbols.shape[1]


@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
def test_gradients_are_finite_differences(rnnt_type):
    case = make_case(3, batch=3, frames=6, symbols=3, vocab=4, rnnt_type=rnnt_type, delay_penalty=0.05)

    def loss(am, lm):
        case_now = case._replace(am_simple=am, lm_simple=lm)
        return simple_loss(case_now, 0.25, 0.1)

    inputs = (case.am_simple.requires_grad_(), case.lm_simple.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs, atol=1e-7)


@pytest.mark.parametrize("columns", [5, 6])
@pytest.mark.parametrize("boundary", [None, [[0, 0, 3, 5], [1, 2, 2, 5], [0, 1, 0, 4]]])
def test_recursion_gradients_are_finite_differences_and_occupations(columns, boundary):
    px = torch.randn(3, 3, columns, dtype=torch.float64, requires_grad=True)
    py = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    bounds = None if boundary is None else torch.tensor(boundary)
    recursion = native.mutual_information_recursion
    assert torch.autograd.gradcheck(lambda x, y: recursion(x, y, bounds), (px, py))
    scores, (px_grad, py_grad) = recursion(px, py, bounds, return_grad=True)
    expected = torch.autograd.grad(scores.sum(), (px, py))
    assert torch.equal(px_grad, expected[0]) and torch.equal(py_grad, expected[1])
    # Every path leaves each of its frames once: by a blank, or by a symbol where that uses up the frame.
    frames = py_grad.sum((1, 2)) + (px_grad.sum((1, 2)) if columns == 5 else 0)
    expected_frames = [5.0] * 3 if boundary is None else [5.0, 3.0, 3.0]
    assert torch.allclose(frames, torch.tensor(expected_frames, dtype=torch.float64))


def test_begin_boundary_is_the_sub_lattice():
    px, py = torch.randn(1, 4, 8, dtype=torch.float64), torch.randn(1, 5, 7, dtype=torch.float64)
    inside = native.mutual_information_recursion(px, py, torch.tensor([[1, 2, 3, 6]]))
    alone = native.mutual_information_recursion(px[:, 1:3, 2:7], py[:, 1:4, 2:6])
    assert inside.item() == pytest.approx(alone.item(), abs=1e-12)


def test_returned_gradients_stay_what_they_are_after_backward():
    case = make_case(5, batch=2, frames=6, symbols=3)
    am = case.am_simple.requires_grad_()
    loss, grads = simple_loss(case._replace(am_simple=am), 0.1, 0.1, return_grad=True)
    before = [g.clone() for g in grads]
    (loss.sum() * 7).backward(retain_graph=True)
    first = am.grad.clone()
    (loss.sum() * 7).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, grads))
    assert torch.equal(am.grad, 2 * first)


def test_reductions():
    case = make_case(6, batch=3, frames=6, symbols=3)
    each = simple_loss(case, 0.0, 0.0)
    options = (case.lm_simple, case.am_simple, case.symbols, 0, case.boundary)
    assert native.rnnt_loss_simple(*options).item() == pytest.approx(each.mean().item())
    assert native.rnnt_loss_simple(*options, reduction="sum").item() == pytest.approx(each.sum().item())
    with pytest.raises(ValueError, match="reduction"):
        native.rnnt_loss_simple(*options, reduction="max")


def test_batch_of_only_empty_references():
    case = make_case(7, batch=2, frames=4, symbols=0)
    loss = simple_loss(case, 0.0, 0.0)
    for b, _, t in lengths(case):
        blanks = (case.am_simple[b, :t] + case.lm_simple[b]).log_softmax(1)[:, 0]
        assert loss[b].item() == pytest.approx(-blanks.sum().item())


def test_no_path_scores_minus_infinity_with_zero_gradient():
    px = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)  # modified: 3 symbols in 2 frames
    py = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    scores, grads = native.mutual_information_recursion(px, py, None, return_grad=True)
    assert torch.isneginf(scores).all()
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extreme_logits_give_finite_losses_and_gradients(rnnt_type, dtype, smoothing):
    case = make_case(8, batch=3, frames=40, symbols=9, vocab=30, rnnt_type=rnnt_type, scale=1.0, dtype=dtype)
    # Saturated rows that agree on no symbol at all, and rows that agree on one.
    am, lm = torch.full_like(case.am_simple, -1e4), torch.full_like(case.lm_simple, -1e4)
    am[:, :, 3], lm[:, :, 5], am[:, ::3, 5] = 1e4, 1e4, 1e4
    am.requires_grad_(), lm.requires_grad_()
    loss = simple_loss(case._replace(am_simple=am, lm_simple=lm), smoothing, smoothing)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(am.grad).all() and torch.isfinite(lm.grad).all()


@pytest.mark.parametrize(
    "boundary, message",
    [
        (torch.tensor([[0, 0, 3, 7]]), "at most 3 symbols and 6 frames"),
        (torch.tensor([[0, 0, 3, 6]], dtype=torch.int32), "int64"),
        (torch.tensor([[2, 0, 1, 6]]), "begin <= end"),
    ],
)
def test_bad_boundaries_are_refused(boundary, message):
    case = make_case(9, batch=1, frames=6, symbols=3)
    with pytest.raises(ValueError, match=message):
        simple_loss(case._replace(boundary=boundary), 0.0, 0.0)


def test_unknown_topology_is_refused():
    with pytest.raises(ValueError, match="rnnt_type"):
        simple_loss(make_case(9, batch=1, frames=6, symbols=3)._replace(rnnt_type="odd"), 0.0, 0.0)

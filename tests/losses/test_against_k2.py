"""Every function against the real k2, in float64: values, ranges, gradients. Runs in .ci/k2_env.sh's environment."""

from __future__ import annotations

import pytest
import torch
from cases import Case, cases, make_case
from hypothesis import given, settings
from test_entry import assert_close, entry_loss, loss_and_grads

from tokenverse_pp.losses import k2_available, native
from tokenverse_pp.losses.k2 import load_k2

pytestmark = [
    pytest.mark.k2,
    pytest.mark.skipif(not k2_available(), reason="k2 is not installed; see .ci/k2_env.sh"),
]
many = settings(max_examples=250, deadline=None)


def both(function):
    """The results of `function(library)` for the native library and for k2."""
    return function(native), function(load_k2())


def assert_same(pair, value_tolerance=1e-10, grad_tolerance=1e-8, values=1):
    """The first `values` tensors are losses, the others gradients; infinities must be at the same places."""
    for number, (ours, theirs) in enumerate(zip(*pair)):
        assert torch.equal(torch.isfinite(ours), torch.isfinite(theirs))
        finite = torch.isfinite(theirs)
        tolerance = value_tolerance if number < values else grad_tolerance
        assert torch.allclose(ours[finite], theirs[finite], rtol=0.0, atol=tolerance)


def weighted_grads(loss, inputs):
    weights = torch.arange(1, len(loss) + 1, dtype=loss.dtype)
    return torch.autograd.grad((loss * weights).sum(), inputs)


def smoothed(library, case: Case, lm_scale, am_scale):
    am, lm = (x.clone().requires_grad_() for x in (case.am_simple, case.lm_simple))
    loss, grads = library.rnnt_loss_smoothed(
        lm, am, case.symbols, 0, lm_scale, am_scale, case.boundary, case.rnnt_type, case.delay_penalty,
        "none", True,
    )  # fmt: skip
    return [loss, *(g.clone() for g in grads), *weighted_grads(loss, [am, lm])]


@many
@given(cases(min_symbols=1))
def test_rnnt_loss_smoothed(case):
    assert_same(both(lambda library: smoothed(library, case, case.lm_scale, case.am_scale)))


@many
@given(cases(min_symbols=1))
def test_rnnt_loss_simple(case):
    def run(library):
        am, lm = (x.clone().requires_grad_() for x in (case.am_simple, case.lm_simple))
        loss, grads = library.rnnt_loss_simple(
            lm, am, case.symbols, 0, case.boundary, case.rnnt_type, case.delay_penalty, "none", True
        )
        return [loss, *(g.clone() for g in grads), *weighted_grads(loss, [am, lm])]

    assert_same(both(run))


@many
@given(cases(min_symbols=1))
def test_rnnt_loss(case):
    full = torch.tanh(case.am.unsqueeze(2) + case.lm.unsqueeze(1)) @ case.weight.t() + case.bias

    def run(library):
        logits = full.clone().requires_grad_()
        loss = library.rnnt_loss(logits, case.symbols, 0, case.boundary, case.rnnt_type, case.delay_penalty, "none")
        return [loss, *weighted_grads(loss, [logits])]

    assert_same(both(run))


@many
@given(cases(min_symbols=1))
def test_pruning_and_rnnt_loss_pruned(case):
    """Ranges are computed from the same occupations; ties in them are then the same ties."""
    _, px_grad, py_grad, *_ = smoothed(load_k2(), case, 0.0, 0.0)
    ranges, k2_ranges = both(
        lambda library: library.get_rnnt_prune_ranges(px_grad, py_grad, case.boundary, case.prune_range)
    )
    assert torch.equal(ranges, k2_ranges)

    def run(library):
        am_band, lm_band = library.do_rnnt_pruning(case.am, case.lm, ranges)
        logits = (torch.tanh(am_band + lm_band) @ case.weight.t() + case.bias).requires_grad_()
        loss = library.rnnt_loss_pruned(
            logits, case.symbols, ranges, 0, case.boundary, case.rnnt_type, case.delay_penalty, "none"
        )
        return [loss, *weighted_grads(loss, [logits]), am_band, lm_band]

    assert_same(both(run))


@many
@given(cases(min_symbols=1))
def test_mutual_information_recursion(case):
    columns = case.am.shape[1] + (case.rnnt_type == "regular")
    generator = torch.Generator().manual_seed(int(case.symbols.sum()))
    batch, num_symbols = case.symbols.shape
    px_data = torch.randn(batch, num_symbols, columns, generator=generator, dtype=torch.float64)
    py_data = torch.randn(batch, num_symbols + 1, case.am.shape[1], generator=generator, dtype=torch.float64)
    boundary = case.boundary.clone()
    boundary[:, 0] = torch.minimum(boundary[:, 2], torch.ones_like(boundary[:, 2]))

    def run(library):
        px, py = px_data.clone().requires_grad_(), py_data.clone().requires_grad_()
        scores, grads = library.mutual_information_recursion(px, py, boundary, True)
        return [scores, *(g.clone() for g in grads)]

    ours, theirs = both(run)
    reachable = torch.isfinite(ours[0])
    assert_same(([x[reachable] for x in ours], [x[reachable] for x in theirs]))
    assert not torch.isfinite(theirs[0][~reachable]).any()


@settings(max_examples=200, deadline=None)
@given(cases(min_symbols=1))
def test_entry_point_gives_the_same_losses_and_gradients(case):
    """`regular` only: the others have exact ties between windows, which rounding breaks either way."""
    case = case._replace(rnnt_type="regular")
    assert_close(
        loss_and_grads(case, entry_loss, backend="native"), loss_and_grads(case, entry_loss, backend="k2"), 1e-9
    )


def test_float32_within_a_ten_thousandth():
    """On given ranges: float32 rounding moves a window now and then, for k2 as for us."""
    double = make_case(1, batch=8, frames=120, symbols=40, vocab=100, joiner_dim=64, scale=1.0)
    case = Case(*(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in double))
    exact = smoothed(load_k2(), double, 0.25, 0.0)
    ranges = load_k2().get_rnnt_prune_ranges(exact[1], exact[2], case.boundary, 5)

    def pruned(library, case):
        am_band, lm_band = library.do_rnnt_pruning(case.am, case.lm, ranges)
        logits = (torch.tanh(am_band + lm_band) @ case.weight.t() + case.bias).detach().requires_grad_()
        loss = library.rnnt_loss_pruned(logits, case.symbols, ranges, 0, case.boundary, reduction="none")
        return [loss, *weighted_grads(loss, [logits])]

    assert_close([x.double() for x in smoothed(native, case, 0.25, 0.0)], exact, 1e-4)
    assert_close([x.double() for x in pruned(native, case)], pruned(load_k2(), double), 1e-4)

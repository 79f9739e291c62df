"""The entry point: the chunked joiner against the plain composition, autocast, extremes, errors."""

from __future__ import annotations

import pytest
import torch
from cases import Case, cases, make_case
from hypothesis import given, settings

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.losses import k2_available, max_target_length, native, pruned_transducer_loss
from tokenverse_pp.losses.native import joiner

quick = settings(max_examples=40, deadline=None)
RECOMPUTE, KEEP_ALL = 0, 2**40


def entry_loss(case: Case, inputs, layer, **options):
    options = {"lm_scale": case.lm_scale, "am_scale": case.am_scale, **options}
    return pruned_transducer_loss(
        *inputs, layer, case.symbols, case.boundary, prune_range=case.prune_range, rnnt_type=case.rnnt_type,
        delay_penalty=case.delay_penalty, **options,
    )  # fmt: skip


def composed_loss(case: Case, inputs, layer):
    """The recipe as icefall writes it, with all logits in memory."""
    am_simple, lm_simple, am, lm = inputs
    common = {
        "symbols": case.symbols, "termination_symbol": 0, "boundary": case.boundary,
        "rnnt_type": case.rnnt_type, "delay_penalty": case.delay_penalty, "reduction": "none",
    }  # fmt: skip
    simple, grads = native.rnnt_loss_smoothed(
        lm=lm_simple, am=am_simple, lm_only_scale=case.lm_scale, am_only_scale=case.am_scale,
        return_grad=True, **common,
    )  # fmt: skip
    ranges = native.get_rnnt_prune_ranges(*grads, case.boundary, case.prune_range)
    am_band, lm_band = native.do_rnnt_pruning(am, lm, ranges)
    logits = layer(torch.tanh(am_band + lm_band))
    return simple, native.rnnt_loss_pruned(logits=logits, ranges=ranges, **common)


def loss_and_grads(case: Case, function, **options):
    """Both losses and the gradients of a weighted sum of them, one weight an utterance."""
    inputs = [x.clone().requires_grad_() for x in case.inputs[:4]]
    layer = case.linear()
    simple, pruned = function(case, inputs, layer, **options)
    weights = torch.arange(1, len(simple) + 1, dtype=simple.dtype)
    grads = torch.autograd.grad((weights * (0.5 * simple + pruned)).sum(), [*inputs, layer.weight, layer.bias])
    return [simple, pruned, *grads]


def assert_close(result, expected, tolerance):
    for a, b in zip(result, expected):
        assert (a - b).abs().max().item() <= tolerance * max(1.0, b.abs().max().item())


@quick
@given(cases())
def test_chunked_joiner_equals_the_plain_composition(case):
    expected = loss_and_grads(case, composed_loss)
    rows = case.boundary[:, 3].sum().item() * min(case.prune_range, case.symbols.shape[1] + 1)
    half = rows // 2 * sum(case.weight.shape) * 8
    with pytest.MonkeyPatch.context() as patch:
        for numbers in (1, 64, 2**20):  # one frame a chunk, a few, all
            patch.setattr(joiner, "CHUNK_NUMBERS_CPU", (numbers, numbers))
            for budget in (RECOMPUTE, half, KEEP_ALL):
                result = loss_and_grads(case, entry_loss, memory_budget=budget)
                assert_close(result, expected, 1e-11)


@pytest.mark.parametrize("budget", [RECOMPUTE, KEEP_ALL])
def test_gradients_are_finite_differences(budget):
    case = make_case(1, batch=2, frames=4, symbols=3, vocab=4, joiner_dim=3, scale=0.7)
    inputs = [x.requires_grad_() for x in (case.am, case.lm, case.weight, case.bias)]

    def pruned(am, lm, weight, bias):
        layer = torch.nn.Module()
        layer.weight, layer.bias = weight, bias
        simple_inputs = (case.am_simple, case.lm_simple)
        return entry_loss(case, (*simple_inputs, am, lm), layer, memory_budget=budget).pruned

    assert torch.autograd.gradcheck(pruned, inputs)


@pytest.mark.parametrize("budget", [RECOMPUTE, KEEP_ALL])
def test_backward_twice_gives_the_same_gradients(budget):
    case = make_case(2, batch=2, frames=6, symbols=4)
    am = case.am.clone().requires_grad_()
    inputs = (case.am_simple, case.lm_simple, am, case.lm)
    loss = entry_loss(case, inputs, case.linear(), memory_budget=budget).pruned.sum()
    (first,) = torch.autograd.grad(loss, am, retain_graph=True)
    (second,) = torch.autograd.grad(loss, am)
    assert torch.allclose(first, second, rtol=1e-12)


def test_target_that_is_blank_gets_both_gradients():
    case = make_case(3, batch=2, frames=6, symbols=4, vocab=3)
    case.symbols[0, 1] = 0
    assert_close(loss_and_grads(case, entry_loss), loss_and_grads(case, composed_loss), 1e-11)


@pytest.mark.parametrize("budget", [RECOMPUTE, KEEP_ALL])
def test_float32_is_close_to_float64(budget):
    case = make_case(4, batch=4, frames=60, symbols=20, vocab=50, joiner_dim=32, scale=0.5)
    single = Case(*(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in case))
    exact = loss_and_grads(case, entry_loss)
    result = loss_and_grads(single, entry_loss, memory_budget=budget)
    assert all(x.dtype == torch.float32 for x in result)
    assert_close([x.double() for x in result], exact, 1e-5)


@pytest.mark.parametrize("budget", [RECOMPUTE, KEEP_ALL])
def test_bfloat16_autocast_is_close_and_returns_float32(budget):
    case = make_case(5, batch=4, frames=60, symbols=20, vocab=50, joiner_dim=32, scale=0.5, dtype=torch.float32)
    exact = loss_and_grads(case, entry_loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss_and_grads(case, entry_loss, memory_budget=budget)
    assert all(x.dtype == torch.float32 for x in result)
    assert torch.allclose(result[0], exact[0])  # the simple loss has no half precision in it
    assert torch.allclose(result[1], exact[1], rtol=5e-3)
    for a, b in zip(result[2:], exact[2:]):
        assert (a - b).norm() < 0.02 * b.norm()


def test_half_precision_inputs_get_half_precision_gradients():
    case = make_case(6, batch=2, frames=8, symbols=4, dtype=torch.float32)
    inputs = [x.bfloat16().requires_grad_() for x in case.inputs[:4]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        simple, pruned = entry_loss(case, inputs, case.linear())
    (simple + pruned).sum().backward()
    assert simple.dtype == pruned.dtype == torch.float32
    assert all(x.grad.dtype == torch.bfloat16 and torch.isfinite(x.grad).all() for x in inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("favoured", [0, 3])  # blank: paths of blanks only; a symbol: never a blank
def test_extreme_logits_stay_finite(dtype, favoured):
    case = make_case(7, batch=3, frames=9, symbols=4, vocab=6, scale=1e4, dtype=dtype)
    case.bias.fill_(-1e4)[favoured] = 1e4
    for result in loss_and_grads(case, entry_loss):
        assert torch.isfinite(result).all()


@pytest.mark.parametrize("budget", [RECOMPUTE, KEEP_ALL])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_rows_without_occupation_are_left_out_without_a_trace(budget, dtype, tolerance, monkeypatch):
    """Confident joiners, as after training: most rows are skipped, and the gradients are those of all rows."""
    case = make_case(14, batch=3, frames=40, symbols=12, vocab=20, joiner_dim=8, scale=4.0, prune_range=5, dtype=dtype)
    visited = []
    choose = joiner._worth_picking
    monkeypatch.setattr(joiner, "_worth_picking", lambda needed: visited.append(needed) or choose(needed))
    result = loss_and_grads(case, entry_loss, memory_budget=budget)
    assert visited[0].double().mean() < 0.8
    assert_close(result, loss_and_grads(case, composed_loss), tolerance)


def test_nan_is_not_hidden():
    case = make_case(15, batch=2, frames=6, symbols=3)
    case.am[1, 0, 0] = float("nan")
    _, pruned, *grads = loss_and_grads(case, entry_loss)
    assert torch.isfinite(pruned[0]) and torch.isnan(pruned[1])
    assert not torch.isfinite(grads[4]).all()


def test_one_frame():
    case = make_case(8, batch=1, frames=1, symbols=1)
    assert_close(loss_and_grads(case, entry_loss), loss_and_grads(case, composed_loss), 1e-12)


@pytest.mark.parametrize("rnnt_type, factor", [("regular", 2), ("modified", 1), ("constrained", 1)])
def test_longest_target_is_finite_and_one_more_is_infinite(rnnt_type, factor):
    frames, longest = 3, max_target_length(3, prune_range=3, rnnt_type=rnnt_type)
    assert longest == factor * frames
    case = make_case(9, batch=2, frames=frames, symbols=longest + 1, rnnt_type=rnnt_type, prune_range=3)
    case.boundary[:, 2:] = torch.tensor([[longest + 1, frames], [longest, frames]])
    _, pruned, *grads = loss_and_grads(case, entry_loss)
    assert torch.isposinf(pruned[0]) and torch.isfinite(pruned[1])
    assert all(torch.isfinite(g).all() for g in grads)
    assert (grads[2][0] == 0).all()  # the joiner's input of the utterance without a path


def test_padding_does_not_reach_the_pruned_loss():
    case = make_case(10, batch=3, frames=9, symbols=4, lm_scale=0.0, am_scale=0.0)
    loss = entry_loss(case, case.inputs[:4], case.linear())
    for b, (_, _, u, t) in enumerate(case.boundary.tolist()):
        frames, positions = slice(0, t), slice(0, u + 1)
        alone = case._replace(symbols=case.symbols[b : b + 1, :u], boundary=case.boundary[b : b + 1])
        cut = (
            case.am_simple[b : b + 1, frames], case.lm_simple[b : b + 1, positions],
            case.am[b : b + 1, frames], case.lm[b : b + 1, positions],
        )  # fmt: skip
        single = entry_loss(alone, cut, case.linear())
        assert single.simple.item() == pytest.approx(loss.simple[b].item(), abs=1e-10)
        if u + 1 >= case.prune_range:  # a shorter reference alone has a narrower band, of other positions
            assert single.pruned.item() == pytest.approx(loss.pruned[b].item(), abs=1e-10)


def test_no_boundary_means_full():
    case = make_case(11, batch=2, frames=6, symbols=3)
    case.boundary[:, 2:] = torch.tensor([3, 6])
    explicit = entry_loss(case, case.inputs[:4], case.linear())
    implied = entry_loss(case._replace(boundary=None), case.inputs[:4], case.linear())
    assert torch.equal(explicit.pruned, implied.pruned)


def test_unknown_backend_is_a_user_error():
    case = make_case(12, batch=1, frames=4, symbols=2)
    with pytest.raises(UserError, match="auto, native, triton, torch, k2"):
        entry_loss(case, case.inputs[:4], case.linear(), backend="warp")


@pytest.mark.skipif(k2_available(), reason="k2 is installed here")
def test_k2_asked_for_and_missing_is_a_user_error():
    case = make_case(13, batch=1, frames=4, symbols=2)
    with pytest.raises(UserError, match="needs the k2 package"):
        entry_loss(case, case.inputs[:4], case.linear(), backend="k2")

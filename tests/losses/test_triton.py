"""The Triton kernels against k2's numbers, the PyTorch path and their own promises: no waiting, few launches."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from cases import RNNT_TYPES, Case, cases, make_case
from hypothesis import given, settings
from hypothesis import strategies as st
from make_golden import GOLDEN, golden_cases, load_case, run
from test_entry import KEEP_ALL, RECOMPUTE, assert_close, entry_loss
from torch.utils._python_dispatch import TorchDispatchMode

from tokenverse_pp.losses import native
from tokenverse_pp.losses.devices import use_kernels

triton = pytest.importorskip("triton")
from tokenverse_pp.losses.triton import joiner, simple  # noqa: E402  (they need triton)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# What only looks at a tensor, or makes one without writing to it.
NO_LAUNCH = {
    "view", "_unsafe_view", "transpose", "t", "unbind", "select", "slice", "expand", "as_strided", "detach", "alias",
    "unsqueeze", "squeeze", "permute", "empty", "empty_like", "new_empty", "lift_fresh", "reshape", "_reshape_alias",
    "unfold", "new_empty_strided", "empty_strided",
}  # fmt: skip
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "index"}


@pytest.fixture(autouse=True)
def quiet_interpreter():
    """NumPy warns of -inf minus -inf, which the kernels meet on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def on_device(case: Case) -> Case:
    return Case(*(x.to(DEVICE) if torch.is_tensor(x) else x for x in case))


def loss_and_grads(case: Case, backend: str, **options):
    """Both losses and all gradients of a weighted sum of them, on the CPU."""
    case = on_device(case)
    inputs = [x.clone().requires_grad_() for x in case.inputs[:4]]
    layer = case.linear().to(DEVICE)
    simple, pruned = entry_loss(case, inputs, layer, backend=backend, **options)
    weights = torch.arange(1, len(simple) + 1, dtype=simple.dtype, device=DEVICE)
    grads = torch.autograd.grad((weights * (0.5 * simple + pruned)).sum(), [*inputs, layer.weight, layer.bias])
    return [x.detach().cpu() for x in (simple, pruned, *grads)]


def check_equal(case: Case, tolerance: float = 1e-11, **options) -> None:
    assert_close(loss_and_grads(case, "triton", **options), loss_and_grads(case, "torch"), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(golden_cases()))
def test_every_number_of_k2(name):
    with np.load(GOLDEN) as golden, use_kernels("triton"):
        case = on_device(load_case(golden, name))
        results = run(native, case, torch.from_numpy(golden[f"{name}/ranges"]).to(DEVICE))
        for key, ours in results.items():
            if key != "ranges":
                tolerance = 1e-10 if key.startswith("loss") else 1e-8
                np.testing.assert_allclose(ours.cpu().numpy(), golden[f"{name}/{key}"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_losses_and_gradients_are_those_of_pytorch(rnnt_type):
    case = make_case(
        4, batch=2, frames=5, symbols=3, vocab=6, rnnt_type=rnnt_type, delay_penalty=0.1, lm_scale=0.25, am_scale=0.1
    )
    check_equal(case)


@pytest.mark.slow
@settings(max_examples=20 if DEVICE == "cuda" else 8, deadline=None)  # the interpreter is slow
@given(cases(), st.sampled_from([1, 30, 2**25]), st.sampled_from([RECOMPUTE, 3000, KEEP_ALL]))
def test_losses_and_gradients_are_those_of_pytorch_always(case, numbers, budget):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joiner, "MOST_NUMBERS", numbers)  # one frame a chunk, a few, all
        patch.setattr(simple, "_WHOLE", 1)
        patch.setattr(simple, "_PROBS", numbers)
        check_equal(case, memory_budget=budget)


@pytest.mark.slow
@pytest.mark.parametrize(
    "batch, frames, symbols", [(1, 1, 0), (1, 1, 1), (2, 17, 17), (3, 64, 31), (2, 37, 32), (1, 130, 7)]
)
def test_sizes_at_which_blocks_begin_and_end(batch, frames, symbols):
    check_equal(make_case(1, batch, frames, symbols, vocab=33, joiner_dim=31, prune_range=5, scale=0.5))


@pytest.mark.slow
@pytest.mark.parametrize("budget", [RECOMPUTE, KEEP_ALL])
def test_rows_wider_than_a_block(budget, monkeypatch):
    monkeypatch.setattr(joiner, "_ROW", 4)
    monkeypatch.setattr(simple, "_ROW", 4)
    monkeypatch.setattr(joiner, "MOST_NUMBERS", 60)
    check_equal(make_case(2, batch=2, frames=5, symbols=3, vocab=11, scale=0.5), memory_budget=budget)


def test_ranges_are_those_of_pytorch():
    case = on_device(make_case(3, batch=3, frames=30, symbols=12, prune_range=5))
    loss = dict(lm=case.lm_simple, am=case.am_simple, symbols=case.symbols, termination_symbol=0)
    _, grads = native.rnnt_loss_simple(**loss, boundary=case.boundary, reduction="none", return_grad=True)
    expected = native.get_rnnt_prune_ranges(*grads, case.boundary, 5)
    with use_kernels("triton"):
        assert torch.equal(native.get_rnnt_prune_ranges(*grads, case.boundary, 5), expected)


@pytest.mark.parametrize("columns", [5, 6])
@pytest.mark.parametrize("boundary", [None, [[0, 0, 3, 5], [1, 2, 2, 5], [0, 1, 0, 4]]])
def test_recursion_with_parts_and_arcs_that_are_not_there(columns, boundary):
    g = torch.Generator().manual_seed(1)
    px, py = torch.randn(3, 3, columns, generator=g), torch.randn(3, 4, 5, generator=g)
    px[0, 1, 2], py[0, 0, 3] = -torch.inf, -torch.inf
    px[1, 1] = -torch.inf  # with it, no path through the second utterance
    bounds = None if boundary is None else torch.tensor(boundary)
    expected = native.mutual_information_recursion(px.double(), py.double(), bounds, return_grad=True)
    with use_kernels("triton"):
        at = [None if x is None else x.to(DEVICE) for x in (px, py, bounds)]
        scores, grads = native.mutual_information_recursion(*at, return_grad=True)
    for ours, theirs in zip((scores, *grads), (expected[0], *expected[1])):
        assert torch.allclose(ours.cpu().double(), theirs, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_float32_stays_exact_over_thousands_of_steps():
    """T 3000, U 600: relative to float64, losses to 1e-6 and occupations to 1e-6 of the largest."""
    g = torch.Generator().manual_seed(2)
    px = torch.randn(1, 600, 3001, generator=g) * 3 - 6
    py = torch.randn(1, 601, 3000, generator=g) * 3 - 1
    px[:, :, -1] = -torch.inf
    expected, expected_grads = native.mutual_information_recursion(px.double(), py.double(), return_grad=True)
    with use_kernels("triton"):
        scores, grads = native.mutual_information_recursion(px.to(DEVICE), py.to(DEVICE), return_grad=True)
    assert abs(scores.item() / expected.item() - 1) < 1e-6
    for ours, theirs in zip(grads, expected_grads):
        assert (ours.cpu().double() - theirs).abs().max() < 1e-6 * theirs.max()


@pytest.mark.slow
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_lower_precision_is_close(dtype, tolerance):
    case = make_case(5, batch=2, frames=20, symbols=8, vocab=30, joiner_dim=16, scale=0.5)
    single = Case(*(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in case))
    exact = loss_and_grads(case, "torch")
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        result = loss_and_grads(single, "triton")
    assert all(x.dtype == torch.float32 for x in result)
    for ours, theirs in zip(result, exact):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_nan_is_seen_and_stays_in_its_utterance():
    case = make_case(15, batch=2, frames=4, symbols=2)
    case.boundary[:, 2:] = torch.tensor([[2, 4], [1, 2]])
    case.am[1, 3] = case.am_simple[1, 3] = float("nan")  # padding
    clean = loss_and_grads(case, "triton")
    assert all(torch.isfinite(x).all() for x in (*clean[:2], clean[4], *clean[6:]))
    case.am[1, 0, 0] = float("nan")
    _, pruned, *grads = loss_and_grads(case, "triton")
    assert torch.isfinite(pruned[0]) and torch.isnan(pruned[1])
    assert not torch.isfinite(grads[4]).all()


def test_target_without_a_path_is_infinite_with_zero_gradients():
    case = make_case(9, batch=2, frames=3, symbols=7, prune_range=3)
    case.boundary[:, 2:] = torch.tensor([[7, 3], [6, 3]])
    _, pruned, *grads = loss_and_grads(case, "triton")
    assert torch.isposinf(pruned[0]) and torch.isfinite(pruned[1])
    assert all(torch.isfinite(g).all() for g in grads)
    assert (grads[2][0] == 0).all()


class Calls(TorchDispatchMode):
    """Counts the operations of PyTorch, and those of them that start work on the device."""

    def __init__(self):
        super().__init__()
        self.names: Counter = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))

    @property
    def launches(self) -> int:
        return sum(count for name, count in self.names.items() if name not in NO_LAUNCH)


@contextlib.contextmanager
def counted_kernels(monkeypatch):
    """A list that grows by the name of each kernel launched; in the interpreter nothing is computed."""
    from triton.runtime.interpreter import InterpretedFunction

    launched = []
    with monkeypatch.context() as patch:
        for kind in (InterpretedFunction, triton.runtime.JITFunction):
            patch.setattr(kind, "run", lambda self, *args, **kwargs: launched.append(self.fn.__name__))
        yield launched


def launches(monkeypatch, batch: int, frames: int, symbols: int) -> int:
    case = make_case(
        1, batch, frames, symbols, vocab=20, joiner_dim=8, prune_range=5, am_scale=0.0, dtype=torch.float32
    )
    inputs, layer = [x.requires_grad_() for x in on_device(case).inputs[:4]], case.linear().to(DEVICE)
    with counted_kernels(monkeypatch) as kernels, Calls() as calls:
        simple, pruned = entry_loss(on_device(case), inputs, layer, backend="triton", reduction="sum")
        (simple + pruned).backward()
    assert not WAITS & set(calls.names), "waits for the device"
    return calls.launches + len(kernels)


def test_launches_do_not_grow_and_nothing_waits(monkeypatch):
    loss_and_grads(make_case(1, 1, 2, 1, dtype=torch.float32), "triton")  # the look whether kernels can be used
    few = launches(monkeypatch, batch=2, frames=10, symbols=6)
    assert few == launches(monkeypatch, batch=5, frames=60, symbols=40)
    assert few < 60


def test_logits_of_one_chunk_are_held_at_a_time(monkeypatch):
    """Without a budget, in the forward and in the backward pass."""
    case, made, addmm = make_case(1, 2, 4, 2), [], torch.addmm

    def counted(*args):
        assert all(logits() is None for logits in made), "an earlier chunk is still held"
        made.append(weakref.ref(logits := addmm(*args)))
        return logits

    monkeypatch.setattr(joiner, "MOST_NUMBERS", 64)
    monkeypatch.setattr(torch, "addmm", counted)
    loss_and_grads(case, "triton", memory_budget=0)
    assert len(made) > 4


def test_tensors_in_any_layout():
    """Slices, transposed and expanded tensors give what their copies give."""
    case = on_device(make_case(16, batch=2, frames=4, symbols=2, vocab=5))
    logits = torch.randn(2, 4, 3, 5, device=DEVICE)
    wide = torch.randint(1, 5, (2, 6), device=DEVICE)
    boundary = torch.tensor([[0, 0, 2, 4]], device=DEVICE).expand(2, 4)
    with use_kernels("triton"):
        for symbols in (wide[:, 2:4], wide[:, 2:4].t().contiguous().t()):
            loss = native.rnnt_loss(logits, symbols, 0, boundary, reduction="none")
            expected = native.rnnt_loss(logits, symbols.contiguous(), 0, boundary.contiguous(), reduction="none")
            assert torch.equal(loss, expected)
        simple = native.rnnt_loss_simple(case.lm_simple, case.am_simple, wide[:, 2:4], 0, boundary, reduction="none")
    expected = native.rnnt_loss_simple(case.lm_simple, case.am_simple, wide[:, 2:4], 0, boundary, reduction="none")
    assert torch.allclose(simple, expected)

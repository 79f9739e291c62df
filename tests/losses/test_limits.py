"""What the loss promises at its limits: memory, half precision, extreme numbers, and arguments that do not fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from cases import RNNT_TYPES, Case, make_case
from test_entry import KEEP_ALL, RECOMPUTE, assert_close, entry_loss, loss_and_grads
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tokenverse_pp.losses import native
from tokenverse_pp.losses.native import joiner


class Largest(TorchDispatchMode):
    """Notes the most numbers in any tensor that an operation gives."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tree_map(self.note, result)
        return result

    def note(self, x):
        if torch.is_tensor(x):
            self.numbers = max(self.numbers, x.numel())


def single(case: Case) -> Case:
    return Case(*(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in case))


@pytest.mark.parametrize("budget", [RECOMPUTE, KEEP_ALL])
def test_no_tensor_is_as_large_as_the_logits(budget, monkeypatch):
    case = make_case(1, batch=3, frames=40, symbols=10, vocab=100, joiner_dim=8, prune_range=5)
    monkeypatch.setattr(joiner, "CHUNK_NUMBERS_CPU", (2048, 2048))
    with Largest() as largest:
        loss_and_grads(case, entry_loss, memory_budget=budget)
    logits = 3 * 40 * 5 * 100
    assert largest.numbers < logits / 4
    assert largest.numbers >= case.am_simple.numel()  # the simple joiner's scores were seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_stays_within_the_budget(dtype, monkeypatch):
    case = single(make_case(2, batch=3, frames=40, symbols=10, vocab=100, joiner_dim=8, prune_range=5))
    kept = []

    class Chunk(joiner._Chunk):
        def __new__(cls, hidden, weights):
            kept.append(sum(x.numel() * x.element_size() for x in (hidden, weights)))
            return super().__new__(cls, hidden, weights)

    monkeypatch.setattr(joiner, "_Chunk", Chunk)
    monkeypatch.setattr(joiner, "CHUNK_NUMBERS_CPU", (2048, 2048))
    size = torch.empty(0, dtype=dtype).element_size()
    everything = int(case.boundary[:, 3].sum()) * 5 * (100 + 8) * size
    for budget in (0, everything // 3, everything):
        kept.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            entry_loss(case, [x.clone().requires_grad_() for x in case.inputs[:4]], case.linear(), memory_budget=budget)
        assert budget - 2048 * 5 * size < sum(kept) <= budget
    kept.clear()
    with torch.no_grad():
        entry_loss(case, case.inputs[:4], case.linear(), memory_budget=everything)
    assert not kept


@pytest.mark.parametrize("budget", [RECOMPUTE, KEEP_ALL])
@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_logits_of_ten_thousand(precision, rnnt_type, budget):
    dtype = torch.float64 if precision == "float64" else torch.float32
    case = make_case(3, batch=3, frames=9, symbols=4, vocab=6, scale=1e4, rnnt_type=rnnt_type, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        results = loss_and_grads(case, entry_loss, memory_budget=budget)
    assert all(torch.isfinite(result).all() for result in results)


def test_float16_autocast_is_close_and_returns_float32():
    try:
        torch.ones(2, 2, dtype=torch.float16) @ torch.ones(2, 2, dtype=torch.float16)
        torch.autocast("cpu", dtype=torch.float16)
    except RuntimeError:
        pytest.skip("this torch has no float16 on CPUs")
    case = make_case(5, batch=4, frames=60, symbols=20, vocab=50, joiner_dim=32, scale=0.5, dtype=torch.float32)
    exact = loss_and_grads(case, entry_loss)
    with torch.autocast("cpu", dtype=torch.float16):
        result = loss_and_grads(case, entry_loss)
    assert all(x.dtype == torch.float32 for x in result)
    assert torch.allclose(result[1], exact[1], rtol=1e-3)
    for a, b in zip(result[2:], exact[2:]):
        assert (a - b).norm() < 0.005 * b.norm()


def test_hidden_rows_in_float32_are_tanh():
    """The sigmoid that stands in for tanh, from tiny to saturated sums."""
    sums = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([1e-6, -1e-6, 1e4, -1e4])]).reshape(-1, 1)
    nothing = torch.zeros(1, 1)
    ranges = torch.zeros(1, len(sums), 1, dtype=torch.int64)
    boundary = torch.tensor([[0, 0, 0, len(sums)]])
    plan = joiner.make_plan(ranges, ranges, boundary, 1, 0, torch.float32, 0)
    rows = joiner._Rows(plan, sums[None], nothing[None], nothing, nothing[0])
    hidden = rows.hidden(slice(0, len(sums)))
    assert (hidden.double() - sums.double().tanh()).abs().max() < 3e-7
    assert hidden[-2:].flatten().tolist() == [1.0, -1.0]


@pytest.mark.parametrize("budget", [RECOMPUTE, KEEP_ALL])
def test_batch_of_only_empty_references(budget):
    case = make_case(6, batch=3, frames=8, symbols=0)
    _, pruned, *grads = loss_and_grads(case, entry_loss, memory_budget=budget)
    for b, frames in enumerate(case.boundary[:, 3].tolist()):
        logits = torch.tanh(case.am[b, :frames] + case.lm[b]) @ case.weight.t() + case.bias
        assert pruned[b].item() == pytest.approx(-logits.log_softmax(1)[:, 0].sum().item(), abs=1e-10)
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_as_many_frames_as_symbols(rnnt_type):
    """A symbol at each frame is the only path of `modified` and `constrained` then, and one of many of `regular`."""
    case = make_case(7, batch=1, frames=5, symbols=5, rnnt_type=rnnt_type, prune_range=6, lm_scale=0.0, am_scale=0.0)
    assert case.boundary.tolist() == [[0, 0, 5, 5]]
    pruned = entry_loss(case, case.inputs[:4], case.linear()).pruned
    hidden = torch.tanh(case.am[0].unsqueeze(1) + case.lm[0])  # (T, U + 1, J)
    scores = (hidden @ case.weight.t() + case.bias).log_softmax(2)
    steps = torch.arange(5)
    path = scores[steps, steps, case.symbols[0]].sum()
    if rnnt_type != "modified":  # which has no blank left to take
        path += scores[steps, steps + 1, 0].sum()
    if rnnt_type == "regular":
        assert pruned.item() < -path.item()
    else:
        assert pruned.item() == pytest.approx(-path.item(), abs=1e-10)


def test_reductions_of_the_entry_point():
    case = make_case(8, batch=3, frames=9, symbols=4)
    each = entry_loss(case, case.inputs[:4], case.linear())
    for reduction in ("mean", "sum"):
        whole = entry_loss(case, case.inputs[:4], case.linear(), reduction=reduction)
        assert_close(whole, [getattr(x, reduction)() for x in each], 1e-12)


def test_output_layer_without_a_bias():
    case = make_case(9, batch=2, frames=6, symbols=3)
    case.bias.zero_()
    layer = torch.nn.Linear(*reversed(case.weight.shape), bias=False, dtype=torch.float64)
    layer.weight.data.copy_(case.weight)
    assert torch.equal(
        entry_loss(case, case.inputs[:4], layer).pruned, entry_loss(case, case.inputs[:4], case.linear()).pruned
    )


def test_shapes_that_do_not_belong_together_are_named():
    case = make_case(10, batch=2, frames=6, symbols=3, vocab=5)
    lm, am, symbols = case.lm_simple, case.am_simple, case.symbols
    ranges = torch.zeros(2, 6, 2, dtype=torch.int64)
    px, py = torch.zeros(2, 3, 7), torch.zeros(2, 4, 6)
    with pytest.raises(ValueError, match=r"expected lm \(B, S\+1, V\)"):
        native.rnnt_loss_simple(lm[:, 1:], am, symbols, 0)
    with pytest.raises(ValueError, match=r"need symbols \(B, S\)"):
        native.rnnt_loss(torch.zeros(2, 6, 3, 5), symbols, 0)
    with pytest.raises(ValueError, match="should be the first axes of logits"):
        native.rnnt_loss_pruned(torch.zeros(2, 6, 3, 5), symbols, ranges, 0)
    with pytest.raises(ValueError, match=r"should be \(B, S, T\[\+1\]\)"):
        native.mutual_information_recursion(px, py[:, 1:])
    with pytest.raises(ValueError, match="one type"):
        native.mutual_information_recursion(px.double(), py)
    for columns, least in ((7, 2), (6, 1)):
        with pytest.raises(ValueError, match=f"s_range should be at least {least}"):
            native.get_rnnt_prune_ranges(px[:, :, :columns], py, torch.tensor([[0, 0, 3, 6]] * 2), least - 1)


def test_example_of_the_documentation():
    page = (Path(__file__).resolve().parent.parent.parent / "docs" / "loss.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(example, names)
    assert names["simple"].shape == names["pruned"].shape == (2,)
    assert torch.isfinite(names["pruned"]).all()

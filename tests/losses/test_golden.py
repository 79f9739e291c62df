"""The native backend against numbers that real k2 made (make_golden.py), on whatever torch runs the suite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from make_golden import GOLDEN, golden_cases, load_case, run

from tokenverse_pp.losses import native, pruned_transducer_loss


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as data:
        yield data


@pytest.mark.parametrize("name", list(golden_cases()))
def test_every_number_of_k2(golden, name):
    case = load_case(golden, name)
    ranges = torch.from_numpy(golden[f"{name}/ranges"])
    for key, ours in run(native, case, ranges).items():
        theirs = golden[f"{name}/{key}"]
        if key == "ranges":
            # Ranges of k2's own occupations: the same sums in the same order, so ties fall alike.
            grads = (torch.from_numpy(golden[f"{name}/{x}_grad"]) for x in ("px", "py"))
            ours = native.get_rnnt_prune_ranges(*grads, case.boundary, case.prune_range)
            assert np.array_equal(ours.numpy(), theirs)
        else:
            tolerance = 1e-10 if key.startswith("loss") else 1e-8
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name", [name for name in golden_cases() if name.startswith("regular")])
@pytest.mark.parametrize("budget", [0, 2**40])
def test_entry_point_gives_k2s_losses(golden, name, budget):
    case = load_case(golden, name)
    losses = pruned_transducer_loss(
        *case.inputs[:4],
        case.linear(),
        case.symbols,
        case.boundary,
        prune_range=case.prune_range,
        lm_scale=case.lm_scale,
        am_scale=case.am_scale,
        rnnt_type=case.rnnt_type,
        delay_penalty=case.delay_penalty,
        memory_budget=budget,
    )
    np.testing.assert_allclose(losses.simple.detach().numpy(), golden[f"{name}/loss_smoothed"], atol=1e-10)
    np.testing.assert_allclose(losses.pruned.detach().numpy(), golden[f"{name}/loss_pruned"], atol=1e-10)


def test_file_says_where_it_comes_from(golden):
    assert str(golden["made_with"]).startswith("k2 1.")

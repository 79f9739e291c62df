#!/usr/bin/env python3
"""Write golden.npz: inputs of the loss and what the real k2 makes of them, in float64.

    .ci/k2_env.sh                                             # once: the environment with k2
    .cache/k2env/bin/python tests/losses/make_golden.py         # from the checkout's root

Names in the file: `<case>/<input or result>`; `<case>/options` holds the case's numbers as JSON text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

from cases import RNNT_TYPES, Case, make_case  # noqa: E402

GOLDEN = HERE / "golden.npz"
TENSORS = ("am_simple", "lm_simple", "am", "lm", "weight", "bias", "symbols", "boundary")
OPTIONS = ("rnnt_type", "delay_penalty", "prune_range", "lm_scale", "am_scale")


def run(library: Any, case: Case, ranges: Any = None) -> Dict[str, torch.Tensor]:
    """All losses, occupations, ranges and gradients; with `ranges` given, the pruned loss on these."""
    inputs = {name: getattr(case, name).clone().requires_grad_() for name in TENSORS[:6]}
    common = {
        "symbols": case.symbols,
        "termination_symbol": 0,
        "boundary": case.boundary,
        "rnnt_type": case.rnnt_type,
        "delay_penalty": case.delay_penalty,
        "reduction": "none",
    }
    simple_inputs = {"lm": inputs["lm_simple"], "am": inputs["am_simple"]}
    simple = library.rnnt_loss_simple(**simple_inputs, **common)
    smoothed, (px_grad, py_grad) = library.rnnt_loss_smoothed(
        **simple_inputs, lm_only_scale=case.lm_scale, am_only_scale=case.am_scale, return_grad=True, **common
    )
    px_grad, py_grad = px_grad.clone(), py_grad.clone()
    own_ranges = library.get_rnnt_prune_ranges(px_grad, py_grad, case.boundary, case.prune_range)
    am_band, lm_band = library.do_rnnt_pruning(inputs["am"], inputs["lm"], own_ranges if ranges is None else ranges)
    logits = torch.tanh(am_band + lm_band) @ inputs["weight"].t() + inputs["bias"]
    pruned = library.rnnt_loss_pruned(logits=logits, ranges=own_ranges if ranges is None else ranges, **common)
    hidden = torch.tanh(inputs["am"].unsqueeze(2) + inputs["lm"].unsqueeze(1))
    full = library.rnnt_loss(logits=hidden @ inputs["weight"].t() + inputs["bias"], **common)
    weights = torch.arange(1, len(simple) + 1, dtype=torch.float64)
    total = (weights * (smoothed + pruned + 0.5 * simple + 0.25 * full)).sum()
    grads = torch.autograd.grad(total, list(inputs.values()))
    return {
        "loss_simple": simple.detach(),
        "loss_smoothed": smoothed.detach(),
        "loss_pruned": pruned.detach(),
        "loss_full": full.detach(),
        "px_grad": px_grad,
        "py_grad": py_grad,
        "ranges": own_ranges,
        **{f"grad_{name}": grad for name, grad in zip(inputs, grads)},
    }


def golden_cases() -> Dict[str, Case]:
    """Each topology, with and without smoothing and delay penalty, narrow and wide bands."""
    cases = {}
    for number, rnnt_type in enumerate(RNNT_TYPES):
        for wide in (False, True):
            cases[f"{rnnt_type}-{'wide' if wide else 'narrow'}"] = make_case(
                seed=10 * number + wide,
                batch=4,
                frames=24,
                symbols=9,
                vocab=11,
                rnnt_type=rnnt_type,
                delay_penalty=0.125 if wide else 0.0,
                prune_range=5 if wide else 2,
                lm_scale=0.25,
                am_scale=0.1 if wide else 0.0,
            )
    cases["as-many-frames-as-symbols"] = make_case(seed=31, batch=2, frames=6, symbols=6)
    cases["batch-of-one"] = make_case(seed=32, batch=1, frames=15, symbols=4, prune_range=4)
    empty = make_case(seed=33, batch=3, frames=8, symbols=3)
    empty.boundary[1:, 2] = 0
    cases["empty-references"] = empty
    cases["one-frame"] = make_case(seed=34, batch=2, frames=1, symbols=1)
    return cases


def load_case(data: Any, name: str) -> Case:
    """The inputs of one case of the file."""
    tensors = {key: torch.from_numpy(data[f"{name}/{key}"]) for key in TENSORS}
    return Case(**tensors, **json.loads(str(data[f"{name}/options"])))


def main() -> None:
    """Run the real k2 over all cases."""
    import k2

    arrays: Dict[str, np.ndarray] = {"made_with": np.array(f"k2 {k2.__dev_version__}, torch {torch.__version__}")}
    for name, case in golden_cases().items():
        arrays.update({f"{name}/{key}": getattr(case, key).numpy() for key in TENSORS})
        arrays[f"{name}/options"] = np.array(json.dumps({key: getattr(case, key) for key in OPTIONS}))
        arrays.update({f"{name}/{key}": value.numpy() for key, value in run(k2, case).items()})
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN.name}: {len(golden_cases())} cases, {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()

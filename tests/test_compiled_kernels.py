"""Every Triton kernel compiles for the GPUs that are in use, and none of them runs out of registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
# Registers of a thread. With 128, a processor has at least four warps a scheduler. Matrix products have one tile per
# processor, and greedy search one utterance.
MOST_REGISTERS = {
    "hidden_kernel": 192,
    "logits_kernel": 192,
    "_convolve_kernel": 192,
    "_weight_grad_kernel": 192,
    "greedy_kernel": 240,
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings NVIDIA's tools for Linux only")
@pytest.mark.parametrize("capability", ["80", "90"])
def test_every_kernel_compiles_without_spilling(capability):
    """For an A100 and an H100; local memory is where registers go that do not fit."""
    script = Path(__file__).with_name("compiled_kernels.py")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(script), capability]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    assert len({kernel["kernel"] for kernel in kernels}) >= 17
    for kernel in kernels:
        assert kernel["local"] == 0 and kernel["stack"] <= 16, kernel  # a stack of an address or two is no spill
        assert kernel["registers"] <= MOST_REGISTERS.get(kernel["kernel"], 128), kernel

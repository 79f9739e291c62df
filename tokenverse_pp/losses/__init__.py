"""The transducer loss: pruned (`pruned_transducer_loss`) and exact (`rnnt_loss`, `rnnt_loss_joiner`).

`losses.native` computes both, with Triton kernels on an NVIDIA GPU and PyTorch elsewhere; k2 is optional (pruned only).
"""

from tokenverse_pp.losses.entry import (
    DEFAULT_MEMORY_BUDGET,
    TransducerLoss,
    max_target_length,
    pruned_transducer_loss,
)
from tokenverse_pp.losses.exact import rnnt_loss, rnnt_loss_joiner
from tokenverse_pp.losses.k2 import k2_available

__all__ = [
    "DEFAULT_MEMORY_BUDGET",
    "TransducerLoss",
    "k2_available",
    "max_target_length",
    "pruned_transducer_loss",
    "rnnt_loss",
    "rnnt_loss_joiner",
]

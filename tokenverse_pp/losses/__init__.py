"""The pruned RNN-T loss: one entry point, two backends (k2, and PyTorch in `losses.native`)."""

from tokenverse_pp.losses.entry import (
    DEFAULT_MEMORY_BUDGET,
    TransducerLoss,
    k2_available,
    max_target_length,
    pruned_transducer_loss,
)

__all__ = [
    "DEFAULT_MEMORY_BUDGET",
    "TransducerLoss",
    "k2_available",
    "max_target_length",
    "pruned_transducer_loss",
]

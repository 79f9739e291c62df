"""The pruned transducer loss in PyTorch, with k2's function and argument names.

It needs no compilation and runs on any device with torch 1.13 and 2.x. float64 inputs stay float64, all others are
computed in float32, and the lattice in float64.
"""

from tokenverse_pp.losses.native.lattice import mutual_information_recursion
from tokenverse_pp.losses.native.pruned import do_rnnt_pruning, get_rnnt_prune_ranges, rnnt_loss, rnnt_loss_pruned
from tokenverse_pp.losses.native.simple import rnnt_loss_simple, rnnt_loss_smoothed

__all__ = [
    "do_rnnt_pruning",
    "get_rnnt_prune_ranges",
    "mutual_information_recursion",
    "rnnt_loss",
    "rnnt_loss_pruned",
    "rnnt_loss_simple",
    "rnnt_loss_smoothed",
]

"""The transducer loss as Triton kernels for NVIDIA GPUs; `losses.native` calls them for CUDA tensors.

A separate package because it cannot be imported without Triton. With ``TRITON_INTERPRET=1`` in the environment the
kernels run on CPU tensors, for tests.
"""

from tokenverse_pp.losses.triton.joiner import BandPlan, gather_log_probs, joiner_log_probs
from tokenverse_pp.losses.triton.lattice import band_scores, dense_scores
from tokenverse_pp.losses.triton.pruning import prune_ranges
from tokenverse_pp.losses.triton.simple import simple_scores

__all__ = [
    "BandPlan",
    "band_scores",
    "dense_scores",
    "gather_log_probs",
    "joiner_log_probs",
    "prune_ranges",
    "simple_scores",
]

"""Picks how many of the encoder's layers are recomputed, so that the largest batches fit into a GPU's memory."""

from __future__ import annotations

import math
from typing import Callable, Optional

import torch
from torch import nn

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.dataset import TransducerDataset
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.samplers import TrainSampler
from tokenverse_pp.losses.devices import device_memory, peak_memory, reset_peak_memory
from tokenverse_pp.models.transducer import Transducer
from tokenverse_pp.training.failures import naming_memory
from tokenverse_pp.training.steps import different_batches, run_largest, unchanged_buffers, worst_batches

SHARE = 0.9  # share of a GPU's memory that may be used: the allocator cannot use all of it


def pick_recomputed(
    model: Transducer,
    optimizer: torch.optim.Optimizer,
    sampler: TrainSampler,
    dataset: TransducerDataset,
    config: Config,
    world: DistributedContext,
) -> str:
    """Recompute as few layers as fit into memory, the same number on all ranks; return a line for the log.

    Runs the largest batches forward and backward with none, all and, by bisection, other numbers of layers recomputed.
    If memory cannot be measured (CPUs), nothing changes, and the line is empty. Raises UserError, naming the cuts of a
    batch that does not fit with all layers recomputed.
    """
    limit = memory_limit(world.device, config)
    if limit is None:
        return ""
    encoder, most = model.encoder, model.encoder.trained_depth
    batches = [dataset[cuts] for _, cuts in different_batches(worst_batches(sampler, dataset))]
    later = memory_of_updates(model, optimizer, config, world)
    peaks = {}

    def peak(count: int) -> float:
        encoder.recompute(count)
        reset_peak_memory(world.device)
        for batch in batches:
            try:
                with naming_memory(batch):
                    run_largest(model, batch, config, world)
            except UserError:  # out of memory
                if count == most:
                    raise
                return math.inf
            finally:
                model.zero_grad(set_to_none=True)
        return peak_memory(world.device) + later

    def fits(count: int) -> bool:
        peaks[count] = peak(count)
        return world.all_(peaks[count] <= limit)

    with unchanged_buffers(model):
        count = fewest(fits, most)
    encoder.recompute(count)
    reset_peak_memory(world.device)
    verdict = "of" if peaks[count] <= limit else "more than"
    return f"recomputing {count} of {most} encoder layers: peak {peaks[count]:.0f} MB {verdict} {limit:.0f} MB"


def fewest(fits: Callable[[int], bool], most: int) -> int:
    """Return the least number up to ``most`` that fits, if all above it do; ``most`` if none does."""
    if fits(0) or most == 0:
        return 0
    if not fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def memory_limit(device: torch.device, config: Config) -> Optional[float]:
    """Return the megabytes that a step may use; None if memory cannot be measured."""
    total = device_memory(device)
    if total is None:
        return None
    wanted = config.training.memory_gb
    return SHARE * total if wanted is None else 1024 * wanted


def memory_of_updates(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: Config, world: DistributedContext
) -> float:
    """Return the megabytes that a step needs in addition to a forward and backward pass.

    These are AdamW's moments, which its first step creates, DDP's buckets, and the gradients that are kept while the
    step's next batch runs.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    times = 2 * (not optimizer.state) + (world.size > 1) + (config.training.accumulate > 1)
    return times * trained / 2**20

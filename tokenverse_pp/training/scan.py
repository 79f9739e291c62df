"""Check before the first step that the largest batches fit into memory (``training.scan``)."""

from __future__ import annotations

from itertools import islice
from typing import Callable, Dict, List, Tuple

import torch
from lhotse import CutSet
from torch import nn

from tokenverse_pp.base.config import Config
from tokenverse_pp.data.dataset import TransducerDataset
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.data.samplers import SamplerState, TrainSampler
from tokenverse_pp.models.compat import autocast, grad_scaler, peak_memory, reset_peak_memory
from tokenverse_pp.training.steps import forward, naming_memory, to_device

MOST = 2000  # batches considered: sampling all would take as long as an epoch


def worst_batches(sampler: TrainSampler, dataset: TransducerDataset) -> Dict[str, CutSet]:
    """The batches of the first round that need most memory.

    These are, when padded, the ones with the most audio, the longest cut, the most cuts and the most tokens. The idea
    is that of icefall's ``scan_pessimistic_batches_for_oom``.
    """

    def tokens(cuts: CutSet) -> int:
        return len(cuts) * max(len(dataset.target(cut, labelled_tasks(cut))) for cut in cuts)

    measures: Dict[str, Callable[[CutSet], float]] = {
        "most audio": lambda cuts: len(cuts) * max(cut.duration for cut in cuts),
        "longest cut": lambda cuts: max(cut.duration for cut in cuts),
        "most cuts": len,
        "most tokens": tokens,
    }
    worst: Dict[str, Tuple[float, CutSet]] = {}
    for _, cuts in islice(sampler.batches(SamplerState()), MOST):
        for name, measure in measures.items():
            value = measure(cuts)
            if name not in worst or value > worst[name][0]:
                worst[name] = (value, cuts)
    return {name: cuts for name, (_, cuts) in worst.items()}


def scan(
    model: nn.Module, sampler: TrainSampler, dataset: TransducerDataset, config: Config, world: DistributedContext
) -> List[str]:
    """Run the largest batches forward and backward without an update; return a line for each, with its peak memory.

    Weights, buffers and the random numbers of later steps do not change.

    Raises:
        UserError: naming the cuts of the first batch that does not fit.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    scaler = grad_scaler(world.device, config.training.precision)
    lines, done = [], set()
    for name, cuts in worst_batches(sampler, dataset).items():
        ids = tuple(cut.id for cut in cuts)
        if ids in done:
            continue
        done.add(ids)
        batch = dataset[cuts]
        reset_peak_memory(world.device)
        with naming_memory(batch):
            moved = to_device(batch, world.device)
            with autocast(world.device, config.training.precision):
                losses = forward(model, moved, config.data.stored_features)
            scaler.scale((losses.simple + losses.pruned + losses.ctc).sum()).backward()
        model.zero_grad(set_to_none=True)
        lines.append(
            f"scan, {name}: {len(ids)} cuts, {batch['seconds']:.1f} s, up to {int(batch['token_lens'].max())} tokens: "
            f"peak {peak_memory(world.device):.0f} MB"
        )
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return lines

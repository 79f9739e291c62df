"""One optimizer step: forward and backward over its batches, update, result.

Also what surrounds steps: the scan of the largest batches before the first one (``training.scan``), and the record of
a batch whose loss or gradient is not finite.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from lhotse import CutSet
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.files import replacing, write_text
from tokenverse_pp.data.dataset import Batch, TransducerDataset
from tokenverse_pp.data.distributed import DistributedContext, is_sharded, local, no_sync, whole
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.data.manifests import write_cuts
from tokenverse_pp.data.samplers import SamplerState, TrainSampler
from tokenverse_pp.losses.devices import autocast, grad_scaler, peak_memory, reset_peak_memory
from tokenverse_pp.models.transducer import Losses
from tokenverse_pp.training.failures import naming_memory
from tokenverse_pp.training.optim import TrainedRows, loss_scales, lr_factor, set_lr

LEAST_SCALE = 1e-2  # least loss scale in fp16; icefall's zipformer recipe warns below it
LENGTHS = ("lens", "token_lens")  # of a batch
NOT_LOGGED = ("skipped", "overflow", "bad_cuts")
BAD_BATCHES = "bad_batches"  # folder in the experiment folder
MOST_DUMPS = 50  # bad steps of a run whose batches are written in full: 64 ranks write half a gigabyte for each
MOST = 2000  # batches that the scan considers: sampling all would take as long as an epoch


@dataclass
class Progress:
    """Progress of a run, as kept in ``state.json``."""

    step: int = 0  # skipped steps included
    skipped_steps: int = 0  # changed no weight: bad steps, and overflows in fp16
    place: SamplerState = field(default_factory=SamplerState)
    bad_steps: int = 0  # skipped because a loss or gradient was not finite
    bad_in_a_row: int = 0
    valid: Optional[Dict[str, float]] = None  # scores of this step
    best: Optional[float] = None  # score of the best validation, by ``training.best_by``
    worse: int = 0  # validations since then

    @property
    def updates(self) -> int:
        """Steps that changed the weights; the schedules count these."""
        return self.step - self.skipped_steps

    def judge(self, score: float) -> None:
        """Compare the score of a validation with the best one before it; lower is better."""
        better = math.isfinite(score) and (self.best is None or score < self.best)
        self.best, self.worse = (score, 0) if better else (self.best, self.worse + 1)


class StepResult(NamedTuple):
    """Result of a step over all ranks and batches; losses in nats per frame."""

    loss: float
    simple: float
    pruned: float
    frames: float
    tokens: float
    seconds: float
    grad_norm: float
    skipped: bool
    ctc: float = 0.0
    loss_scale: float = 1.0  # of fp16
    overflow: bool = False  # skipped because the loss scale was too high; it has been lowered
    bad_cuts: Tuple[str, ...] = ()  # ids of this rank's cuts whose loss was not finite


class Stepper:
    """Makes optimiser steps.

    The loss of a step is the sum over all its utterances (all ranks, all accumulated batches) divided by the sum of
    their frames, so it depends neither on the number of ranks nor on the composition of batches.

    Args:
        scaler: loss scaler; None: one for this device and precision.
        rows: the trained rows of partly trained parameters, if any.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: Config,
        world: DistributedContext,
        scaler: Any = None,
        rows: Optional[TrainedRows] = None,
    ):
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.world = world
        self.scaler = grad_scaler(world.device, config.training.precision) if scaler is None else scaler
        self.rows = rows
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, batches: Sequence[Batch], step: int, skipped: int = 0) -> StepResult:
        """Forward, backward and update on this rank's batches, in the step with this number, from 0.

        ``skipped``: earlier steps that changed no weight; schedules do not count them.
        """
        c = self.config
        update = step - skipped
        # Dropout and masks depend only on seed, step and rank: a resumed run needs no stored RNG states.
        seed = (c.training.seed * 1_000_003 + step) * 4096 + self.world.rank
        torch.manual_seed(seed % 2**64)  # torch takes no larger one
        simple_scale, pruned_scale = loss_scales(update, c.model.loss)
        ctc_scale = c.model.loss.ctc_scale
        # Forward and backward. Nothing is read back from a GPU before the end of the step.
        sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        frames = tokens = seconds = 0.0
        found: List[Losses] = []
        for i, batch in enumerate(batches):
            with naming_memory(batch), no_sync(self.model, wait=i + 1 < len(batches)):
                batch = to_device(batch, self.world.device)
                with autocast(self.world.device, c.training.precision):
                    losses = forward(self.model, batch, bool(c.data.stored_features))
                simple, pruned, ctc = losses.simple.sum(), losses.pruned.sum(), losses.ctc.sum()
                total = simple_scale * simple + pruned_scale * pruned + ctc_scale * ctc
                self.scaler.scale(total).backward()
            sums += torch.stack([simple, pruned, ctc]).detach().double()
            frames += int(losses.frames.sum())
            tokens += int(batch["token_lens"].sum())
            seconds += batch["seconds"]
            found.append(Losses(*(x.detach() for x in losses)))
        # Means over all ranks.
        counts = torch.tensor([frames, tokens, seconds], dtype=torch.float64).to(sums.device, non_blocking=True)
        totals = self.world.sum_tensor(torch.cat([sums, counts]))
        norm_tensor = self._scale_gradients(totals[3])
        read = torch.cat([totals, sums, norm_tensor.double().reshape(1)]).tolist()
        frames, tokens, seconds, *mine, norm = read[3:]
        simple_mean, pruned_mean, ctc_mean = (value / frames for value in read[:3])
        loss = simple_scale * simple_mean + pruned_scale * pruned_mean + ctc_scale * ctc_mean
        bad_cuts: List[str] = []
        for batch, losses in zip(batches, found) if not all(map(math.isfinite, mine)) else ():
            each = (losses.simple + losses.pruned + losses.ctc).tolist()
            bad_cuts += [cut_id for cut_id, value in zip(batch["cut_ids"], each) if not math.isfinite(value)]
        # Update.
        # The lattice has no gradient if no path has a finite score: a loss of NaN may come with finite gradients.
        skipped = not (math.isfinite(loss) and math.isfinite(norm))
        loss_scale = float(self.scaler.get_scale())
        # The scaler finds its scale by overflows in float16; at the least scale they are an error.
        overflow = skipped and math.isfinite(loss) and self.scaler.is_enabled() and loss_scale > LEAST_SCALE
        set_lr(self.optimizer, lr_factor(update, c.optim, c.training.max_steps))
        if not skipped:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        means = (loss, simple_mean, pruned_mean, frames, tokens, seconds, norm, skipped, ctc_mean)
        return StepResult(*means, loss_scale, overflow, tuple(bad_cuts))

    def _scale_gradients(self, frames: Tensor) -> Tensor:
        """Divide the gradients by ``frames``, a scalar, and clip them; return their norm before clipping."""
        if self.rows is not None:  # first: else the scaler would skip the update for an overflow in frozen rows
            self.rows.mask_gradients()
        self.scaler.unscale_(self.optimizer)
        # DDP and FSDP have averaged over ranks, but the sum is needed.
        scale = self.world.size / frames
        for parameter in self.parameters:
            if parameter.grad is not None:
                local(parameter.grad).mul_(scale)
        return whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optim.clip))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch to a device, except its lengths, which are read on the CPU."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) and key not in LENGTHS else value
        for key, value in batch.items()
    }


def forward(model: nn.Module, batch: Batch, stored: bool) -> Losses:
    """Run the model on a batch."""
    inputs = (batch["inputs"], batch["lens"], batch["active"], batch["tokens"], batch["token_lens"])
    return model(*inputs, stored=stored, chunks=batch.get("chunks"))


def cut_ids(batches: Sequence[Batch]) -> List[str]:
    """The ids of the cuts in some batches."""
    return [cut_id for batch in batches for cut_id in batch["cut_ids"]]


def as_record(result: StepResult) -> Dict[str, float]:
    """A step's result for the log."""
    return {k: v for k, v in result._asdict().items() if k not in NOT_LOGGED}


def dump_batches(
    exp_dir: Path, step: int, rank: int, batches: Sequence[Batch], bad: Sequence[str], inputs: bool = True
) -> Path:
    """Write this rank's batches of a step to ``exp_dir/bad_batches/step-N/``; return that folder.

    ``rank-R.txt``: the ids of the cuts, those whose loss was not finite marked with ``*``. ``rank-R.cuts.jsonl``: the
    cuts, without audio stored in the manifest (Shar). ``rank-R.batch-I.safetensors``: the model's input, with
    ``inputs``.
    """
    folder = exp_dir / BAD_BATCHES / f"step-{step:08d}"
    ids = cut_ids(batches)
    write_text(folder / f"rank-{rank}.txt", "".join(f"{'*' if i in bad else ' '} {i}\n" for i in ids))
    cuts = [cut.drop_in_memory_data() for batch in batches for cut in batch.get("cuts", [])]
    if cuts:
        write_cuts(CutSet.from_cuts(cuts), folder / f"rank-{rank}.cuts.jsonl")
    for number, batch in enumerate(batches if inputs else ()):
        tensors = {key: value.cpu().contiguous() for key, value in batch.items() if isinstance(value, torch.Tensor)}
        with replacing(folder / f"rank-{rank}.batch-{number}.safetensors") as path:
            save_file(tensors, path)
    return folder


def worst_batches(sampler: TrainSampler, dataset: TransducerDataset) -> Dict[str, CutSet]:
    """The batches of the first round with the most audio, the longest cut, the most cuts and the most tokens.

    Padding counts. Like icefall's ``scan_pessimistic_batches_for_oom``.
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
    """Run the largest batches forward and backward; return a line for each, with its peak memory.

    Weights, buffers and the random numbers of later steps do not change. Raises UserError, naming the cuts of the first
    batch that does not fit into memory.
    """
    lines = []
    with unchanged_buffers(model):
        worst = worst_batches(sampler, dataset)
        # If the model is sharded, all ranks must run the same number of batches.
        for name, cuts in worst.items() if is_sharded(model) else different_batches(worst):
            batch = dataset[cuts]
            reset_peak_memory(world.device)
            with naming_memory(batch):
                run_largest(model, batch, config, world)
            model.zero_grad(set_to_none=True)
            longest = int(batch["token_lens"].max())
            lines.append(
                f"scan, {name}: {len(cuts)} cuts, {batch['seconds']:.1f} s, up to {longest} tokens: "
                f"peak {peak_memory(world.device):.0f} MB"
            )
    return lines


def different_batches(worst: Dict[str, CutSet]) -> List[Tuple[str, CutSet]]:
    """Return the `worst_batches` without those that have the same cuts as an earlier one."""
    found: Dict[Tuple[str, ...], Tuple[str, CutSet]] = {}
    for name, cuts in worst.items():
        found.setdefault(tuple(cut.id for cut in cuts), (name, cuts))
    return list(found.values())


def run_largest(model: nn.Module, batch: Batch, config: Config, world: DistributedContext) -> None:
    """Run a batch forward and backward."""
    scaler = grad_scaler(world.device, config.training.precision)
    moved = to_device(batch, world.device)
    with autocast(world.device, config.training.precision):
        losses = forward(model, moved, bool(config.data.stored_features))
    scaler.scale((losses.simple + losses.pruned + losses.ctc).sum()).backward()


@contextlib.contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers of a model at the end of the block."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])

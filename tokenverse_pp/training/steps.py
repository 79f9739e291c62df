"""The parts of a training step: counters of the run, result, running the model on a batch, batches of skipped steps.

The step itself is `tokenverse_pp.training.trainer.Stepper`.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from lhotse import CutSet
from safetensors.torch import save_file
from torch import nn

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import replacing, write_text
from tokenverse_pp.data.dataset import Batch
from tokenverse_pp.data.manifests import write_cuts
from tokenverse_pp.data.samplers import SamplerState
from tokenverse_pp.models.compat import is_out_of_memory
from tokenverse_pp.models.transducer import Losses

FOLDER = "bad_batches"


def dump_batches(exp_dir: Path, step: int, rank: int, batches: Sequence[Batch], bad: Sequence[str]) -> Path:
    """Write this rank's batches of a step to ``exp_dir/bad_batches/step-N/``; returns that folder.

    ``rank-R.txt``: the ids of the cuts, those whose loss was not finite marked with ``*``. ``rank-R.cuts.jsonl``: the
    cuts. ``rank-R.batch-I.safetensors``: what the model was given. Audio inside a manifest (Shar) is left out of it.
    """
    folder = exp_dir / FOLDER / f"step-{step:08d}"
    cuts = [cut.drop_in_memory_data() for batch in batches for cut in batch.get("cuts", [])]
    ids = [cut_id for batch in batches for cut_id in batch["cut_ids"]]
    write_text(folder / f"rank-{rank}.txt", "".join(f"{'*' if i in bad else ' '} {i}\n" for i in ids))
    if cuts:
        write_cuts(CutSet.from_cuts(cuts), folder / f"rank-{rank}.cuts.jsonl")
    for number, batch in enumerate(batches):
        tensors = {key: value.cpu().contiguous() for key, value in batch.items() if isinstance(value, torch.Tensor)}
        with replacing(folder / f"rank-{rank}.batch-{number}.safetensors") as path:
            save_file(tensors, path)
    return folder


LEAST_SCALE = 1e-2  # of the loss in fp16; icefall's zipformer recipe warns below it
NOT_LOGGED = ("skipped", "overflow", "bad_cuts")


@dataclass
class Progress:
    """How far a run has come: what ``state.json`` holds besides where the run comes from."""

    step: int = 0  # all of them, the skipped ones too
    skipped_steps: int = 0  # that changed no weight: bad ones, and those whose gradients overflowed in fp16
    place: SamplerState = field(default_factory=SamplerState)
    bad_steps: int = 0  # skipped for a loss or gradient that was not finite, in all
    bad_in_a_row: int = 0
    valid: Optional[Dict[str, float]] = None  # scores of this very step

    @property
    def updates(self) -> int:
        """Steps that changed the weights: what learning rate, warm-up and freezing go by."""
        return self.step - self.skipped_steps


class StepResult(NamedTuple):
    """Sums over all ranks and batches of a step; losses in nats."""

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
    overflow: bool = False  # skipped only because the loss scale was too high: it has been lowered
    bad_cuts: Tuple[str, ...] = ()  # of this rank, whose loss was not finite


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Tensors of a batch on a device."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def forward(model: nn.Module, batch: Batch, stored: bool) -> Losses:
    """Run the model on a batch."""
    inputs = (batch["inputs"], batch["lens"], batch["active"], batch["tokens"], batch["token_lens"])
    return model(*inputs, stored=stored, chunks=batch.get("chunks"))


@contextlib.contextmanager
def naming_memory(batch: Batch) -> Iterator[None]:
    """Turn running out of memory into a UserError that names the cuts of a batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        ids, longest = batch["cut_ids"], int(batch["token_lens"].max())
        raise UserError(
            f"out of memory on a batch of {len(ids)} cuts, {batch['seconds']:.1f} s, targets of up to {longest} tokens "
            f"({', '.join(ids)}): lower --data.max_duration or --data.max_cuts, or see docs/training.md on memory"
        ) from None


def not_finite(losses: Losses, batch: Batch) -> List[str]:
    """The ids of the cuts in a batch that have a loss which is not finite."""
    whole = losses.simple.detach() + losses.pruned.detach() + losses.ctc.detach()
    return [cut_id for cut_id, loss in zip(batch["cut_ids"], whole.tolist()) if not math.isfinite(loss)]


def cut_ids(batches: Sequence[Batch]) -> List[str]:
    """The ids of the cuts in some batches."""
    return [cut_id for batch in batches for cut_id in batch["cut_ids"]]


def as_record(result: StepResult) -> Dict[str, float]:
    """A step's result for the log."""
    return {k: v for k, v in result._asdict().items() if k not in NOT_LOGGED}


def __getattr__(name: str) -> Any:
    """`Stepper`, which was here in the last release."""
    if name == "Stepper":
        from tokenverse_pp.training.trainer import Stepper

        return Stepper
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""One-line errors for a run whose device fails: out of memory, or a lost GPU.

`naming_memory` is for the batches of a step, `explaining_device_errors` for the rest of a run.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Iterator

from tokenverse_pp.base.config import TrainingConfig
from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.data.dataset import Batch
from tokenverse_pp.models.checkpoint import list_checkpoints
from tokenverse_pp.models.compat import is_lost_device, is_out_of_memory

BLOCKING = "CUDA_LAUNCH_BLOCKING"  # CUDA then raises an error at its cause, as torch itself advises


@contextlib.contextmanager
def naming_memory(batch: Batch) -> Iterator[None]:
    """Raise a UserError that names the cuts of a batch if it runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        ids, longest = batch["cut_ids"], int(batch["token_lens"].max())
        raise UserError(
            f"out of memory on a batch of {len(ids)} cuts, {batch['seconds']:.1f} s, targets of up to {longest} tokens "
            f"({', '.join(ids)}): lower --data.max_duration, --data.max_cuts or --data.max_batch_tokens, or see "
            "docs/training.md on memory"
        ) from None


@contextlib.contextmanager
def explaining_device_errors(options: TrainingConfig) -> Iterator[None]:
    """Raise a UserError if the GPU is lost, or memory runs out outside of a step's batches.

    It names the checkpoint to resume from: checkpoints are renamed into place once written, so the latest is complete.
    With CUDA_LAUNCH_BLOCKING=1, used to find the cause, the error of a lost GPU is not changed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            # The weights, the optimiser's state of the first step, validation, averaging.
            what, advice = "out of memory outside of a batch", "see docs/training.md on memory"
        elif is_lost_device(error) and os.environ.get(BLOCKING) != "1":
            what, advice = "the GPU has failed", f"if it fails again, {BLOCKING}=1 shows where"
        else:
            raise
        raise UserError(f"{what} ({first_line(error)}): {rest_of(options)}; {advice}") from None


def first_line(error: BaseException) -> str:
    """Return the first line of an error; the lines that CUDA adds are always the same."""
    line = str(error).strip().partition("\n")[0]
    return one_line(RuntimeError(line)) if line else type(error).__name__


def rest_of(options: TrainingConfig) -> str:
    """Describe what is left of a failed run."""
    checkpoints = list_checkpoints(Path(options.exp_dir))
    if not checkpoints:
        return "there is no checkpoint yet"
    resumes = options.resume is True or options.resume == "auto"
    how = "the same command" if resumes else "the command with --training.resume auto"
    return f"{checkpoints[-1]} is whole, and {how} resumes from it"

"""DistributedContext: the process group, rank, device and reductions; the same code runs in one process."""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Callable, ContextManager, List, Sequence, TypeVar, Union

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tokenverse_pp.base.errors import UserError

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class DistributedContext:
    """This process within the process group."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process logs and writes (rank 0)."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, wrapped in DDP if there are several processes."""
        if self.size == 1:
            return model
        # Without device_ids, inputs stay where they are: lengths on the CPU.
        # The one buffer (trained combinations) is merged by `any_` instead of broadcast.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # new torch renames the argument, torch 1.13 needs it
            return DistributedDataParallel(model, broadcast_buffers=False)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes (float64)."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def sum_tensor(self, values: Tensor) -> Tensor:
        """Sums over all processes, in place; ``values`` are on this process's device."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, item: T) -> List[T]:
        """The items of all processes, in order of rank; small ones only (they are pickled among trusted peers)."""
        if self.size == 1:
            return [item]
        items: List[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def any_(self, flags: Tensor) -> None:
        """Set each flag in place if any process has it set."""
        if self.size > 1:
            counts = flags.to(self.device, torch.int32)
            dist.all_reduce(counts)
            flags.copy_(counts > 0)

    def all_(self, flag: bool) -> bool:
        """Whether ``flag`` is true on all processes."""
        return self.sum([float(flag)])[0] == self.size

    def from_first(self, make: Callable[[], T]) -> T:
        """The result of ``make`` on the first process, for all of them; a UserError is raised on all of them."""
        if self.size == 1:
            return make()
        outcome: List[Union[T, UserError, None]] = [None]
        if self.is_first:
            try:
                outcome = [make()]
            except UserError as error:
                outcome = [error]
        dist.broadcast_object_list(outcome)
        if isinstance(outcome[0], UserError):
            raise outcome[0]
        return outcome[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def start_distributed() -> DistributedContext:
    """Join the process group of torchrun, or run alone without it. NCCL with GPUs, otherwise gloo.

    A collective operation may wait for `COLLECTIVE_TIMEOUT`, because the first rank may have to look at a million cuts.
    `peers.Watch` finds dead ranks much earlier.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
    return DistributedContext(rank, size, device)


def stop_distributed() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def no_sync(model: nn.Module, wait: bool) -> ContextManager[Any]:
    """Under DDP and ``wait``: keep gradients local, for all but the last batch of a step."""
    return model.no_sync() if wait and isinstance(model, DistributedDataParallel) else contextlib.nullcontext()

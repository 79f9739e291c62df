"""What differs between one process and many, and between CPU and GPU: all of it is here."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Callable, ContextManager, List, Sequence, TypeVar, Union

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tokenverse_pp import compat
from tokenverse_pp.errors import UserError

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(hours=2)
FIRST_SCALE = 1.0  # of the loss in fp16
GROWTH_INTERVAL = 500  # updates in a row after which the scale is doubled; where that is too much, one step is skipped


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """True for the one process that logs and writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model under DDP, if there are peers."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are not broadcast: the one there is (trained combinations) is merged by `any_` when it matters.
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # today's torch renames the argument, torch 1.13 lacks the new one
            return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes (float64)."""
        if self.size == 1:
            return [float(value) for value in values]
        # NCCL has float64 sums, gloo too; the tensor must lie on this process's device.
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def gather(self, item: T) -> List[T]:
        """What each process has, in order of rank; small things only (they are pickled among trusted peers)."""
        if self.size == 1:
            return [item]
        items: List[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def any_(self, flags: Tensor) -> None:
        """Set a tensor of flags, in place, to whether any process has them set."""
        if self.size > 1:
            counts = flags.to(self.device, torch.int32)
            dist.all_reduce(counts)
            flags.copy_(counts > 0)

    def all_(self, flag: bool) -> bool:
        """Whether ``flag`` is true on all processes."""
        return self.sum([float(flag)])[0] == self.size

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` gives on the first process, on all of them; a UserError there is raised on all of them."""
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


def start_world() -> World:
    """Join the processes that torchrun started; alone without it. NCCL where there are GPUs, else gloo.

    A collective operation may wait for `COLLECTIVE_TIMEOUT`, for the first rank may have a million cuts to look at:
    `peers.Watch` finds ranks that have died long before.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
    return World(rank, size, device)


def stop_world() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def no_sync(model: nn.Module, wait: bool) -> ContextManager[Any]:
    """Under DDP and ``wait``: keep gradients local, for all but the last batch of a step."""
    return model.no_sync() if wait and isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def autocast(device: torch.device, precision: str) -> ContextManager[Any]:
    """Autocast for ``fp32`` (none), ``bf16`` or ``fp16``.

    Raises:
        UserError: for CPUs before torch 2.0, whose LayerNorm takes no mixed types.
    """
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if dtype is not None and device.type == "cpu" and int(torch.__version__.split(".")[0]) < 2:
        raise UserError(
            f"precision {precision} on a CPU needs torch 2.0 or later, here is {torch.__version__}: use fp32"
        )
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def grad_scaler(device: torch.device, precision: str) -> Any:
    """Loss scaling (GradScaler), at work only for fp16 on a GPU.

    The loss of a step is a sum over frames, so its gradients are large: the scale starts at 1, as icefall's does.
    """
    enabled = precision == "fp16" and device.type == "cuda"
    scales = {"init_scale": FIRST_SCALE, "growth_interval": GROWTH_INTERVAL}
    return compat.grad_scaler(device.type, enabled=enabled, **scales)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        part in str(error).lower() for part in ("out of memory", "can't allocate memory", "not enough memory")
    )


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of `peak_memory`, where the device can (a process's peak cannot be taken back)."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float:
    """Megabytes: the most that was allocated on a GPU, or the largest resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def unwrap(model: nn.Module) -> nn.Module:
    """The model without DDP."""
    return model.module if isinstance(model, DistributedDataParallel) else model

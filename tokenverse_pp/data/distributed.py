"""DistributedContext: the process group, rank, device and reductions; the same code runs in one process.

Also: sharded models for ``training.strategy: fsdp`` (`DistributedContext.shard`) and their tensors, and the number of
CPU threads of a process (`set_threads`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, Iterable, Iterator, List, Sequence, TypeVar, Union

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tokenverse_pp.base.errors import UserError

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(hours=2)
# Models with at least this many parameters get more than one CPU thread. In smaller ones, operations are so short that
# threads mostly wait for each other: on two busy cores the toy took 4.5 to 5.6 times as long with two threads.
LARGE = 50_000_000
MOST_THREADS = 4096  # with some thousand more, OpenMP ends the process


@dataclass(frozen=True)
class DistributedContext:
    """This process within the process group."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    machine: int = 0
    """Index of this machine in the group."""
    leads: bool = True
    """Whether this is the first process of its machine."""
    shared: bool = True
    """Whether all machines see the same experiment folder (``training.storage``)."""

    @property
    def is_first(self) -> bool:
        """Whether this process talks to the user (rank 0)."""
        return self.rank == 0

    @property
    def writes(self) -> bool:
        """Whether this process writes the experiment folder: rank 0, or the first process of each machine."""
        return self.is_first if self.shared else self.leads

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, wrapped in DDP if there are several processes and it is not sharded."""
        if self.size == 1 or is_sharded(model):
            return model
        # Without device_ids, inputs stay on their device: lengths on the CPU.
        # The one buffer (trained combinations) is merged by `any_` instead of broadcast. No static_graph: freeze
        # schedules and layer drop change the graph, and DDP orders its buckets by the first backward pass anyway.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # new torch renames the argument, torch 1.13 needs it
            return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def shard(self, model: nn.Module, groups: Sequence[nn.Module]) -> None:
        """Shard the parameters of a model over all processes, in place (FSDP2); without a process group do nothing.

        The parameters become DTensors, sharded along their first dimension, on the device of this process. Forward and
        backward gather the parameters of one group at a time. Gradients are averaged over processes after each
        backward, as with DDP, but into shards: gradients kept for a later batch would be as large as the model.

        Args:
            model: may be on any device; has the same weights in all processes.
            groups: modules whose parameters are gathered together, while they run. The other parameters are gathered
                while the model runs.

        Raises:
            UserError: if this version of torch has no FSDP2.
        """
        if not dist.is_initialized():
            return
        try:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard
        except ImportError:
            raise UserError(f"--training.strategy=fsdp: needs torch 2.6 or later, not {torch.__version__}") from None
        mesh = init_device_mesh(self.device.type, (self.size,))
        for module in groups:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        # On a GPU, FSDP's hook would move all input tensors there, also the lengths, which are read on the CPU.
        model.register_forward_pre_hook(_hide, prepend=True)
        model.register_forward_pre_hook(_show)

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
        """Return the items of all processes in rank order; small ones only (they are pickled among trusted peers)."""
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
        """Run ``make`` on the first process; return its result, or raise its UserError, on all processes."""
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

    def from_writer(self, make: Callable[[], T]) -> T:
        """Return the result of ``make`` on the process that writes for this machine (`writes`).

        With ``shared`` this is `from_first`. A UserError on any machine is raised on all processes.
        """
        if self.shared:
            return self.from_first(make)
        made: List[T] = []
        with self.failing_together():
            if self.writes:
                made = [make()]
        found = self.gather((self.machine, made))
        return next(item for machine, items in found if machine == self.machine for item in items)

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """Raise, on all processes, the first UserError that a process raises in the block, once all have left it.

        Without ``shared``, the message starts with the name of the machine.
        """
        problem = ""
        try:
            yield
        except UserError as error:
            problem = str(error) if self.shared else f"{socket.gethostname()}: {error}"
        for found in self.gather(problem):
            if found:
                raise UserError(found)

    def send_from(self, source: int, blocks: Iterable[bytes] = ()) -> Iterator[bytes]:
        """Broadcast blocks of bytes from one process to all; all must exhaust the iterator together.

        Args:
            source: rank of the sender.
            blocks: the blocks to send; used only on the sender.
        """
        sent = iter(blocks)
        while True:
            block = next(sent, b"") if self.rank == source else b""
            length = torch.tensor([len(block)], dtype=torch.int64, device=self.device)
            dist.broadcast(length, source)
            if not int(length):
                return
            if self.rank == source:
                data = torch.frombuffer(bytearray(block), dtype=torch.uint8).to(self.device)
            else:
                data = torch.empty(int(length), dtype=torch.uint8, device=self.device)
            dist.broadcast(data, source)
            yield block if self.rank == source else data.cpu().numpy().tobytes()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def start_distributed(shared: bool = True) -> DistributedContext:
    """Join the process group of torchrun (NCCL with GPUs, otherwise gloo), or run as a single process without it.

    A collective operation may take up to `COLLECTIVE_TIMEOUT`, because the first rank may have to read a million cuts.
    `peers.Watch` finds dead ranks much earlier.

    Args:
        shared: see `DistributedContext.shared`.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    # GROUP_RANK is torchrun's index of the machine.
    rank, machine, local_rank = (int(os.environ.get(name, 0)) for name in ("RANK", "GROUP_RANK", "LOCAL_RANK"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
    return DistributedContext(rank, size, device, machine, local_rank == 0, shared or size == 1)


def set_threads(given: int, model: nn.Module) -> str:
    """Set torch's number of CPU threads in this process; return a line for the log.

    The first of these applies: ``given``; the environment variable ``OMP_NUM_THREADS``; one thread for a model of fewer
    than `LARGE` parameters; the physical cores, divided among the processes that torchrun started on this machine.

    Args:
        given: the number that the user has set; 0 if none.
        model: the largest model that the process runs.

    Raises:
        UserError: if more threads are asked for than a process can start.
    """
    if given > MOST_THREADS:
        raise UserError(f"threads: expected at most {MOST_THREADS} CPU threads, got {given}")
    # For several processes, torchrun sets OMP_NUM_THREADS to 1 if it is not set: this is not the user's choice.
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if given:
        count, why = given, "as given"
    elif os.environ.get("OMP_NUM_THREADS") and not by_torchrun:
        return f"CPU threads: {torch.get_num_threads()} (OMP_NUM_THREADS)"
    elif sum(parameter.numel() for parameter in model.parameters()) < LARGE:
        count, why = 1, "more would slow down a model of this size"
    else:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        cores = cpu_cores()
        count, why = max(1, cores // processes), f"{cores} cores" + (f", {processes} processes" * (processes > 1))
    torch.set_num_threads(count)
    return f"CPU threads: {count} ({why})"


def cpu_cores() -> int:
    """The number of physical cores that this process may use (on systems other than Linux: logical cores)."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    topology = [Path(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") for n in os.sched_getaffinity(0)]
    return len({path.read_text() if path.is_file() else str(path) for path in topology})


def stop_distributed() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def no_sync(model: nn.Module, wait: bool) -> ContextManager[Any]:
    """With DDP and ``wait``, keep gradients local: for all but the last batch of a step."""
    return model.no_sync() if wait and isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def is_sharded(model: nn.Module) -> bool:
    """Whether `DistributedContext.shard` has sharded the model."""
    return any(hasattr(module, "unshard") for module in model.modules())


@contextlib.contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather all parameters of a sharded model; inside the block its forward calls no collective operation.

    All processes must enter and leave together. FSDP's hooks do not run in the block: they would record each forward
    for the prefetching of the next backward, which must be the same in all processes. A model that is not sharded is
    not changed.
    """
    modules: List[Any] = [module for module in model.modules() if hasattr(module, "unshard")]
    hooks = [(module._forward_pre_hooks, module._forward_hooks) for module in modules]
    for module in modules:
        module.unshard()
        module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for module, (before, after) in zip(modules, hooks):
            module._forward_pre_hooks, module._forward_hooks = before, after
            module.reshard()


class _Hidden:
    """A tensor that FSDP does not recognise."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def _hide(model: nn.Module, inputs: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(_Hidden(x) if isinstance(x, Tensor) and x.device.type == "cpu" else x for x in inputs)


def _show(model: nn.Module, inputs: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(x.tensor if isinstance(x, _Hidden) else x for x in inputs)


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor if it is sharded; all processes must call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it, if it is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def gathered(tensors: Dict[str, Tensor], keep: bool = True) -> Dict[str, Tensor]:
    """Gather sharded tensors one by one and move them to the CPU; all processes must call this together.

    Args:
        tensors: those that are not sharded are returned unchanged.
        keep: whether to return the tensors on this process.
    """
    found = {}
    for name, tensor in tensors.items():
        if hasattr(tensor, "full_tensor"):
            full = whole(tensor.detach())
            tensor = full.cpu() if keep else full
        if keep:
            found[name] = tensor
    return found


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a whole tensor like ``like``, if that is sharded; all processes must call this together."""
    if not hasattr(like, "full_tensor") or hasattr(tensor, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    target: Any = like
    return distribute_tensor(tensor.to(like.device), target.device_mesh, target.placements)

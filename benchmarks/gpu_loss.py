"""The sections of benchmarks/gpu.py about the loss: equality with float64 on a CPU, speed beside its peers, parts."""

from __future__ import annotations

import contextlib
import importlib
from functools import partial
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Optional, Tuple, Union

import torch
from gpu_run import GpuRun, Record, launches, peak_mb, reason_of, relative_error, timed, waits
from torch import Tensor, nn

from tokenverse_pp.losses import entry, native, pruned_transducer_loss, rnnt_loss, rnnt_loss_joiner
from tokenverse_pp.losses.devices import use_kernels
from tokenverse_pp.losses.native.pruned import band_loss

Size = Tuple[int, int, int, int]  # utterances, frames, symbols, vocabulary
# Type -> of the inputs, of autocast (None: off), the largest relative error of losses and of gradients.
TYPES: Dict[str, Tuple[torch.dtype, Optional[torch.dtype], float, float]] = {
    "float64": (torch.float64, None, 1e-10, 1e-8),
    "float32": (torch.float32, None, 1e-6, 1e-4),
    "bf16": (torch.float32, torch.bfloat16, 1e-2, 5e-2),
    "fp16": (torch.float32, torch.float16, 2e-3, 1e-2),
}
EQUAL_SIZES: List[Size] = [(4, 200, 40, 100), (3, 50, 10, 30)]
LONG: Size = (1, 3000, 600, 30)
SPEED_SIZES: List[Size] = [(8, 500, 80, 500), (16, 1000, 150, 500), (32, 750, 120, 500), (16, 500, 100, 5000)]
MODES = ("float32", "tf32", "bf16")  # of the matrix products
TINY: Size = (2, 7, 3, 9)


class LossCase:
    """Inputs of the loss of ragged utterances, the first of which is full.

    Attributes:
        inputs: am_simple, lm_simple, am, lm and the parameters of the joiner's last layer, which get gradients.
    """

    def __init__(self, size: Size, device: torch.device, dim: int = 512, seed: int = 0, ragged: bool = True):
        self.size, self.dim = size, dim
        batch, frames, symbols, vocab = size
        generator = torch.Generator().manual_seed(seed)
        shapes = [(batch, frames, vocab), (batch, symbols + 1, vocab), (batch, frames, dim), (batch, symbols + 1, dim)]
        values = [torch.randn(shape, generator=generator) for shape in shapes]
        weight = torch.randn(vocab, dim, generator=generator) / dim**0.5
        bias = torch.randn(vocab, generator=generator) / 10
        self.symbols = torch.randint(1, vocab, (batch, symbols), generator=generator)
        self.boundary = torch.tensor([[0, 0, symbols, frames]] * batch)
        if ragged:
            self.boundary[1:, 2] = torch.randint(max(1, symbols // 2), symbols + 1, (batch - 1,), generator=generator)
            self.boundary[1:, 3] = torch.randint(int(0.6 * frames), frames + 1, (batch - 1,), generator=generator)
        self._place([*values, weight, bias], device, torch.float32)

    def _place(self, tensors: List[Tensor], device: torch.device, dtype: torch.dtype) -> None:
        *values, weight, bias = tensors
        self.linear = nn.Linear(self.dim, len(bias), device=device, dtype=dtype)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)
        leaves = [x.detach().to(device, dtype).requires_grad_() for x in values]
        self.inputs = [*leaves, self.linear.weight, self.linear.bias]
        self.symbols, self.boundary = self.symbols.to(device), self.boundary.to(device)

    def to(self, device: torch.device, dtype: torch.dtype) -> LossCase:
        """The same numbers elsewhere or in another type."""
        other = LossCase.__new__(LossCase)
        other.size, other.dim, other.symbols, other.boundary = self.size, self.dim, self.symbols, self.boundary
        other._place(list(self.inputs), device, dtype)
        return other

    def about(self) -> Dict[str, int]:
        """The sizes, for a record."""
        return dict(zip("BTUV", self.size))

    def lengths(self) -> Tuple[Tensor, Tensor]:
        """Frames and symbols of each utterance."""
        return self.boundary[:, 3], self.boundary[:, 2]

    def pruned(self, **options: Any) -> Tensor:
        """Simple and pruned losses, (2 * N,)."""
        losses = pruned_transducer_loss(*self.inputs[:4], self.linear, self.symbols, self.boundary, **options)
        return torch.cat([losses.simple, losses.pruned])

    def ranges(self) -> Tensor:
        """The symbol positions (N, T, R) that the pruned loss keeps."""
        with torch.no_grad():
            return self._simple()[1]

    def _simple(self) -> Tuple[Tensor, Tensor]:
        am_simple, lm_simple = self.inputs[:2]
        return entry.simple_loss_and_ranges(
            native, am_simple, lm_simple, self.symbols, self.boundary, blank=0, prune_range=5, lm_scale=0.25,
            am_scale=0.0, rnnt_type="regular",
        )  # fmt: skip

    def pruned_at(self, ranges: Tensor) -> Tensor:
        """What `pruned` gives where these positions are kept."""
        am, lm = self.inputs[2:4]
        arcs = entry.band_log_probs(am, lm, self.linear, self.symbols, ranges, self.boundary, 0, 0)
        return torch.cat([self._simple()[0], band_loss(*arcs, ranges, self.boundary, self.size[2], "regular", 0.0)])

    def exact(self) -> Tensor:
        """`rnnt_loss` of all logits (N, T, U + 1, V)."""
        logits = self.linear(torch.tanh(self.inputs[2][:, :, None] + self.inputs[3][:, None]))
        return rnnt_loss(logits, self.symbols, *self.lengths(), blank=0, reduction="none")

    def exact_joiner(self) -> Tensor:
        """`rnnt_loss_joiner`, which does not hold the logits."""
        am, lm = self.inputs[2:4]
        return rnnt_loss_joiner(am, lm, self.linear, self.symbols, *self.lengths(), blank=0, reduction="none")

    def step(self, loss: Callable[[], Tensor], autocast: Optional[torch.dtype] = None) -> Tensor:
        """Forward and backward; returns the losses, and leaves the gradients in the inputs."""
        self.forget()
        with autocast_to(self.symbols.device, autocast):
            losses = loss()
        losses.sum().backward()
        return losses.detach()

    def forget(self) -> None:
        """Free the gradients."""
        for x in self.inputs:
            x.grad = None

    def gradients(self) -> List[Tensor]:
        """The gradients of the last step, of those inputs that have one."""
        return [x.grad for x in self.inputs if x.grad is not None]


def autocast_to(device: torch.device, dtype: Optional[torch.dtype]) -> ContextManager[Any]:
    """Autocast to a type, or none."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@contextlib.contextmanager
def products(mode: str) -> Iterator[Optional[torch.dtype]]:
    """Run matrix products in float32, TF32 or bf16; gives autocast's type."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if mode == "tf32" else "highest")
    try:
        yield torch.bfloat16 if mode == "bf16" else None
    finally:
        torch.set_float32_matmul_precision(before)


def equality(run: GpuRun) -> None:
    """Losses and gradients on the GPU against PyTorch's in float64 on the CPU."""
    functions = ("pruned_transducer_loss", "rnnt_loss", "rnnt_loss_joiner")
    for size in [TINY] if run.dry else EQUAL_SIZES:
        case = LossCase(size, torch.device("cpu"), dim=8 if run.dry else 64)
        for function in functions:
            for backend in ("triton", "torch"):
                # Triton's interpreter takes seconds a loss.
                types = ["float32"] if run.dry and function != functions[0] else list(TYPES)
                for name in types:
                    equal_case(run, case, function, backend, name)
    case = LossCase((1, 15, 6, 7) if run.dry else LONG, torch.device("cpu"), dim=8 if run.dry else 64, seed=1)
    equal_case(run, case, functions[0], "triton", "float32")


def loss_of(case: LossCase, function: str, backend: str) -> Callable[[], Tensor]:
    """One of the losses by name."""
    if function == "pruned_transducer_loss":
        return lambda: case.pruned(backend=backend)
    return case.exact if function == "rnnt_loss" else case.exact_joiner


def equal_case(run: GpuRun, case: LossCase, function: str, backend: str, name: str) -> None:
    """Record how far losses and gradients of one computation are from PyTorch's in float64 on the CPU.

    Where two windows of symbol positions are worth the same but for rounding, the pruned loss may keep either. So the
    expected one is that of the positions which were kept, and ``same_ranges`` is the share that float64 keeps too.
    """
    dtype, autocast, most_loss, most_grad = TYPES[name]

    def measure() -> Record:
        here, reference = case.to(run.device, dtype), case.to(torch.device("cpu"), torch.float64)
        expected_loss, same = loss_of(reference, function, "torch"), None
        with use_kernels(backend), products("float32"):
            losses = here.step(loss_of(here, function, backend), autocast)
            if function == "pruned_transducer_loss":
                ranges = here.ranges().cpu()
                expected_loss = lambda: reference.pruned_at(ranges)
        with use_kernels("torch"):
            if function == "pruned_transducer_loss":
                same = float((reference.ranges() == ranges).double().mean())
            expected = reference.step(expected_loss)
        loss_error = relative_error(losses, expected)
        grad_error = max(relative_error(a, b) for a, b in zip(here.gradients(), reference.gradients()))
        equal = loss_error <= most_loss and grad_error <= most_grad
        errors = {"loss_error": float(f"{loss_error:.3g}"), "grad_error": float(f"{grad_error:.3g}")}
        return {**errors, "tolerance": [most_loss, most_grad], "same_ranges": same, "equal": equal, "ok": equal}

    about = {"function": function, "backend": backend, "dtype": name, **case.about()}
    run.case("equality", f"{function}, {backend}, {name}", measure, **about)


def speed_case(run: GpuRun, size: Size, ragged: bool = True) -> LossCase:
    """Inputs for timing."""
    return LossCase(size, run.device, dim=8 if run.dry else 512, ragged=ragged)


def measured(run: GpuRun, case: LossCase, call: Callable[[], Any]) -> Record:
    """Time, memory, launches and waits of a call."""
    times = timed(call, run.device, run.repeats)
    about = {"peak_mb": peak_mb(call, run.device, case.forget), "waits": waits(call, run.device)}
    return {**times, **about, **launches(call, run.device)}


def speed(run: GpuRun) -> None:
    """Time, memory, launches and waits of the pruned loss and of the exact one that holds no logits."""
    for size in [TINY] if run.dry else SPEED_SIZES:
        case = speed_case(run, size)
        for mode in MODES:
            for budget in ("default", 0):
                loss = partial(case.pruned, memory_budget=None if budget == "default" else budget)
                speed_of(run, case, "tokenverse_pp pruned", mode, loss, budget)
        if size == SPEED_SIZES[0] or run.dry:
            for mode in MODES:
                speed_of(run, case, "tokenverse_pp exact", mode, case.exact_joiner)
        del case, loss


def speed_of(
    run: GpuRun,
    case: LossCase,
    peer: str,
    mode: str,
    loss: Callable[[], Tensor],
    budget: Union[int, str, None] = None,
    optional: bool = False,
) -> None:
    """Record the speed of one loss; its matrix products in one of `MODES`."""

    def measure() -> Record:
        with products(mode) as autocast:
            return measured(run, case, lambda: case.step(loss, autocast))

    name = f"{peer}, {mode}" + ("" if budget is None else f", budget {budget}")
    about = {"peer": peer, "mode": mode, "budget": budget, **case.about()}
    run.case("loss", name, measure, optional, **about)


def peers(run: GpuRun) -> None:
    """torchaudio, fast_rnnt and k2, where they can be imported, on the sizes of `speed`."""
    for peer in ("torchaudio", "fast_rnnt", "k2"):
        try:
            importlib.import_module(peer)
        except Exception as error:  # built for another torch or CUDA: ImportError, OSError, RuntimeError
            run.add("loss", peer, "skipped", 0, {"peer": peer}, {"reason": reason_of(error)})
            continue
        loss = torchaudio_loss if peer == "torchaudio" else pruned_by
        for size in [TINY] if run.dry else SPEED_SIZES:
            case = speed_case(run, size)
            batch, frames, symbols, vocab = size
            if peer == "torchaudio" and batch * frames * (symbols + 1) * vocab >= 2**31:
                reason = "2**31 logits or more: an illegal memory access in torchaudio 2.11"
                run.add("loss", peer, "skipped", 0, {"peer": peer, **case.about()}, {"reason": reason})
                continue
            for mode in MODES:
                speed_of(run, case, peer, mode, partial(loss, case, peer), optional=True)
            del case


def torchaudio_loss(case: LossCase, name: str = "torchaudio") -> Tensor:
    """The unpruned loss of torchaudio, with the joiner before it."""
    functional = importlib.import_module(f"{name}.functional")
    logits = case.linear(torch.tanh(case.inputs[2][:, :, None] + case.inputs[3][:, None]))
    frames, symbols = (lengths.int() for lengths in case.lengths())
    return functional.rnnt_loss(logits.float(), case.symbols.int(), frames, symbols, blank=0, reduction="none")


def pruned_by(case: LossCase, name: str) -> Tensor:
    """The pruned loss by the functions of k2, or of a library with the same functions."""
    library: Any = importlib.import_module(name)
    am_simple, lm_simple, am, lm = case.inputs[:4]
    common = {"symbols": case.symbols, "termination_symbol": 0, "boundary": case.boundary, "reduction": "none"}
    with torch.autocast(am.device.type, enabled=False):
        simple, gradients = library.rnnt_loss_smoothed(
            lm=lm_simple, am=am_simple, lm_only_scale=0.25, am_only_scale=0.0, return_grad=True, **common
        )
        ranges = library.get_rnnt_prune_ranges(*gradients, case.boundary, 5)
    am_band, lm_band = library.do_rnnt_pruning(am, lm, ranges)
    logits = case.linear(torch.tanh(am_band + lm_band))
    with torch.autocast(am.device.type, enabled=False):
        pruned = library.rnnt_loss_pruned(logits=logits.float(), ranges=ranges, **common)
    return torch.cat([simple, pruned])


def parts(run: GpuRun) -> None:
    """Forward and backward of each part of the pruned loss alone, in strict float32."""
    for size in [TINY] if run.dry else SPEED_SIZES:
        case = speed_case(run, size)
        calls = calls_of_parts(case)
        for name, call in calls.items():
            run.case("loss parts", name, partial(measured, run, case, call), part=name, **case.about())
        del case, calls, call


def calls_of_parts(case: LossCase) -> Dict[str, Callable[[], Any]]:
    """The parts by name."""
    am_simple, lm_simple, am, lm = case.inputs[:4]
    budget = entry.DEFAULT_MEMORY_BUDGET_GPU

    def simple() -> Tuple[Tensor, Any]:
        return native.rnnt_loss_smoothed(
            lm_simple, am_simple, case.symbols, 0, lm_only_scale=0.25, boundary=case.boundary, reduction="sum",
            return_grad=True,
        )  # fmt: skip

    with torch.no_grad():
        _, gradients = simple()
        ranges = native.get_rnnt_prune_ranges(*gradients, case.boundary, 5)
        arcs = entry.band_log_probs(am, lm, case.linear, case.symbols, ranges, case.boundary, 0, budget)
    px, py = (x.detach().requires_grad_() for x in arcs)
    wide = [x.detach().requires_grad_() for x in gradients]

    def joiner() -> Any:
        rows = entry.band_log_probs(am, lm, case.linear, case.symbols, ranges, case.boundary, 0, budget)
        return torch.autograd.grad(rows, case.inputs[2:], [torch.ones_like(x) for x in rows])

    def band_lattice() -> Any:
        loss = band_loss(px, py, ranges, case.boundary, case.size[2], "regular", 0.0)
        return torch.autograd.grad(loss.sum(), [px, py])

    def dense_lattice() -> Any:
        scores = native.mutual_information_recursion(*wide, case.boundary)
        return torch.autograd.grad(scores.sum(), wide)

    return {
        "simple loss": lambda: torch.autograd.grad(simple()[0], case.inputs[:2]),
        "pruning": lambda: native.get_rnnt_prune_ranges(*gradients, case.boundary, 5),
        "joiner": joiner,
        "band lattice": band_lattice,
        "dense lattice": dense_lattice,
    }

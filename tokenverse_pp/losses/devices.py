"""How tensors are computed: by Triton kernels or PyTorch, and in which number type.

Also what differs between devices and between versions of torch (1.13 to 2.x), and memory and errors of a device.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import resource
import sys
from contextvars import ContextVar
from typing import Any, Callable, ContextManager, Dict, Iterator, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenverse_pp.base.errors import UserError, one_line

LOG = logging.getLogger(__name__)
FIRST_SCALE = 1.0  # of the loss in fp16
GROWTH_INTERVAL = 500  # steps
_wanted: ContextVar[Optional[str]] = ContextVar("kernels", default=None)
_problems: Dict[str, Optional[str]] = {}  # device -> why the kernels cannot be used on it


@contextlib.contextmanager
def use_kernels(which: Optional[str]) -> Iterator[None]:
    """Within the block, compute losses with ``triton`` or ``torch`` on any device; None: depending on the device.

    Raises:
      UserError: at the first loss, if ``triton`` cannot be used.
    """
    token = _wanted.set(which)
    try:
        yield
    finally:
        _wanted.reset(token)


def triton_kernels(x: Tensor) -> Any:
    """Return the module `losses.triton` if it computes the loss of ``x``, else None.

    It is used for tensors on NVIDIA GPUs where Triton works. Where it does not, a warning gives the reason, once.
    """
    wanted = _wanted.get()
    if wanted == "torch" or (wanted is None and not x.is_cuda):
        return None
    problem = triton_problem(x.device)
    if problem is None:
        return importlib.import_module("tokenverse_pp.losses.triton")
    if wanted == "triton":
        raise UserError(f"loss backend 'triton' cannot be used: {problem}; use 'auto' or 'torch'")
    return None


def triton_problem(device: torch.device) -> Optional[str]:
    """Why the Triton kernels cannot be used on a device, in one line; None if they can. Checked once per device."""
    key = str(device)
    if key not in _problems:
        _problems[key] = _find_problem(device)
        if _problems[key] is not None and device.type == "cuda":
            LOG.warning("loss: the Triton kernels cannot be used (%s); using PyTorch, which is slower", _problems[key])
    return _problems[key]


def _find_problem(device: torch.device) -> Optional[str]:
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"they run on NVIDIA GPUs, not on {device.type!r}"
    if torch.version.hip is not None:
        return "they are not made for ROCm"
    if importlib.util.find_spec("triton") is None:
        return "No module named 'triton'"
    try:
        language = importlib.import_module("triton.language")
        if not hasattr(language, "gather"):
            return "Triton 3.3 or later is needed (torch 2.7)"
        kernels = importlib.import_module("tokenverse_pp.losses.triton")
        arcs, boundary = torch.zeros((1, 2, 2), device=device), torch.tensor([[0, 0, 1, 2]], device=device)
        kernels.dense_scores(arcs[:, :1], arcs, boundary, False)
    except torch.cuda.OutOfMemoryError:  # not a problem of the kernels
        raise
    except Exception as error:  # e.g. a missing compiler or a GPU that is too old: the messages vary
        return one_line(error)
    return None


def autocast_type(kind: str) -> Optional[torch.dtype]:
    """The type in which autocast computes matrix products on a kind of device; None if it is off."""
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4 and later; the functions below are deprecated there
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    if kind == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if kind == "cuda" and torch.is_autocast_enabled() else None


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The type in which autocast would compute a matrix product of x; the type of x if autocast is off."""
    return autocast_type(x.device.type) or x.dtype


def autocast(device: torch.device, precision: str) -> ContextManager[Any]:
    """Autocast for ``fp32`` (none), ``bf16`` or ``fp16``.

    Raises:
        UserError: bf16 or fp16 on a CPU before torch 2.0, whose LayerNorm accepts no mixed types.
    """
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if dtype is not None and device.type == "cpu" and int(torch.__version__.split(".")[0]) < 2:
        raise UserError(
            f"precision {precision} on a CPU needs torch 2.0 or later, here is {torch.__version__}: use fp32"
        )
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def grad_scaler(device: torch.device, precision: str) -> Any:
    """Loss scaling (GradScaler), enabled only for fp16 on a GPU.

    The loss of a step is a sum over frames, so its gradients are large: the scale starts at 1, as icefall's does.
    """
    enabled = precision == "fp16" and device.type == "cuda"
    options: Dict[str, Any] = {"init_scale": FIRST_SCALE, "growth_interval": GROWTH_INTERVAL, "enabled": enabled}
    if hasattr(torch.amp, "GradScaler"):  # torch 2.3 and later, where the other class is deprecated
        return torch.amp.GradScaler(device.type, **options)
    return torch.cuda.amp.GradScaler(**options)


def compiled_layer(device: torch.device, backend: str = "inductor") -> Callable[[nn.Module, Tensor, Any, Any], Any]:
    """torch.compile of a call ``layer(x, *args, **kwargs)``, for shapes of any size.

    Layers that differ only in their weights share a compilation (from torch 2.5 on). The module itself is not changed.

    Raises:
        UserError: torch is older than 2.1, or has no compiler for this device.
    """
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < (2, 1):
        raise UserError(f"--training.compile: expected torch 2.1 or later, found {torch.__version__}")
    try:
        torch.compile(lambda x: torch.relu(x) + 1, dynamic=True, backend=backend)(torch.ones(8, device=device))
    except Exception as error:  # a compiler that is missing or fails may raise anything
        raise UserError(f"--training.compile: torch.compile does not work here: {one_line(error)}") from None
    options: Any = torch._dynamo.config
    # Layers are compiled one by one: there is nothing to split into DDP buckets.
    options.optimize_ddp = False
    # Two kinds of layers are each compiled with and without padding, for one or more utterances, frozen or not; before
    # torch 2.5 each layer separately. Beyond these limits a layer would not be compiled.
    for name, least in (("cache_size_limit", 64), ("accumulated_cache_size_limit", 4096)):
        setattr(options, name, max(least, getattr(options, name, 0)))
    return torch.compile(_call_layer, dynamic=True, backend=backend)


def _call_layer(layer: nn.Module, x: Tensor, args: Sequence[Any], options: Dict[str, Any]) -> Any:
    return layer(x, *args, **options)


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor]) -> Tensor:
    """Attention without dropout: q, k, v (N, H, T, D) -> (N, H, T, D).

    ``bias`` is additive and broadcasts to (N, H, T, T), or is None. GPUs use torch's fused kernel (torch 2.0); on CPUs
    plain matrix products train at least 1.3 times as fast in bfloat16 (T 175 to 500).
    """
    if q.device.type != "cpu" and hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1).to(v.dtype) @ v


def in_exact_type(conv: nn.Conv1d, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run a convolution, in float32 where bfloat16 on a CPU would be wrong.

    oneDNN (torch 2.13) computes grouped convolutions in bfloat16 wrongly on CPUs with AMX unless the number of channels
    in a group is a multiple of 16: the output is unrelated to the input, or NaN. wav2vec2 (48 and 64 channels) is not
    affected, small encoders are.
    """
    channels = conv.in_channels // conv.groups
    if x.device.type != "cpu" or conv.groups == 1 or channels == 1 or channels % 16 == 0:
        return run(x)
    with torch.autocast("cpu", enabled=False):
        return run(x.to(conv.bias.dtype if conv.bias is not None else torch.float32))


def without_unused_frames(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Drop the last frames of x (N, C, T) that no output of an unpadded, strided convolution depends on.

    This is done in bfloat16 on CPUs only. There oneDNN (torch 2.13, CPUs with AMX) reads past the end of its buffer if
    frames are left over, and multiplies what it finds by zero: where that memory happens to hold NaN or infinity, the
    gradient of the weights is NaN. This affects kernels of 4 frames and more: small encoders have them, wav2vec2
    only in its first convolution.
    """
    if x.device.type != "cpu" or autocast_type("cpu") is None:
        return x
    unused = (x.shape[-1] - conv.kernel_size[0]) % conv.stride[0]
    return x[..., : x.shape[-1] - unused]


def peak_memory(device: torch.device) -> float:
    """Peak memory in megabytes: allocated on a GPU, or resident for this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def device_memory(device: torch.device) -> Optional[float]:
    """Megabytes of a GPU's memory; None for a CPU, where the peak of a step cannot be measured."""
    return torch.cuda.get_device_properties(device).total_memory / 2**20 if device.type == "cuda" else None


def reset_peak_memory(device: torch.device) -> None:
    """Reset `peak_memory` on a GPU; that of a process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or this machine is out of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        part in str(error).lower()
        for part in ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")
    )


# Errors of the driver after which no call of the process on the GPU works (such as cudaErrorIllegalAddress).
LOST = (
    "illegal memory access",
    "illegal address",
    "illegal instruction",
    "misaligned address",
    "device-side assert",
    "launch failure",
    "launch timed out",
    "uncorrectable ECC",
    "hardware stack error",
    "device lost",
    "system not ready",
    "unknown error",
)


def is_lost_device(error: BaseException) -> bool:
    """Whether an error means that a GPU has failed, so that no call of this process on it will work again.

    The next call raises such an error, whatever it does. Other CUDA errors, such as those of a torch built for another
    card, concern only the call that raises them.
    """
    of_device = ("CUDA error:", "HIP error:", "Triton Error [CUDA]:")
    text = str(error)
    return (
        isinstance(error, RuntimeError)
        and any(part in text for part in of_device)
        and any(part in text for part in LOST)
    )

"""Differences between library versions (transformers 4.40 to 5.x, torch 1.13 to 2.x) and between devices."""

from __future__ import annotations

import contextlib
import inspect
import resource
import sys
from contextlib import contextmanager
from typing import Any, Callable, ContextManager, Dict, Iterator, Optional, Sequence

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.losses.native.kernels import autocast_type

FIRST_SCALE = 1.0  # of the loss in fp16
GROWTH_INTERVAL = 500  # steps


def transformer_layer(
    layer: nn.Module, x: Tensor, arguments: Dict[str, Any], compiled: Optional[Callable[..., Any]] = None
) -> Tensor:
    """Run one encoder layer of transformers, ``compiled`` or not, and return its hidden states (N, T, C).

    In transformers 4 (and for WavLM in 5) a layer returns them first in a tuple; Whisper needs ``layer_head_mask``.
    """
    if "layer_head_mask" in inspect.signature(layer.forward).parameters:
        arguments = dict(arguments, layer_head_mask=None)
    output = compiled(layer, x, (), arguments) if compiled else layer(x, **arguments)
    return output[0] if isinstance(output, tuple) else output


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


def float32_argument() -> Dict[str, torch.dtype]:
    """The argument of ``from_pretrained`` for float32: ``torch_dtype``, or ``dtype`` from transformers 5 on."""
    major = int(transformers.__version__.split(".")[0])
    return {"dtype" if major >= 5 else "torch_dtype": torch.float32}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


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


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The type in which autocast would compute a matrix product of x; the type of x if autocast is off."""
    return autocast_type(x.device.type) or x.dtype


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


def grad_scaler(device: torch.device, precision: str) -> Any:
    """Loss scaling (GradScaler), enabled only for fp16 on a GPU.

    The loss of a step is a sum over frames, so its gradients are large: the scale starts at 1, as icefall's does.
    """
    enabled = precision == "fp16" and device.type == "cuda"
    options: Dict[str, Any] = {"init_scale": FIRST_SCALE, "growth_interval": GROWTH_INTERVAL, "enabled": enabled}
    if hasattr(torch.amp, "GradScaler"):  # torch 2.3 and later, where the other class is deprecated
        return torch.amp.GradScaler(device.type, **options)
    return torch.cuda.amp.GradScaler(**options)


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

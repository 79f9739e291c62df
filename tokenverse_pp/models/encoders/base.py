"""`Encoder`, which the transducer uses, and `Backbone`, a pretrained encoder of one family.

Also the tensor functions that all families share: masks from lengths, and frame stacking.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.dataset import SAMPLING_RATE
from tokenverse_pp.models.encoders.chunks import ChunkGrid, chunk_grid, chunk_mask

# Added to the attention scores of padded keys: its exp() is exactly 0 in every float type, and unlike -inf it gives
# no NaN in a fully masked row.
MASKED_SCORE = -30000.0


def length_mask(lens: Tensor, size: int, device: Optional[torch.device] = None) -> Tensor:
    """Return (N, size) bool, true on the first ``lens[n]`` frames of row n.

    lens [3, 1], size 4 ->  [[1, 1, 1, 0],
                             [1, 0, 0, 0]]

    On ``device``, by default that of ``lens``. Keep lengths on the CPU, where reading them does not wait for a GPU.
    """
    lens = lens.to(device or lens.device, non_blocking=True)
    return torch.arange(size, device=lens.device) < lens.unsqueeze(1)


def is_padded(lens: Tensor, size: int) -> bool:
    """Whether any of the rows is shorter than ``size``."""
    return bool((lens < size).any())


def zero_padding(x: Tensor, lens: Tensor) -> Tensor:
    """Return x (N, T, C) with zeros after the first ``lens`` (N,) frames; x itself if there is no padding."""
    if not is_padded(lens, x.shape[1]):
        return x
    return x.masked_fill(~length_mask(lens, x.shape[1], x.device).unsqueeze(-1), 0.0)


def attention_bias(lens: Tensor, size: int, device: torch.device, seen: Optional[Tensor] = None) -> Optional[Tensor]:
    """Return the additive attention bias (N, 1, T, T) that masks padding, float32; None if nothing is masked.

    ``lens``: valid frames, (N,). ``size``: T. ``seen``: (T, T), true on the frames that each frame sees (`chunk_mask`).
    """
    if seen is not None:
        return score_bias(length_mask(lens, size, device)[:, None, None, :] & seen, torch.float32)
    if not is_padded(lens, size):
        return None  # attention without a mask has the fastest kernels
    return score_bias(length_mask(lens, size, device), torch.float32)[:, None, None, :].expand(-1, 1, size, -1)


def seen_frames(size: int, grid: Optional[ChunkGrid], device: torch.device) -> Optional[Tensor]:
    """The frames that each frame sees in chunks, (T, T) bool; None: all."""
    return None if grid is None else chunk_mask(size, grid, device)


def check_length(lens: Tensor, frames: Tensor) -> None:
    """Raise UserError if an utterance (lens (N,) samples) has no frame."""
    if int(frames.min()) < 1:
        raise UserError(f"an utterance has {int(lens.min())} samples: too few for one frame of the encoder")


def score_bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where ``seen`` is true and `MASKED_SCORE` elsewhere, of the same shape."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, MASKED_SCORE)


def stacked_lens(lens: Tensor, stack: int) -> Tensor:
    """Return ceil(lens / stack)."""
    return torch.div(lens + stack - 1, stack, rounding_mode="floor")


def stack_frames(x: Tensor, lens: Tensor, stack: int) -> Tuple[Tensor, Tensor]:
    """Join ``stack`` neighbouring frames: (N, T, C), lens -> (N, ceil(T / stack), stack * C), ceil(lens / stack).

    The last group is padded with zeros; padded frames of x must be zero.
    """
    if stack == 1:
        return x, lens
    n, t, c = x.shape
    x = torch.nn.functional.pad(x, (0, 0, 0, -t % stack))
    return x.reshape(n, -1, stack * c), stacked_lens(lens, stack)


def make_frames_of(encoder: Encoder, at_seam: bool = False) -> Callable[[float], int]:
    """Return a function: seconds of audio -> encoder output frames, or frames at the seam."""

    def frames_of(seconds: float) -> int:
        lens = encoder.feature_lens(torch.tensor([round(seconds * SAMPLING_RATE)]))
        return int(lens if at_seam else encoder.output_lens(lens))

    return frames_of


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


class TrainedLayers:
    """How a stack of layers runs in training: how many are recomputed in backward, and whether they are compiled.

    Attributes:
        recomputed: number of layers to recompute, from the lowest one that has activations to keep.
        compiled: runs ``(layer, x, args, kwargs)`` compiled (`losses.devices.compiled_layer`); None: not compiled.
    """

    def __init__(self) -> None:
        self.recomputed = 0
        self.compiled: Optional[Callable[..., Any]] = None

    def runner(self, training: bool) -> Callable[..., Tensor]:
        """Return ``run(layer, call, x)``, to be called on the layers of one forward pass, lowest first.

        ``call(layer, x, compiled)`` runs a layer; in evaluation it is neither compiled nor recomputed.
        """
        training = training and torch.is_grad_enabled()
        compiled = self.compiled if training else None
        left = self.recomputed if training else 0

        def run(layer: nn.Module, call: Callable[..., Tensor], x: Tensor) -> Tensor:
            nonlocal left
            if left > 0 and (x.requires_grad or any(p.requires_grad for p in layer.parameters())):
                left -= 1
                return checkpoint(call, layer, x, compiled, use_reentrant=False)
            return call(layer, x, compiled)

        return run


class Encoder(nn.Module, ABC):
    """A speech encoder in two halves; task vectors are added at the seam between them.

    Valid frames do not depend on padding, in either half; padded frames of both results are zero.

    Args:
        stack: frames joined into one, in the second half.

    Attributes:
        feature_dim: F of the features at the seam.
        output_dim: C of the output.
        frame_shift: seconds between frames at the seam.
        output_frame_shift: seconds between frames of the output.
        highest_layer: number of the highest layer of the backbone that runs.
    """

    feature_dim: int
    output_dim: int

    def __init__(self, backbone: Backbone, stack: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.stack = stack
        self.frame_shift = backbone.frame_shift
        self.output_frame_shift = backbone.frame_shift * stack
        self.highest_layer = len(backbone.layers)

    @abstractmethod
    def extract(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tuple[Tensor, Tensor]:
        """First half: audio (N, S), lens (N,) samples -> features (N, T, F), lens (N,) frames.

        Audio is float32 at 16 kHz in [-1, 1]. ``chunks``: each frame sees only its chunk and the left context, as in
        streaming; None: full context (do not pass options of full context).

        Raises:
            UserError: an utterance is too short for one frame, or too long for the model.
        """

    @abstractmethod
    def contextualise(
        self, features: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None, registers: int = 0
    ) -> Tuple[Tensor, Tensor]:
        """Second half: features (N, T, F), lens (N,) -> output (N, ceil(T / stack), C), lens (N,).

        ``features`` is not changed; its padded frames may have any value. ``chunks``: see `extract`. ``registers``:
        number of register frames among the frames, which belong to the first chunk (`ChunkGrid`).
        """

    def grid(self, chunks: ChunkOptions) -> ChunkGrid:
        """The chunks at the seam; UserError if a chunk is no whole number of frames, or the encoder takes no chunks."""
        return self.backbone.grid(chunks, self.stack)

    def lookahead_ms(self, chunks: ChunkOptions) -> float:
        """How far a frame can see beyond the end of its chunk, in whole chunks; 0 if ``chunks.strict``."""
        return 1000 * self.backbone.lookahead(self.grid(chunks), self.highest_layer) * self.frame_shift

    def feature_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames at the seam."""
        return self.backbone.frame_lens(lens)

    def output_lens(self, feature_lens: Tensor) -> Tensor:
        """Frames at the seam -> frames of the output, ceil(frames / stack)."""
        return stacked_lens(feature_lens, self.stack)

    def layer_stacks(self) -> List[Tuple[TrainedLayers, int]]:
        """The trained stacks of layers, and the number of layers in each; lowest stack first."""
        return [(self.backbone.trained_layers, self.highest_layer)]

    @property
    def trained_depth(self) -> int:
        """The number of layers in `layer_stacks`."""
        return sum(size for _, size in self.layer_stacks())

    def recompute(self, count: int) -> None:
        """Recompute the lowest ``count`` trained layers in the backward pass instead of keeping their activations."""
        for stack, size in self.layer_stacks():
            stack.recomputed = min(count, size)
            count -= stack.recomputed

    def compile_layers(self, compiled: Optional[Callable[..., Any]]) -> None:
        """Run the trained layers compiled (`losses.devices.compiled_layer`) in training; None: not compiled."""
        for stack, _ in self.layer_stacks():
            stack.compiled = compiled

    def frozen_prefixes(self) -> Tuple[str, ...]:
        """Prefixes of the ``state_dict`` keys that training never changes; checkpoints leave them out."""
        return ()

    def unread_prefixes(self) -> Tuple[str, ...]:
        """Prefixes of the ``state_dict`` keys of unused weights, which older versions saved."""
        return ()

    def forward(self, audio: Tensor, lens: Tensor) -> Tuple[Tensor, Tensor]:
        """Both halves: audio (N, S), lens (N,) -> output (N, T', C), lens (N,)."""
        return self.contextualise(*self.extract(audio, lens))


class Backbone(nn.Module, ABC):
    """A pretrained encoder of one family in two parts: ``embed`` (audio -> frames) and ``transform`` (layers).

    It runs the modules of transformers but not its forward, which zeroes padded input frames in place, applies
    SpecAugment (done at the seam here) and layerdrop (breaks DDP) in training, ignores the lengths for group-norm
    models, and requires 30 s for Whisper.
    """

    encoder: Any
    hidden_size: int
    frame_shift: float
    hop: int  # samples from one frame to the next
    receptive: int  # frame t of `embed` sees no sample from hop * t + receptive on
    norm_name: str = ""  # of the norm after the highest layer, in ``encoder``; empty if there is none
    streams: bool = False  # whether `decoding.streaming` can run it chunk by chunk, with state kept between them
    exports: bool = True  # whether `onnx` can export it
    max_samples: Optional[int] = None  # of an utterance in full context
    own_chunks: Optional[ChunkGrid] = None  # what frames see without chunk options; None: all frames

    def __init__(self) -> None:
        super().__init__()
        self.trained_layers = TrainedLayers()

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers; a property, so that the state dict does not contain their weights twice."""
        return self.encoder.layers

    @abstractmethod
    def embed(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tensor:
        """Audio (N, S), lens (N,) samples -> transformer input (N, T, hidden_size), zero on padding.

        With ``chunks``, statistics cover the audio up to the end of a frame's chunk.
        """

    @abstractmethod
    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames."""

    def grid(self, chunks: ChunkOptions, stack: int = 1) -> ChunkGrid:
        """The chunks; see `chunk_grid`."""
        return chunk_grid(chunks, self.hop, self.receptive, stack)

    def transform(
        self, x: Tensor, lens: Tensor, wanted: Sequence[int] = (-1,), grid: Optional[ChunkGrid] = None
    ) -> List[Tensor]:
        """Frames (N, T, hidden_size), lens (N,) -> the wanted hidden states, each (N, T, hidden_size).

        ``wanted``: numbers as in ``EncoderConfig.layers``. ``grid``: the chunks; None for full context.
        """
        x = self.add_positions(zero_padding(x, lens), lens, grid)
        return self.run_layers(x, wanted, self.layer_arguments(x, lens, grid))

    @abstractmethod
    def add_positions(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Tensor:
        """Frames (N, T, hidden_size), zero on padding, lens (N,) -> input of the lowest layer, of the same shape."""

    def lookahead(self, grid: ChunkGrid, layers: int) -> int:
        """Frames after the end of its chunk that a frame can see at the output of layer ``layers``, in whole chunks.

        Attention stops at the end of the chunk; convolutions do so only if ``grid.strict``.
        """
        return 0 if grid.strict else grid.rounded_up(self.right_frames())

    def right_frames(self) -> int:
        """The number of frames after a frame that the positional convolution sees."""
        return 0

    @abstractmethod
    def freeze_embedding(self) -> None:
        """Stop training the convolutions of ``embed``."""

    def position_modules(self) -> List[nn.Module]:
        """The modules with parameters before the lowest transformer layer in ``transform``."""
        return []

    @property
    def final_norm(self) -> Optional[nn.Module]:
        """The norm after the highest layer, if the model has one."""
        return getattr(self.encoder, self.norm_name) if self.norm_name else None

    @property
    def shardable_layers(self) -> List[nn.Module]:
        """The layers whose parameters are read only by their own forward; FSDP gathers each of them separately."""
        return list(self.layers)

    def freeze_layers(self, count: int) -> None:
        """Stop training the position embedding and the lowest ``count`` layers; -1: all, and the final norm."""
        if count == 0:
            return
        frozen = self.position_modules() + list(self.layers if count == -1 else self.layers[:count])
        if count == -1 and self.final_norm is not None:
            frozen.append(self.final_norm)
        for module in frozen:
            module.requires_grad_(False)

    def layer_arguments(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Dict[str, Any]:
        """Keyword arguments of every layer, for x (N, T, C) with ``lens`` (N,) valid frames."""
        return {"attention_mask": attention_bias(lens, x.shape[1], x.device, seen_frames(x.shape[1], grid, x.device))}

    def arguments_of(self, number: int, arguments: Dict[str, Any]) -> Dict[str, Any]:
        """The keyword arguments of the layer with index ``number``, from the result of `layer_arguments`."""
        return arguments

    def highest(self, wanted: Sequence[int]) -> int:
        """The number of the highest layer that the ``wanted`` hidden states need (see ``EncoderConfig.layers``)."""
        return len(self.layers) if -1 in wanted else max(wanted)

    def upper(self, first: int, wanted: Sequence[int]) -> List[nn.Module]:
        """The layers above hidden state ``first`` that the ``wanted`` ones need, and the final norm if they need it."""
        norm = [self.final_norm] if -1 in wanted and self.final_norm is not None else []
        return [*self.layers[first : self.highest(wanted)], *norm]

    def run_layers(self, x: Tensor, wanted: Sequence[int], arguments: Dict[str, Any], first: int = 0) -> List[Tensor]:
        """Run the layers up to the highest wanted one on x (N, T, C), each with the keyword ``arguments``.

        ``first``: number of the hidden state x; only the layers above it run.
        """

        def call(own: Dict[str, Any], layer: nn.Module, x: Tensor, compiled: Optional[Callable[..., Any]]) -> Tensor:
            return transformer_layer(layer, x, own, compiled)

        kept, run = {first: x}, self.trained_layers.runner(self.training)
        for number, layer in enumerate(self.layers[first : self.highest(wanted)], start=first + 1):
            x = kept[number] = run(layer, partial(call, self.arguments_of(number - 1, arguments)), x)
        if -1 in wanted:
            kept[-1] = x if self.final_norm is None else self.final_norm(x)
        return [kept[number] for number in wanted]

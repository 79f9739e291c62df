"""The wav2vec2 family: wav2vec2 (XLSR, XLS-R, MMS), HuBERT, UniSpeech(-SAT), data2vec, and WavLM."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.losses.devices import autocast_dtype, in_exact_type, triton_kernels, without_unused_frames
from tokenverse_pp.models.encoders.base import Backbone, check_length, is_padded, length_mask, zero_padding
from tokenverse_pp.models.encoders.chunks import (
    ChunkGrid,
    chunk_grid,
    chunked_convolution,
    from_chunks,
    in_chunks,
    running_moments,
    sides,
)


def normalise_audio(audio: Tensor, lens: Tensor) -> Tensor:
    """Normalise the valid samples of each row to zero mean and unit variance, (N, S) -> (N, S); padding is zero.

    The same as ``do_normalize`` of ``transformers.Wav2Vec2FeatureExtractor``.
    """
    mask = length_mask(lens, audio.shape[1], audio.device)
    count = lens.unsqueeze(1).to(audio.device, audio.dtype, non_blocking=True)
    centred = (audio - audio.masked_fill(~mask, 0.0).sum(1, keepdim=True) / count).masked_fill(~mask, 0.0)
    return centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()


def normalise_running(x: Tensor, lens: Tensor, grid: ChunkGrid, eps: float) -> Tensor:
    """Normalise channels by mean and variance up to the end of a frame's chunk, (N, C, T); padding is zero."""
    mask = length_mask(lens, x.shape[2], x.device).unsqueeze(1)
    chunks = in_chunks(x.masked_fill(~mask, 0.0), grid)
    mean, scale = running_moments(chunks, lens, grid).mean_and_scale(eps)
    normalised = (chunks - mean.unsqueeze(-1)) * scale.unsqueeze(-1)
    return from_chunks(normalised, x.shape[2], grid).masked_fill(~mask, 0.0)


def masked_group_norm(x: Tensor, lens: Tensor, norm: nn.GroupNorm, grid: Optional[ChunkGrid]) -> Tensor:
    """Apply a GroupNorm of one channel per group to x (N, C, T), with statistics over the valid frames only.

    ``grid``: the chunks; the statistics are then those up to the end of a frame's chunk.
    """
    if grid is not None:
        y = normalise_running(x.float(), lens, grid, norm.eps)
        return (y * norm.weight.view(1, -1, 1) + norm.bias.view(1, -1, 1)).to(x.dtype)
    mask = length_mask(lens, x.shape[2], x.device).unsqueeze(1)
    count = lens.view(-1, 1, 1).to(x.device, torch.float32, non_blocking=True)
    x32 = x.float()
    mean = x32.masked_fill(~mask, 0.0).sum(2, keepdim=True) / count
    centred = x32 - mean
    variance = centred.masked_fill(~mask, 0.0).square().sum(2, keepdim=True) / count
    scale = norm.weight.view(1, -1, 1) * (variance + norm.eps).rsqrt()
    return (centred * scale + norm.bias.view(1, -1, 1)).to(x.dtype)


def time_major_convolution(conv: nn.Conv1d, x: Tensor, dtype: torch.dtype) -> Tensor:
    """An unpadded convolution of x (N, T, C) by matrix products -> (N, T', C'), both in ``dtype``.

    Each run of ``stride`` taps is one product over a view of x in which no number occurs twice. cuDNN would have to
    transpose time-major tensors before and after it.
    """
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    n, length, channels = x.shape
    frames = (length - kernel) // stride + 1
    weight = conv.weight.to(dtype).permute(2, 1, 0)  # (taps, C, C')
    x = x.to(dtype)
    if channels == 1:  # rows of a few samples would be too short for tensor cores
        pad = 7 - kernel % 8  # and one row for the bias, to avoid another pass over the largest tensor
        bias = weight.new_zeros(1, conv.out_channels) if conv.bias is None else conv.bias.to(dtype)[None]
        rows = F.pad(F.pad(x[:, :, 0].unfold(1, kernel, stride), (0, 1), value=1.0), (0, pad))
        return rows @ F.pad(torch.cat([weight[:, 0], bias]), (0, 0, 0, pad))
    x = x.contiguous()
    out = x.new_zeros(()) if conv.bias is None else conv.bias.to(dtype)
    out = out.expand(n, frames, conv.out_channels)
    for tap in range(0, kernel, stride):
        taps = weight[tap : tap + stride].flatten(0, 1)
        rows = x.as_strided((n, frames, len(taps)), (length * channels, stride * channels, 1), tap * channels)
        out = torch.baddbmm(out, rows, taps.expand(n, -1, -1))
    return out


class Wav2Vec2Backbone(Backbone):
    """``Wav2Vec2Model`` or ``HubertModel``: convolutions, projection | positional convolution, layers.

    Group-norm models (wav2vec2-base, hubert-base) were trained with statistics that include padding; here they
    are computed per utterance, so that its result is the same in every batch.
    """

    convolutions: Any
    streams = True

    def __init__(self, model: Any, normalise: bool = True) -> None:
        super().__init__()
        if getattr(model, "adapter", None) is not None:
            raise UserError("encoder.name: wav2vec2 models with a downsampling adapter (add_adapter) are not supported")
        config = model.config
        self.convolutions = model.feature_extractor.conv_layers
        self.projection = model.feature_projection
        self.encoder = model.encoder
        self.normalise = normalise
        self.hidden_size = config.hidden_size
        self.kernels, self.strides = list(config.conv_kernel), list(config.conv_stride)
        # With "stable layer norm" the encoder's norm follows the layers, else it precedes them.
        self.norm_name = "layer_norm" if getattr(config, "do_stable_layer_norm", False) else ""
        self.hop, self.receptive = self.front_sizes(len(self.kernels))
        self.frame_shift = self.hop / SAMPLE_RATE

    def right_frames(self) -> int:
        """See Backbone."""
        return sides(self.encoder.pos_conv_embed.conv)[1]

    def conv_lens(self, lens: Tensor, num_layers: int) -> Tensor:
        """Samples -> frames after the first ``num_layers`` convolutions, never negative."""
        for kernel, stride in zip(self.kernels[:num_layers], self.strides[:num_layers]):
            lens = torch.div(lens - kernel, stride, rounding_mode="floor") + 1
        return lens.clamp(min=0)

    def front_sizes(self, num_layers: int) -> Tuple[int, int]:
        """Hop and receptive field, in samples, of frames after the first ``num_layers`` convolutions."""
        hop, receptive = 1, 1
        for kernel, stride in zip(self.kernels[:num_layers], self.strides[:num_layers]):
            receptive += (kernel - 1) * hop
            hop *= stride
        return hop, receptive

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames (20 ms apart for the pretrained models)."""
        return self.conv_lens(lens, len(self.kernels))

    def grid(self, chunks: ChunkOptions, stack: int = 1) -> ChunkGrid:
        """See Backbone."""
        if getattr(getattr(self.encoder, "pos_conv_embed", None), "batch_norm", None) is not None:
            raise UserError("--chunk-ms: HuBERT models with conv_pos_batch_norm cannot be run in chunks")
        return super().grid(chunks, stack)

    def embed(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tensor:
        """See Backbone: the output of the feature projection."""
        frame_lens = self.frame_lens(lens)
        check_length(lens, frame_lens)
        audio = audio.float()
        if self.normalise and chunks is not None:
            audio = normalise_running(audio.unsqueeze(1), lens, ChunkGrid(chunks.chunk_samples, 0), 1e-7).squeeze(1)
        elif self.normalise:
            audio = normalise_audio(audio, lens)
        else:
            audio = audio.masked_fill(~length_mask(lens, audio.shape[1], audio.device), 0.0)
        x = self.project(self._convolve(audio, lens, chunks))
        return zero_padding(x, frame_lens)

    def project(self, x: Tensor) -> Tensor:
        """Output of the convolutions (N, C, T) -> (N, T, hidden_size)."""
        x = self.projection(x.transpose(1, 2))
        return x[0] if isinstance(x, tuple) else x  # wav2vec2 returns the unprojected frames as well

    def _convolve(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions]) -> Tensor:
        """Audio (N, S) -> (N, C, T). No convolution pads, so only the group norm could let padding in."""
        x = audio.unsqueeze(1)
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.convolutions.parameters())
        for number, layer in enumerate(self.convolutions):
            grouped = isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm)
            if x.is_cuda and not trained and not grouped:
                return self._convolve_time_major(x.transpose(1, 2), number).transpose(1, 2)
            x = without_unused_frames(layer.conv, x)
            if grouped:
                grid = None if chunks is None else chunk_grid(chunks, *self.front_sizes(1))
                x = layer.activation(masked_group_norm(layer.conv(x), self.conv_lens(lens, 1), layer.layer_norm, grid))
            else:
                x = layer(x)
        return x

    @torch.no_grad()
    def _convolve_time_major(self, x: Tensor, first: int) -> Tensor:
        """The convolutions from index ``first`` on, without gradients, in autocast's type, (N, T, C) -> (N, T', C')."""
        dtype = autocast_dtype(x)
        with torch.autocast(x.device.type, enabled=False):  # it would run norms in float32 and move data twice
            for layer in self.convolutions[first:]:
                x, norm = time_major_convolution(layer.conv, x, dtype), getattr(layer, "layer_norm", None)
                if norm is not None:
                    x = F.layer_norm(x, norm.normalized_shape, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)
                x = layer.activation(x)
        return x

    def add_positions(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Tensor:
        """See Backbone: the positional convolution, and the norm and dropout after it.

        In strict chunks, its right context is cut at the end of the chunk.
        """
        embed = self.encoder.pos_conv_embed
        if grid is not None and grid.strict:
            return self.after_positions(x, embed.activation(chunked_convolution(embed.conv, x, grid)))
        if self._has_kernel(x):
            from tokenverse_pp.models.encoders.grouped_convolution import grouped_convolution  # needs Triton

            return self.after_positions(x, embed.activation(grouped_convolution(x, embed.conv, autocast_dtype(x))))
        return self.after_positions(x, in_exact_type(embed.conv, embed, x))

    def _has_kernel(self, x: Tensor) -> bool:
        """Whether the positional convolution of x is computed by `grouped_convolution`."""
        embed = self.encoder.pos_conv_embed
        plain = getattr(embed, "batch_norm", None) is None and embed.conv.padding[0] == embed.conv.kernel_size[0] // 2
        half = x.is_cuda and autocast_dtype(x) in (torch.bfloat16, torch.float16)
        return plain and half and triton_kernels(x) is not None

    def after_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        """Frames and the positional convolution's output, both (N, T, C) -> input of the lowest layer."""
        x = x + positions
        if self.final_norm is None:
            x = self.encoder.layer_norm(x)
        return self.encoder.dropout(x)

    def freeze_embedding(self) -> None:
        """Stop training the convolutions (the projection stays trainable)."""
        self.convolutions.requires_grad_(False)

    def position_modules(self) -> List[nn.Module]:
        """The positional convolution, and the norm after it in models that have one there."""
        modules = [self.encoder.pos_conv_embed]
        return modules if self.final_norm is not None else modules + [self.encoder.layer_norm]


class Data2VecBackbone(Wav2Vec2Backbone):
    """``Data2VecAudioModel``: like wav2vec2, but with several positional convolutions in sequence.

    In transformers, a convolution's output on padded frames enters the next one; here padded frames are always zero.
    """

    streams = False

    def __init__(self, model: Any, normalise: bool = True) -> None:
        super().__init__(model, normalise)
        self.norm_name = ""  # the norm precedes the layers

    def right_frames(self) -> int:
        """See Backbone: the right context of all convolutions."""
        return sum(sides(layer.conv)[1] for layer in self.encoder.pos_conv_embed.layers)

    def add_positions(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Tensor:
        """See Backbone: the positional convolutions, each with a norm, and the norm and dropout after them."""
        y = x
        for layer in self.encoder.pos_conv_embed.layers:
            if grid is not None and grid.strict:
                y = chunked_convolution(layer.conv, y, grid)
            else:
                y = in_exact_type(layer.conv, nn.Sequential(layer.conv, layer.padding), y.transpose(1, 2))
                y = y.transpose(1, 2)
            y = zero_padding(layer.activation(layer.layer_norm(y)), lens)
        return self.after_positions(x, y)


class WavLMBackbone(Wav2Vec2Backbone):
    """``WavLMModel``: every layer gates the relative position bias from the lowest layer's table."""

    streams = exports = False

    def grid(self, chunks: ChunkOptions, stack: int = 1) -> ChunkGrid:
        """Raise UserError: WavLM's attention takes no chunk mask besides its gated position bias."""
        raise UserError("--chunk-ms: WavLM cannot be run in chunks; use a wav2vec2, HuBERT or Whisper model")

    @property
    def shardable_layers(self) -> List[nn.Module]:
        """All but the lowest layer, whose table `layer_arguments` reads."""
        return list(self.layers)[1:]

    def layer_arguments(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Dict[str, Any]:
        """Bias (N * heads, T, T), the same for all layers; WavLM takes the mask (N, T) itself."""
        n, t = x.shape[:2]
        first: Any = self.layers[0]
        bias = first.attention.compute_bias(t, t)
        bias = bias.unsqueeze(0).expand(n, -1, -1, -1).reshape(-1, t, t)
        return {"position_bias": bias, "attention_mask": length_mask(lens, t, x.device) if is_padded(lens, t) else None}

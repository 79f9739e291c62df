"""Conformer layers of transformers in padded batches and in chunks.

The modules are those of transformers; its forward lets padded frames into the convolutions of some families and does
not support chunks. Batch norms keep the checkpoint's statistics, also in training (their gain and bias are trained):
batch statistics would depend on padding.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.encoders.base import (
    Backbone,
    attention_bias,
    check_length,
    is_padded,
    length_mask,
    seen_frames,
    zero_padding,
)
from tokenverse_pp.models.encoders.chunks import ChunkGrid, chunked_convolution, sides
from tokenverse_pp.models.encoders.fbank import KaldiFbank
from tokenverse_pp.models.encoders.wav2vec2 import Wav2Vec2Backbone


def visible_keys(lens: Tensor, size: int, device: torch.device, seen: Optional[Tensor] = None) -> Optional[Tensor]:
    """The keys that each frame sees, (N, 1, T, T) bool, for lens (N,), T = size and ``seen`` (T, T) bool; None: all.

    Padded frames see all valid frames, as the softmax of an empty row would be NaN.
    """
    if seen is None and not is_padded(lens, size):
        return None
    valid = length_mask(lens, size, device)
    keys = valid[:, None, None, :].expand(-1, 1, size, -1)
    return keys if seen is None else keys & (seen | ~valid[:, None, :, None])


class ConformerLayer(nn.Module):
    """A layer of transformers, whose modules keep their names."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, child in block.named_children():
            setattr(self, name, child)

    @staticmethod
    def convolve(conv: Any, norm: Any, x: Tensor, mask: Optional[Tensor], grid: Optional[ChunkGrid]) -> Tensor:
        """The convolution module after its first norm, (N, T, C) -> (N, T, C).

        Args:
            conv: transformers' module, with a centred or causal depthwise convolution.
            norm: the norm after the depthwise convolution.
            x: normalised frames.
            mask: (N, T), true on valid frames; None: all frames are valid.
            grid: the chunks; a centred convolution is cut at their ends if they are strict.
        """
        x = F.glu(conv.pointwise_conv1(x.transpose(1, 2)), dim=1)
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(1), 0.0)
        depthwise = conv.depthwise_conv
        if is_causal(depthwise):
            x = F.pad(x, (depthwise.kernel_size[0] - 1, 0))
            x = F.conv1d(x, depthwise.weight, depthwise.bias, groups=depthwise.groups)
        elif grid is not None and grid.strict:
            x = chunked_convolution(depthwise, x.transpose(1, 2), grid).transpose(1, 2)
        else:
            x = depthwise(x)
        if isinstance(norm, nn.BatchNorm1d):
            x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
        else:
            x = norm(x.transpose(1, 2)).transpose(1, 2)
        return conv.pointwise_conv2(conv.activation(x)).transpose(1, 2)


def is_causal(depthwise: nn.Conv1d) -> bool:
    """Whether a layer's depthwise convolution is causal; transformers then pads before it, not in it."""
    return depthwise.padding[0] == 0


class ConformerBackbone(Backbone):
    """A backbone of conformer layers."""

    def lookahead(self, grid: ChunkGrid, layers: int) -> int:
        """See Backbone: a layer that sees one frame of the next chunk sees all of it, by attention below it."""
        found: List[Any] = [] if grid.strict else list(self.layers[:layers])
        modules = [layer.conv if hasattr(layer, "conv") else layer.conv_module for layer in found]
        convolutions = [module.depthwise_conv for module in modules]
        return sum(grid.rounded_up(sides(conv)[1]) for conv in convolutions if not is_causal(conv))


class SelfSupervisedLayer(ConformerLayer):
    """A layer of ``Wav2Vec2ConformerModel`` or ``Wav2Vec2BertModel``."""

    def forward(
        self,
        x: Tensor,
        bias: Optional[Tensor],
        positions: Optional[Tensor],
        mask: Optional[Tensor],
        grid: Optional[ChunkGrid],
    ) -> Tensor:
        """X (N, T, C), additive bias (N, 1, T, T), output of ``embed_positions``, mask (N, T) -> (N, T, C)."""
        modules: Any = self
        x = modules.ffn1(modules.ffn1_layer_norm(x)) * 0.5 + x
        attention = {"attention_mask": bias, "relative_position_embeddings": positions}
        x = modules.self_attn_dropout(modules.self_attn(modules.self_attn_layer_norm(x), **attention)[0]) + x
        conv = modules.conv_module
        norm = conv.batch_norm if hasattr(conv, "batch_norm") else conv.depthwise_layer_norm
        x = x + conv.dropout(self.convolve(conv, norm, conv.layer_norm(x), mask, grid))
        x = modules.ffn2(modules.ffn2_layer_norm(x)) * 0.5 + x
        return modules.final_layer_norm(x)


class SelfSupervisedConformer(ConformerBackbone):
    """Base of ``Wav2Vec2ConformerModel`` and ``Wav2Vec2BertModel``: relative positions in every layer."""

    def add_positions(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Tensor:
        """See Backbone: applies dropout only."""
        return self.encoder.dropout(x)

    def layer_arguments(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Dict[str, Any]:
        """See Backbone."""
        size, positions = x.shape[1], None
        if self.encoder.embed_positions is not None:
            # Clear the cached rotary positions of the last length, which may have been made in another mode.
            self.encoder.embed_positions.cached_sequence_length = None
            positions = self.encoder.embed_positions(x)
        return {
            "bias": attention_bias(lens, size, x.device, seen_frames(size, grid, x.device)),
            "positions": positions,
            "mask": length_mask(lens, size, x.device) if is_padded(lens, size) else None,
            "grid": grid,
        }

    def position_modules(self) -> List[nn.Module]:
        """See Backbone: no modules."""
        return []


class Wav2Vec2ConformerBackbone(SelfSupervisedConformer, Wav2Vec2Backbone):
    """``Wav2Vec2ConformerModel``: wav2vec2's convolutions on raw audio | conformer layers, final norm."""

    streams = False

    def __init__(self, model: Any, normalise: bool = True) -> None:
        model.encoder.layers = nn.ModuleList(SelfSupervisedLayer(layer) for layer in model.encoder.layers)
        if hasattr(model.encoder, "pos_conv_embed"):
            del model.encoder.pos_conv_embed  # transformers does not run it either
        super().__init__(model, normalise)
        self.norm_name = "layer_norm"


class Wav2Vec2BertBackbone(SelfSupervisedConformer):
    """``Wav2Vec2BertModel`` (w2v-BERT 2.0): filter bank, projection | conformer layers with causal convolutions."""

    hop = 320
    receptive = 560  # frame t joins the filter bank's 2t and 2t + 1, which sees 400 samples from 160 (2t + 1) on
    frame_shift = hop / SAMPLE_RATE

    def __init__(self, model: Any, normalise: bool = True) -> None:
        super().__init__()
        if getattr(model, "adapter", None) is not None or getattr(model, "intermediate_ffn", None) is not None:
            raise UserError("encoder.name: w2v-BERT models with a downsampling adapter (add_adapter) are not supported")
        self.fbank = KaldiFbank(model.config.feature_projection_input_dim // 2)
        self.projection = model.feature_projection
        self.encoder = model.encoder
        self.encoder.layers = nn.ModuleList(SelfSupervisedLayer(layer) for layer in self.encoder.layers)
        self.hidden_size = model.config.hidden_size

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames of 20 ms."""
        return torch.div(self.fbank.frame_lens(lens), 2, rounding_mode="floor")

    def embed(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tensor:
        """See Backbone: the output of the feature projection."""
        check_length(lens, self.frame_lens(lens))
        fbank, frames = self.fbank(audio, lens, chunks)
        return zero_padding(self.projection(fbank)[0], frames)

    def freeze_embedding(self) -> None:
        """Do nothing: there are no convolutions before the layers (the projection stays trainable)."""

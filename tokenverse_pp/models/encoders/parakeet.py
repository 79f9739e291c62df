"""NVIDIA's FastConformer: Parakeet (CTC, RNN-T, TDT) and Nemotron, whose convolutions are causal."""

from __future__ import annotations

from typing import Any, Dict, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.encoders.base import check_length, length_mask, seen_frames, stacked_lens, zero_padding
from tokenverse_pp.models.encoders.chunks import ChunkGrid, chunk_mask
from tokenverse_pp.models.encoders.conformer import ConformerBackbone, ConformerLayer, visible_keys
from tokenverse_pp.models.encoders.fbank import HOP, WINDOW, NemoMel


class FastConformerLayer(ConformerLayer):
    """A layer of ``ParakeetEncoder`` or ``NemotronAsrStreamingEncoder``."""

    def forward(
        self, x: Tensor, seen: Optional[Tensor], positions: Tensor, mask: Tensor, grid: Optional[ChunkGrid]
    ) -> Tensor:
        """X (N, T, C), keys seen (N, 1, T, T), positions (N, 2T - 1, C), valid frames (N, T) -> (N, T, C)."""
        modules: Any = self
        x = x + 0.5 * modules.feed_forward1(modules.norm_feed_forward1(x))
        attention = {"attention_mask": seen, "position_embeddings": positions}
        x = x + modules.self_attn(modules.norm_self_att(x), **attention)[0]
        x = x + self.convolve(modules.conv, modules.conv.norm, modules.norm_conv(x), mask, grid)
        x = x + 0.5 * modules.feed_forward2(modules.norm_feed_forward2(x))
        return modules.norm_out(x)


class ParakeetBackbone(ConformerBackbone):
    """``ParakeetEncoder``: mel, strided convolutions and a projection | scale, conformer layers.

    Frames of 80 ms. The seam is before the factor sqrt(hidden_size) of models with ``scale_input``.
    """

    normalises_bins = True
    # The strided convolutions see mel frames 8t - 7 to 8t + 7, and mel frame m samples 160 m - 200 to 160 m + 199.
    mel_right = 7

    def __init__(self, encoder: Any, extractor: Any) -> None:
        super().__init__()
        config = encoder.config
        self.mel = NemoMel(extractor, self.normalises_bins)
        self.subsampling, self.encode_positions = encoder.subsampling, encoder.encode_positions
        self.encoder_layers = nn.ModuleList(FastConformerLayer(layer) for layer in encoder.layers)
        self.hidden_size, self.factor = config.hidden_size, config.subsampling_factor
        sizes = (config.subsampling_conv_kernel_size, config.subsampling_conv_stride, self.factor)
        if sizes != (3, 2, 8):
            raise UserError(
                f"encoder.name: its convolutions have kernel, stride and factor {sizes}, expected (3, 2, 8)"
            )
        self.input_scale, self.dropout = float(encoder.input_scale), float(config.dropout)
        self.hop = HOP * self.factor
        self.frame_shift = self.hop / SAMPLE_RATE
        self.receptive = HOP * self.mel_right + WINDOW // 2

    @property
    def layers(self) -> nn.ModuleList:
        """The conformer layers."""
        return self.encoder_layers

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames of 80 ms; 0 for an utterance without a frame of 10 ms."""
        return stacked_lens(self.mel.frame_lens(lens), self.factor)

    def embed(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tensor:
        """See Backbone: the output of the strided convolutions and the projection."""
        frame_lens = self.frame_lens(lens)
        check_length(lens, frame_lens)
        mel, mel_lens = self.mel(audio, lens, chunks)
        return zero_padding(self.subsampling(mel, length_mask(mel_lens, mel.shape[1], mel.device)), frame_lens)

    def add_positions(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Tensor:
        """See Backbone: applies the factor and dropout; positions are relative, in every layer."""
        return F.dropout(x * self.input_scale, p=self.dropout, training=self.training)

    def seen(self, size: int, grid: Optional[ChunkGrid], device: torch.device) -> Optional[Tensor]:
        """The frames that each frame sees, (T, T) bool; None: all."""
        return seen_frames(size, grid, device)

    def layer_arguments(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Dict[str, Any]:
        """See Backbone."""
        size = x.shape[1]
        return {
            "seen": visible_keys(lens, size, x.device, self.seen(size, grid, x.device)),
            "positions": self.encode_positions(x[:1]).expand(x.shape[0], -1, -1),
            "mask": length_mask(lens, size, x.device),
            "grid": grid,
        }

    def freeze_embedding(self) -> None:
        """Stop training the strided convolutions (the projection stays trainable)."""
        self.subsampling.requires_grad_(False)
        self.subsampling.linear.requires_grad_(True)


class NemotronBackbone(ParakeetBackbone):
    """``NemotronAsrStreamingEncoder``: all convolutions are causal, and attention sees chunks.

    Without ``--chunk-ms`` it runs in the checkpoint's chunks: ``default_num_lookahead_tokens + 1`` frames, with left
    context of ``sliding_window - 1`` frames (1.12 s and 5.6 s). It was not trained with full context.
    """

    normalises_bins = False
    mel_right = 0
    own_chunks: ChunkGrid

    def __init__(self, encoder: Any, extractor: Any) -> None:
        super().__init__(encoder, extractor)
        chunk = encoder.config.default_num_lookahead_tokens + 1
        self.own_chunks = ChunkGrid(chunk, 0, (encoder.config.sliding_window - 1) // chunk)
        self.longest = int(encoder.config.max_position_embeddings)

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames of 80 ms; 0 for an utterance without a frame of 10 ms."""
        mel = self.mel.frame_lens(lens)
        lens = mel
        for _ in range(3):
            lens = torch.div(lens, 2, rounding_mode="floor") + 1
        return lens * (mel > 0)

    def embed(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tensor:
        """See Backbone."""
        if int(self.frame_lens(lens).max()) > self.longest:
            limit = self.longest * self.frame_shift
            raise UserError(
                f"an utterance has {int(lens.max()) / SAMPLE_RATE:.2f} s: Nemotron takes {limit:g} s at most"
            )
        return super().embed(audio, lens, chunks)

    def seen(self, size: int, grid: Optional[ChunkGrid], device: torch.device) -> Optional[Tensor]:
        """See ParakeetBackbone."""
        return chunk_mask(size, self.own_chunks if grid is None else grid, device)

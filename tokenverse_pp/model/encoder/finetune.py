"""A pretrained encoder whose own two halves are trained."""

from __future__ import annotations

from typing import Optional, Tuple

from torch import Tensor

from tokenverse_pp.model.encoder.base import Backbone, Encoder
from tokenverse_pp.model.encoder.config import EncoderConfig
from tokenverse_pp.model.encoder.lora import add_lora
from tokenverse_pp.model.encoder.masking import length_mask, stack_frames, zero_padding
from tokenverse_pp.model.masks import ChunkOptions


class FinetuneEncoder(Encoder):
    """First half: convolutions and feature projection. Second half: the transformer, then frame stacking.

    Nothing follows the stacking: with ``stack=2`` the output has twice the transformer's width. The
    pretrained model's dropouts act in training mode, in the first half too; its SpecAugment and layerdrop
    never do.
    """

    def __init__(self, backbone: Backbone, config: EncoderConfig) -> None:
        super().__init__(backbone, config.stack)
        self.feature_dim = backbone.hidden_size
        self.output_dim = backbone.hidden_size * config.stack
        backbone.gradient_checkpointing = config.gradient_checkpointing
        if config.freeze_feature_encoder:
            backbone.freeze_embedding()
        backbone.freeze_layers(config.freeze_layers)
        if config.lora_rank:
            add_lora(backbone, config)

    def extract(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tuple[Tensor, Tensor]:
        """See Encoder; what enters the transformer."""
        return self.backbone.embed(audio, lens, chunks), self.feature_lens(lens)

    def contextualise(
        self, features: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None
    ) -> Tuple[Tensor, Tensor]:
        """See Encoder; the transformer's output after its final norm, frames stacked last."""
        (x,) = self.backbone.transform(features, lens, grid=None if chunks is None else self.grid(chunks))
        return stack_frames(zero_padding(x, length_mask(lens, x.shape[1])), lens, self.stack)

    def lookahead_ms(self, chunks: ChunkOptions) -> float:
        """See Encoder; the right side of wav2vec2's positional convolution."""
        if chunks.strict:
            return 0.0
        return 1000 * self.grid(chunks).rounded_up(self.backbone.right_frames) * self.frame_shift

"""A frozen pretrained encoder with a small trainable network behind it."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor

from tokenverse_pp.model.encoder.base import Backbone, Encoder
from tokenverse_pp.model.encoder.config import EncoderConfig
from tokenverse_pp.model.encoder.context import context_lookahead_ms, context_network, joined_states
from tokenverse_pp.model.encoder.masking import length_mask, stack_frames, zero_padding
from tokenverse_pp.model.masks import ChunkOptions


class FrozenEncoder(Encoder):
    """First half: a whole pretrained encoder, never trained. Second half: stacking and a context network.

    The first half always runs in eval mode without gradients: its features can be computed once and stored.
    Its weights come from ``EncoderConfig.name``: ``frozen_prefixes`` keeps them out of checkpoints.
    """

    def __init__(self, backbone: Backbone, config: EncoderConfig) -> None:
        super().__init__(backbone, config.stack)
        backbone.requires_grad_(False).eval()
        self.layers = tuple(config.layers)
        self.highest_layer = backbone.highest(self.layers)
        self.feature_dim = backbone.hidden_size * len(self.layers)
        self.output_dim = config.context_dim
        self.context = context_network(config, self.feature_dim * config.stack)

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Set the mode of the context network; the pretrained encoder stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    @torch.no_grad()
    def extract(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tuple[Tensor, Tensor]:
        """See Encoder; the chosen hidden states, each normalised over its channels, (N, T, F) float32."""
        frame_lens = self.feature_lens(lens)
        grid = None if chunks is None else self.grid(chunks)
        states = self.backbone.transform(self.backbone.embed(audio, lens, chunks), frame_lens, self.layers, grid)
        features = joined_states(states)
        return zero_padding(features, length_mask(frame_lens, features.shape[1])), frame_lens

    def contextualise(
        self, features: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None
    ) -> Tuple[Tensor, Tensor]:
        """See Encoder; frames are stacked before the context network."""
        features = zero_padding(features, length_mask(lens, features.shape[1]))
        x, lens = stack_frames(features, lens, self.stack)
        return self.context(x, lens, None if chunks is None else self.grid(chunks).stacked(self.stack)), lens

    def lookahead_ms(self, chunks: ChunkOptions) -> float:
        """See Encoder; the right sides of the context network's convolutions and of the backbone's positional one."""
        return context_lookahead_ms(self.context, self.backbone, self.grid(chunks), self.stack)

    def frozen_prefixes(self) -> Tuple[str, ...]:
        """The pretrained encoder's weights."""
        return ("backbone.",)

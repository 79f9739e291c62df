"""A pretrained encoder that is cut between two of its layers: frozen below, trained above, a small network behind."""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn

from tokenverse_pp.model.encoder.base import Backbone, Encoder
from tokenverse_pp.model.encoder.config import EncoderConfig
from tokenverse_pp.model.encoder.context import context_lookahead_ms, context_network, joined_states
from tokenverse_pp.model.encoder.lora import add_lora
from tokenverse_pp.model.encoder.masking import length_mask, stack_frames, zero_padding
from tokenverse_pp.model.masks import ChunkOptions


class SplitEncoder(Encoder):
    """First half: the layers up to ``EncoderConfig.split_layer``, frozen. Second half: those above, a context network.

    Trained are the layers up to the highest one that ``EncoderConfig.layers`` names, and the final norm only with -1:
    nothing reads what lies above, and DDP does not take parameters without a gradient.

    Between `FinetuneEncoder` and `FrozenEncoder`: the features at the seam can be stored, as the frozen kind's can, and
    the upper layers are trained, as a whole or through adapters (``lora_rank``). The context network sees the hidden
    states ``EncoderConfig.layers``, each normalised over its channels, as it does in the frozen kind: a model of that
    kind with the same ``layers`` can be gone on from, and is the same function at the start.
    """

    def __init__(self, backbone: Backbone, config: EncoderConfig) -> None:
        super().__init__(backbone, config.stack)
        self.split_layer = config.split_layer
        self.layers = tuple(config.layers)
        self.feature_dim = backbone.hidden_size
        self.output_dim = config.context_dim
        backbone.gradient_checkpointing = config.gradient_checkpointing
        self.highest_layer = backbone.highest(self.layers)
        backbone.requires_grad_(False)
        if config.lora_rank:
            add_lora(backbone, config, self.split_layer, self.highest_layer)
        else:
            for module in self._upper():
                module.requires_grad_(True)
        self.context = context_network(config, backbone.hidden_size * len(self.layers) * config.stack)

    def _upper(self) -> List[nn.Module]:
        """The layers above the seam that run, and the final norm if it does."""
        upper: List[nn.Module] = list(self.backbone.layers[self.split_layer : self.highest_layer])
        if -1 in self.layers and self.backbone.final_norm is not None:
            upper.append(self.backbone.final_norm)
        return upper

    def train(self, mode: bool = True) -> SplitEncoder:
        """Set the mode of the second half; the frozen layers, position embedding and convolutions stay in eval mode."""
        super().train(mode)
        self.backbone.eval()
        for layer in self.backbone.layers[self.split_layer : self.highest_layer]:
            layer.train(mode)
        self.backbone.training = mode  # gradient checkpointing asks it
        return self

    @torch.no_grad()
    def extract(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tuple[Tensor, Tensor]:
        """See Encoder; the hidden state of ``split_layer`` as it is, (N, T, F) float32."""
        frame_lens = self.feature_lens(lens)
        mode, self.backbone.training = self.backbone.training, False  # no dropout below the seam
        grid = None if chunks is None else self.grid(chunks)
        (x,) = self.backbone.transform(self.backbone.embed(audio, lens, chunks), frame_lens, (self.split_layer,), grid)
        self.backbone.training = mode
        return zero_padding(x.float(), length_mask(frame_lens, x.shape[1])), frame_lens

    def contextualise(
        self, features: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None
    ) -> Tuple[Tensor, Tensor]:
        """See Encoder; the upper layers, the chosen hidden states, stacking, the context network."""
        mask = length_mask(lens, features.shape[1])
        features = zero_padding(features, mask)
        grid = None if chunks is None else self.grid(chunks)
        arguments = self.backbone.layer_arguments(features, mask, grid)
        states = self.backbone.run_layers(features, self.layers, arguments, first=self.split_layer)
        x, lens = stack_frames(zero_padding(joined_states(states), mask), lens, self.stack)
        return self.context(x, lens, None if grid is None else grid.stacked(self.stack)), lens

    def lookahead_ms(self, chunks: ChunkOptions) -> float:
        """See Encoder; the right sides of the context network's convolutions and of the backbone's positional one."""
        return context_lookahead_ms(self.context, self.backbone, self.grid(chunks), self.stack)

    def frozen_prefixes(self) -> Tuple[str, ...]:
        """The pretrained weights that training does not change: all but the upper layers, or all but the adapters."""
        trained = {name for name, parameter in self.backbone.named_parameters() if parameter.requires_grad}
        if not trained:  # adapters that have been merged: the upper layers are no longer the pretrained ones
            layers = self.backbone.layers[self.split_layer : self.highest_layer]
            upper = {id(p) for layer in layers for p in layer.parameters()}
            trained = {name for name, parameter in self.backbone.named_parameters() if id(parameter) in upper}
        return tuple(f"backbone.{name}" for name in self.backbone.state_dict() if name not in trained)

    def unread_prefixes(self) -> Tuple[str, ...]:
        """The layers above the highest wanted one, and the final norm without -1: they once counted as trained."""
        unread: List[nn.Module] = list(self.backbone.layers[self.highest_layer :])
        if -1 not in self.layers and self.backbone.final_norm is not None:
            unread.append(self.backbone.final_norm)
        ids = {id(module) for module in unread}
        return tuple(f"backbone.{name}." for name, module in self.backbone.named_modules() if id(module) in ids)

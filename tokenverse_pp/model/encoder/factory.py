"""From an EncoderConfig to an Encoder."""

from __future__ import annotations

from typing import Callable, Dict

from tokenverse_pp.model.encoder.base import Backbone, Encoder
from tokenverse_pp.model.encoder.config import EncoderConfig
from tokenverse_pp.model.encoder.finetune import FinetuneEncoder
from tokenverse_pp.model.encoder.frozen import FrozenEncoder
from tokenverse_pp.model.encoder.loading import load_backbone
from tokenverse_pp.model.encoder.split import SplitEncoder


def build_encoder(config: EncoderConfig, foreign: bool = False) -> Encoder:
    """Load the pretrained encoder and make both halves as ``config`` says.

    Args:
        config: the options.
        foreign: not the user but a model folder names the encoder (see `load_backbone`).

    Raises:
        UserError: an unknown name, folder or family, incomplete weights, or a value out of range.
    """
    backbone = load_backbone(config, foreign)
    config.validate(len(backbone.layers))
    # from_pretrained leaves its models in eval mode; train() is where every new module starts.
    kinds: Dict[str, Callable[[Backbone, EncoderConfig], Encoder]]
    kinds = {"finetune": FinetuneEncoder, "frozen": FrozenEncoder, "split": SplitEncoder}
    return kinds[config.kind](backbone, config).train()

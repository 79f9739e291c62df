"""From an EncoderConfig to an Encoder."""

from __future__ import annotations

from tokenverse_pp.model.encoder.base import Encoder
from tokenverse_pp.model.encoder.config import EncoderConfig
from tokenverse_pp.model.encoder.finetune import FinetuneEncoder
from tokenverse_pp.model.encoder.frozen import FrozenEncoder
from tokenverse_pp.model.encoder.loading import load_backbone


def build_encoder(config: EncoderConfig) -> Encoder:
    """Load the pretrained encoder and make both halves as ``config`` says.

    Raises:
        UserError: an unknown name, folder or family, incomplete weights, or a value out of range.
    """
    backbone = load_backbone(config)
    config.validate(len(backbone.layers))
    # from_pretrained leaves its models in eval mode; train() is where every new module starts.
    kind = FrozenEncoder if config.kind == "frozen" else FinetuneEncoder
    return kind(backbone, config).train()

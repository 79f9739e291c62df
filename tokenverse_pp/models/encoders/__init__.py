"""Speech encoders in two halves with one seam: audio -> features -> contextualised output.

``build_encoder(EncoderConfig(...))`` builds any kind from a pretrained encoder of a known family:

- ``finetune``: the pretrained encoder, split in two (convolutions + projection | transformer);
- ``frozen``: the complete pretrained encoder, not trained, whose output can be stored | a small network;
- ``split``: frozen lower layers | trained upper layers and a small network.
"""

from tokenverse_pp.base.config import EncoderConfig
from tokenverse_pp.models.encoders.base import Encoder
from tokenverse_pp.models.encoders.kinds import build_encoder

__all__ = ["Encoder", "EncoderConfig", "build_encoder"]

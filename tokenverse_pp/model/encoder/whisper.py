"""Whisper's encoder, on utterances of any length up to 30 s."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import Tensor, nn

from tokenverse_pp.errors import UserError
from tokenverse_pp.model.encoder.base import Backbone
from tokenverse_pp.model.encoder.log_mel import LogMel
from tokenverse_pp.model.encoder.masking import attention_bias, length_mask, stacked_lens, zero_padding


class WhisperBackbone(Backbone):
    """transformers' ``WhisperEncoder``: log-mel and two convolutions | positions, layers, final norm.

    Its own forward insists on 30 s of input; here the utterance ends where it ends, and the convolutions see
    zeros after it (their own padding, which the model knows from both ends of 30 s). With 30 s both are the
    same.
    """

    frame_shift = 0.02
    encoder: Any

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.log_mel = LogMel(encoder.config.num_mel_bins)
        self.hidden_size = encoder.config.d_model

    @property
    def layers(self) -> nn.ModuleList:  # type: ignore[override]
        """The transformer layers; not registered again, or their weights would be in the state dict twice."""
        return self.encoder.layers

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames of 20 ms, ceil(lens / 320)."""
        return stacked_lens(self.log_mel.frame_lens(lens), 2)

    def embed(self, audio: Tensor, lens: Tensor) -> Tensor:
        """See Backbone: the output of the second convolution, before positions are added."""
        longest, limit = int(lens.max()), 320 * self.encoder.config.max_source_positions
        if longest > limit:
            raise UserError(f"an utterance has {longest / 16000:.2f} s: Whisper takes {limit / 16000:g} s at most")
        if int(lens.min()) < 1:
            raise UserError("an utterance has no samples: expected at least one")
        mel, mel_lens = self.log_mel(audio, lens)
        x = nn.functional.gelu(self.encoder.conv1(mel))
        x = x.masked_fill(~length_mask(mel_lens, x.shape[2]).unsqueeze(1), 0.0)
        x = nn.functional.gelu(self.encoder.conv2(x)).transpose(1, 2)
        return zero_padding(x, length_mask(self.frame_lens(lens), x.shape[1]))

    def transform(self, x: Tensor, lens: Tensor, wanted: Sequence[int] = (-1,)) -> List[Tensor]:
        """See Backbone."""
        mask = length_mask(lens, x.shape[1])
        x = zero_padding(x, mask) + self.encoder.embed_positions.weight[: x.shape[1]]
        x = nn.functional.dropout(x, p=self.encoder.dropout, training=self.training)
        return self.run_layers(x, wanted, self.layer_arguments(x, mask))

    def layer_arguments(self, x: Tensor, mask: Tensor) -> Dict[str, Any]:
        """See Backbone: the attention mask."""
        return {"attention_mask": attention_bias(mask, torch.float32)}

    def freeze_embedding(self) -> None:
        """Stop training both convolutions."""
        self.encoder.conv1.requires_grad_(False)
        self.encoder.conv2.requires_grad_(False)

    def position_modules(self) -> List[nn.Module]:
        """The (sinusoidal) position embedding."""
        return [self.encoder.embed_positions]

    @property
    def final_norm(self) -> Optional[nn.Module]:
        """The final LayerNorm."""
        return self.encoder.layer_norm

"""Whisper's encoder, on utterances of any length up to 30 s."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import torch
from torch import Tensor, nn

from tokenverse_pp.errors import UserError
from tokenverse_pp.model.encoder.base import Backbone
from tokenverse_pp.model.encoder.log_mel import LogMel
from tokenverse_pp.model.encoder.masking import attention_bias, length_mask, stacked_lens, zero_padding
from tokenverse_pp.model.masks import ChunkGrid, ChunkOptions, chunk_mask


class WhisperBackbone(Backbone):
    """transformers' ``WhisperEncoder``: log-mel and two convolutions | positions, layers, final norm.

    Its own forward insists on 30 s of input; here the utterance ends where it ends, and the convolutions see
    zeros after it (their own padding, which the model knows from both ends of 30 s). With 30 s both are the
    same.

    In chunks an utterance may be of any length: positions start again from 0 at a chunk's edge, whenever the next chunk
    would run past the last one that the model knows (30 s). In full context 30 s are the most.
    """

    frame_shift = 0.02
    hop = 320
    # The second convolution sees mel frames 2t - 2 to 2t + 2, and mel frame m samples 160 m - 200 to 160 m + 199.
    receptive = 520
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

    def grid(self, chunks: ChunkOptions, stack: int = 1) -> ChunkGrid:
        """See Backbone."""
        grid = super().grid(chunks, stack)
        if grid.size > self.encoder.config.max_source_positions:
            seconds = self.encoder.config.max_source_positions * self.frame_shift
            raise UserError(f"--chunk-ms={chunks.chunk_ms}: Whisper knows positions of {seconds:g} s, no longer chunks")
        return grid

    def embed(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tensor:
        """See Backbone: the output of the second convolution, before positions are added."""
        longest, limit = int(lens.max()), 320 * self.encoder.config.max_source_positions
        if longest > limit and chunks is None:
            raise UserError(f"an utterance has {longest / 16000:.2f} s: Whisper takes {limit / 16000:g} s at most")
        if int(lens.min()) < 1:
            raise UserError("an utterance has no samples: expected at least one")
        mel, mel_lens = self.log_mel(audio, lens) if chunks is None else self.log_mel.running(audio, lens, chunks)
        x = nn.functional.gelu(self.encoder.conv1(mel))
        x = x.masked_fill(~length_mask(mel_lens, x.shape[2]).unsqueeze(1), 0.0)
        x = nn.functional.gelu(self.encoder.conv2(x)).transpose(1, 2)
        return zero_padding(x, length_mask(self.frame_lens(lens), x.shape[1]))

    def add_positions(self, x: Tensor, grid: Optional[ChunkGrid] = None) -> Tensor:
        """See Backbone: absolute positions, which in chunks start again before they run out."""
        if grid is None:
            x = x + self.encoder.embed_positions.weight[: x.shape[1]]
        else:
            x = x + self.positions(torch.arange(x.shape[1], device=x.device), grid)
        return nn.functional.dropout(x, p=self.encoder.dropout, training=self.training)

    def positions(self, frames: Tensor, grid: ChunkGrid) -> Tensor:
        """Frame numbers (..,) -> their position embeddings (.., C)."""
        table = self.encoder.embed_positions.weight
        period = len(table) // grid.size * grid.size
        late = frames + grid.delay
        return table[torch.where(late < period, frames, late % period)]

    def layer_arguments(self, x: Tensor, mask: Tensor, grid: Optional[ChunkGrid] = None) -> Dict[str, Any]:
        """See Backbone: the attention mask."""
        seen = None if grid is None else chunk_mask(x.shape[1], grid, x.device)
        return {"attention_mask": attention_bias(mask, torch.float32, seen)}

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

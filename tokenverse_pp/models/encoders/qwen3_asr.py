"""The audio encoder of Qwen3-ASR: log-mel, convolutions over seconds, attention within windows of seconds."""

from __future__ import annotations

from typing import Any, Dict, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.losses.devices import scaled_dot_product_attention
from tokenverse_pp.models.encoders.base import Backbone, attention_bias, check_length, stacked_lens, zero_padding
from tokenverse_pp.models.encoders.chunks import ChunkGrid, chunk_mask
from tokenverse_pp.models.encoders.whisper import LogMel

STRIDE = 8  # of three convolutions


class Qwen3Layer(nn.Module):
    """A layer of ``Qwen3ASREncoder`` for padded batches; transformers' takes packed ones. Modules keep their names."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        for name, child in layer.named_children():
            setattr(self, name, child)
        self.heads = int(layer.self_attn.num_heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """X (N, T, C), bias (N, 1, T, T) -> (N, T, C)."""
        modules: Any = self
        attention = modules.self_attn
        y = modules.self_attn_layer_norm(x)
        parts = (attention.q_proj(y), attention.k_proj(y), attention.v_proj(y))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = x + attention.out_proj(scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))
        return x + modules.fc2(modules.activation_fn(modules.fc1(modules.final_layer_norm(x))))


class Qwen3AsrBackbone(Backbone):
    """``Qwen3ASREncoder``: log-mel, convolutions over windows of 1 s | layers, final norm.

    A window of 1 s gives 13 frames, which are 76.9 ms apart on average. Positions restart in each window.
    Attention sees windows of 8 s (``n_window_infer``); with chunks (of whole seconds), it sees those instead.
    Unlike in Qwen's own code, utterances of less than 0.5 s are not padded with silence.
    """

    own_chunks: ChunkGrid
    norm_name = "ln_post"

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        config = encoder.config
        encoder.layers = nn.ModuleList(Qwen3Layer(layer) for layer in encoder.layers)
        self.encoder = encoder
        self.log_mel = LogMel(config.num_mel_bins)
        self.log_mel.max_samples = 2**40  # unlike Whisper, any length
        self.hidden_size, self.window = config.d_model, 2 * config.n_window
        self.window_frames = int(stacked_lens(torch.tensor(self.window), STRIDE))
        self.window_samples = self.window * self.log_mel.hop
        self.own_chunks = ChunkGrid(config.n_window_infer // self.window * self.window_frames, 0, left_chunks=0)
        self.frame_shift = self.window_samples / self.window_frames / SAMPLE_RATE
        self.hop, self.receptive = self.window_samples // self.window_frames, self.window_samples

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames: 13 for each full second, plus those of the rest."""
        mel = self.log_mel.frame_lens(lens)
        windows = torch.div(mel, self.window, rounding_mode="floor")
        return windows * self.window_frames + stacked_lens(mel - windows * self.window, STRIDE)

    def grid(self, chunks: ChunkOptions, stack: int = 1) -> ChunkGrid:
        """See Backbone: a window's last frames see 12.5 ms of the next one, and belong to its chunk."""
        samples, unit = chunks.chunk_samples, self.window_samples
        size = samples // unit * self.window_frames
        if chunks.chunk_ms * SAMPLE_RATE % 1000 or samples % unit or size % stack:
            least = 1000 * unit / SAMPLE_RATE * (stack if self.window_frames % stack else 1)
            raise UserError(f"--chunk-ms={chunks.chunk_ms}: expected a multiple of {least:g} ms, the encoder's window")
        last = torch.arange(self.window_frames) * 8 + 7 >= self.window - 1  # see the window's last mel frame
        return ChunkGrid(size, int(last.sum()), chunks.left_chunks, chunks.sinks, chunks.strict)

    def embed(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tensor:
        """See Backbone: the output of the convolutions and their projection, before positions are added."""
        check_length(lens, self.frame_lens(lens))
        mel, _ = self.log_mel(audio, lens) if chunks is None else self.log_mel.running(audio, lens, chunks)
        n, bins, frames = mel.shape
        mel = F.pad(mel, (0, -frames % self.window))
        x = mel.reshape(n, bins, -1, self.window).transpose(1, 2).reshape(-1, 1, bins, self.window)
        for conv in (self.encoder.conv2d1, self.encoder.conv2d2, self.encoder.conv2d3):
            x = F.gelu(conv(x))
        x = self.encoder.conv_out(x.permute(0, 3, 1, 2).flatten(2)).reshape(n, -1, self.hidden_size)
        count = frames // self.window * self.window_frames + (frames % self.window + 7) // 8
        return zero_padding(x[:, :count], self.frame_lens(lens))

    def add_positions(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Tensor:
        """See Backbone: the sinusoids of each frame's position in its window."""
        table = self.encoder.positional_embedding.positional_embedding
        return x + table[torch.arange(x.shape[1], device=x.device) % self.window_frames].to(x.dtype)

    def layer_arguments(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Dict[str, Any]:
        """See Backbone: the attention mask."""
        seen = chunk_mask(x.shape[1], grid or self.own_chunks, x.device)
        return {"bias": attention_bias(lens, x.shape[1], x.device, seen)}

    def freeze_embedding(self) -> None:
        """Stop training the convolutions (their projection stays trainable)."""
        for conv in (self.encoder.conv2d1, self.encoder.conv2d2, self.encoder.conv2d3):
            conv.requires_grad_(False)

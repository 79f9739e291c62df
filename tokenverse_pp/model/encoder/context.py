"""A small conformer that gives context to the features of a frozen encoder."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokenverse_pp.compat import scaled_dot_product_attention
from tokenverse_pp.model.encoder.config import EncoderConfig
from tokenverse_pp.model.encoder.masking import attention_bias, length_mask, zero_padding


def rotary_table(frames: int, dim: int, device: torch.device) -> Tuple[Tensor, Tensor]:
    """Cosines and sines, (frames, dim / 2) each, of rotary positions (RoFormer, Su et al. 2021), base 10000."""
    rates = 10000.0 ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angles = torch.arange(frames, device=device, dtype=torch.float32).unsqueeze(1) * rates
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: Tuple[Tensor, Tensor]) -> Tensor:
    """Turn channel pairs (i, i + D / 2) of x (N, H, T, D) by the frame's angle: scores then see distances only."""
    cos, sin = (part.to(x.dtype) for part in table)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class FeedForward(nn.Sequential):
    """Pre-norm feed-forward part: (N, T, C) -> (N, T, C)."""

    def __init__(self, dim: int, inner: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, inner),
            nn.SiLU(),
            nn.Linear(inner, dim),
            nn.Dropout(dropout),
        )


class SelfAttention(nn.Module):
    """Pre-norm multi-head self-attention with rotary positions, without dropout of the weights (for speed)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Optional[Tensor], table: Tuple[Tensor, Tensor]) -> Tensor:
        """X (N, T, C), bias (N, 1, T, T) or None, table from rotary_table -> (N, T, C)."""
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(rotate(q, table), rotate(k, table), v, bias)
        return self.dropout(self.output(y.transpose(1, 2).reshape(n, t, c)))


class Convolution(nn.Module):
    """The conformer's convolution part; LayerNorm in place of BatchNorm, whose statistics would see padding."""

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.middle_norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """X (N, T, C), mask (N, T) true on valid frames -> (N, T, C)."""
        x = nn.functional.glu(self.gate(self.norm(x)), dim=-1)
        x = self.depthwise(zero_padding(x, mask).transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.output(nn.functional.silu(self.middle_norm(x))))


class ContextLayer(nn.Module):
    """A conformer layer (Gulati et al. 2020): half feed-forward, attention, convolution, half again, norm."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.first_ffn = FeedForward(dim, ffn_dim, dropout)
        self.attention = SelfAttention(dim, heads, dropout)
        self.convolution = Convolution(dim, kernel, dropout)
        self.second_ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor, bias: Optional[Tensor], table: Tuple[Tensor, Tensor]) -> Tensor:
        """X (N, T, C), mask (N, T), bias and table as in SelfAttention -> (N, T, C)."""
        x = x + 0.5 * self.first_ffn(x)
        x = x + self.attention(x, bias, table)
        x = x + self.convolution(x, mask)
        x = x + 0.5 * self.second_ffn(x)
        return self.norm(x)


class ContextNetwork(nn.Module):
    """LayerNorm and projection of the input, then conformer layers.

    With ``gradient_checkpointing`` the layers' activations are computed again in the backward pass.
    """

    gradient_checkpointing: bool = False

    def __init__(
        self, input_dim: int, dim: int, num_layers: int, heads: int, ffn_dim: int, kernel: int, dropout: float
    ) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.input = nn.Sequential(nn.LayerNorm(input_dim), nn.Linear(input_dim, dim), nn.Dropout(dropout))
        self.layers = nn.ModuleList(ContextLayer(dim, heads, ffn_dim, kernel, dropout) for _ in range(num_layers))

    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        """X (N, T, input_dim), lens (N,) -> (N, T, dim), zero on padding."""
        mask = length_mask(lens, x.shape[1])
        bias = attention_bias(mask, torch.float32)
        table = rotary_table(x.shape[1], self.head_dim, x.device)
        x = self.input(x)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, mask, bias, table, use_reentrant=False)
            else:
                x = layer(x, mask, bias, table)
        return zero_padding(x, mask)


def context_network(config: EncoderConfig, input_dim: int) -> ContextNetwork:
    """The context network that the options ask for, behind frames of ``input_dim`` channels (stacked ones)."""
    network = ContextNetwork(
        input_dim,
        dim=config.context_dim,
        num_layers=config.context_layers,
        heads=config.context_heads,
        ffn_dim=config.context_ffn,
        kernel=config.context_kernel,
        dropout=config.context_dropout,
    )
    network.gradient_checkpointing = config.gradient_checkpointing
    return network

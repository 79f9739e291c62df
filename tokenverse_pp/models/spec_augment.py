"""SpecAugment (Park et al., 2019) on the features at the seam: spans of time and of channels are set to zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenverse_pp.base.config import SpecAugmentConfig

# channels, longest span


class SpecAugment(nn.Module):
    """Masks while training; does nothing in eval mode. Every utterance draws masks of its own."""

    def __init__(self, config: SpecAugmentConfig):
        super().__init__()
        self.config = config

    def forward(self, features: Tensor, lens: Tensor) -> Tensor:
        """features (N, T, F), lens (N,) valid frames -> (N, T, F), a new tensor where anything was masked."""
        if not self.training:
            return features
        c = self.config
        if c.time_share > 0:
            features = features.masked_fill(_spans(lens, features.shape[1], c.time_share, c.time_span)[:, :, None], 0)
        if c.channel_share > 0:
            size = features.shape[2]
            widths = torch.full_like(lens, size)
            features = features.masked_fill(_spans(widths, size, c.channel_share, c.channel_span)[:, None, :], 0)
        return features


def _spans(lens: Tensor, size: int, share: float, span: int) -> Tensor:
    """Random spans of 0 to ``span`` places within each length, covering about ``share`` -> mask (N, size)."""
    device = lens.device
    # A span is span / 2 long on average; the number of spans is rounded up or down at random, to keep the mean.
    count = lens.to(torch.float32) * share / (span / 2)
    count = (count + torch.rand(lens.shape, device=device)).floor().long()
    most = int(count.max()) if len(lens) else 0
    if most == 0:
        return torch.zeros(len(lens), size, dtype=torch.bool, device=device)
    width = torch.randint(0, span + 1, (len(lens), most), device=device)
    room = (lens[:, None] - width).clamp(min=0)
    start = (torch.rand(len(lens), most, device=device) * (room + 1)).long()
    width = torch.where(torch.arange(most, device=device) < count[:, None], width, torch.zeros_like(width))
    places = torch.arange(size, device=device)
    inside = (places >= start[:, :, None]) & (places < (start + width)[:, :, None])
    return inside.any(dim=1)

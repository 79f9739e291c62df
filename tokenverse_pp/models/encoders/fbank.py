"""Mel filter banks of padded batches in torch: NeMo's (Parakeet, Nemotron) and Kaldi's (w2v-BERT).

Both return what transformers' feature extractors return for each utterance alone.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SeamlessM4TFeatureExtractor

from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions
from tokenverse_pp.models.encoders.base import length_mask
from tokenverse_pp.models.encoders.chunks import ChunkGrid, chunk_grid, from_chunks, in_chunks, running_moments

HOP = SAMPLE_RATE // 100
WINDOW = SAMPLE_RATE // 40
N_FFT = 512
PREEMPHASIS = 0.97  # of Kaldi


class PowerSpectrum(nn.Module):
    """Power spectra of windows of 25 ms every 10 ms: audio (N, S) -> (N, T, 257), T = (S - 400) // 160 + 1.

    ``dc_and_preemphasis``: as in Kaldi: subtract each window's mean, then 0.97 times the previous sample.
    """

    window: Tensor

    def __init__(self, window: Tensor, dc_and_preemphasis: bool = False) -> None:
        super().__init__()
        self.dc_and_preemphasis = dc_and_preemphasis
        self.register_buffer("window", window.float(), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """Audio (N, S) -> power spectra (N, T, 257), float32."""
        frames = audio.unfold(1, WINDOW, HOP)
        if self.dc_and_preemphasis:
            frames = frames - frames.mean(-1, keepdim=True)
            frames = frames - PREEMPHASIS * torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        spectrum = torch.fft.rfft(frames * self.window, n=N_FFT)
        return spectrum.real.square() + spectrum.imag.square()


class NemoMel(nn.Module):
    """``ParakeetFeatureExtractor`` and ``NemotronAsrStreamingFeatureExtractor`` of transformers.

    An utterance of S samples has S // 160 frames; frame t is centred on sample 160 t, with zeros before and after the
    utterance. Parakeet normalises each bin over the utterance's frames (with chunks: over those up to the end of a
    frame's chunk), Nemotron does not.
    """

    filters: Tensor

    def __init__(self, extractor: Any, normalise: bool) -> None:
        super().__init__()
        self.normalise, self.preemphasis = normalise, float(extractor.preemphasis or 0.0)
        dtype = getattr(torch, getattr(extractor, "mel_filters_dtype", "float32"))
        window = torch.hann_window(extractor.win_length, periodic=False).to(dtype)
        filters = torch.as_tensor(extractor.mel_filters).to(dtype).float()  # (bins, 257)
        self.spectrum = PowerSpectrum(window)
        self.register_buffer("filters", filters, persistent=False)

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames of 10 ms."""
        return torch.div(lens, HOP, rounding_mode="floor")

    def forward(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tuple[Tensor, Tensor]:
        """Audio (N, S), lens (N,) samples -> (N, T, bins) float32, zero on padding, and lens (N,)."""
        valid = length_mask(lens, audio.shape[1], audio.device)
        audio = audio.float()
        audio = torch.cat([audio[:, :1], audio[:, 1:] - self.preemphasis * audio[:, :-1]], dim=1)
        audio = F.pad(audio.masked_fill(~valid, 0.0), (WINDOW // 2, WINDOW // 2 - HOP))
        with torch.autocast(audio.device.type, enabled=False):
            mel = torch.log(self.spectrum(audio) @ self.filters.T + 2**-24)
        lens = self.frame_lens(lens)
        mask = length_mask(lens, mel.shape[1], mel.device).unsqueeze(-1)
        mel = mel.masked_fill(~mask, 0.0)
        if self.normalise:
            grid = None if chunks is None else chunk_grid(chunks, HOP, WINDOW // 2)
            mel = normalise_bins(mel, lens, grid, added=1e-5).masked_fill(~mask, 0.0)
        return mel, lens


class KaldiFbank(nn.Module):
    """``SeamlessM4TFeatureExtractor`` of transformers (w2v-BERT): Kaldi's filter bank, two frames joined into one.

    An utterance of S samples has T = (S - 400) // 160 + 1 frames, joined into T // 2 pairs. Each bin is normalised over
    the utterance (with chunks: up to the end of a frame's chunk).
    """

    filters: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        extractor = SeamlessM4TFeatureExtractor(feature_size=bins, num_mel_bins=bins)
        self.spectrum = PowerSpectrum(torch.as_tensor(extractor.window), dc_and_preemphasis=True)
        self.register_buffer("filters", torch.as_tensor(extractor.mel_filters).float(), persistent=False)  # (257, bins)

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames of 10 ms, before they are joined; never negative."""
        return (torch.div(lens - WINDOW, HOP, rounding_mode="floor") + 1).clamp(min=0)

    def forward(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tuple[Tensor, Tensor]:
        """Audio (N, S), lens (N,) samples -> (N, T, 2 * bins) float32, zero on padding, and lens (N,)."""
        audio = audio.float().masked_fill(~length_mask(lens, audio.shape[1], audio.device), 0.0)
        with torch.autocast(audio.device.type, enabled=False):
            mel = (self.spectrum(audio * 2**15) @ self.filters).clamp(min=1.192092955078125e-07).log()
        lens = self.frame_lens(lens)
        mask = length_mask(lens, mel.shape[1], mel.device).unsqueeze(-1)
        grid = None if chunks is None else chunk_grid(chunks, HOP, WINDOW)
        mel = normalise_bins(mel.masked_fill(~mask, 0.0), lens, grid, within=1e-7)
        lens = torch.div(lens, 2, rounding_mode="floor")
        pairs = mel[:, : mel.shape[1] // 2 * 2].reshape(mel.shape[0], -1, 2 * mel.shape[2])
        return pairs.masked_fill(~length_mask(lens, pairs.shape[1], pairs.device).unsqueeze(-1), 0.0), lens


def normalise_bins(
    mel: Tensor, lens: Tensor, grid: Optional[ChunkGrid], added: float = 0.0, within: float = 0.0
) -> Tensor:
    """Normalise each bin to zero mean and unit variance (divisor T - 1) over the valid frames.

    Args:
        mel: (N, T, bins), zero on padding.
        lens: valid frames, (N,).
        grid: the chunks; statistics then cover the frames up to the end of a frame's chunk. None: all frames.
        added: added to the standard deviation.
        within: added to the variance.
    """
    if grid is None:
        count = lens.view(-1, 1, 1).to(mel.device, torch.float32, non_blocking=True)
        mask = length_mask(lens, mel.shape[1], mel.device).unsqueeze(-1)
        centred = (mel - mel.sum(1, keepdim=True) / count.clamp(min=1)).masked_fill(~mask, 0.0)
        variance = centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)
        return centred / ((variance + within).sqrt() + added)
    chunks = in_chunks(mel.transpose(1, 2), grid)
    number, total, squares = running_moments(chunks, lens, grid)
    count = number.clamp(min=1)
    mean = total / count
    variance = (squares - count * mean.square()).clamp(min=0) / (count - 1).clamp(min=1)
    scale = 1 / ((variance + within).sqrt() + added)
    normalised = (chunks - mean.float().unsqueeze(-1)) * scale.float().unsqueeze(-1)
    return from_chunks(normalised, mel.shape[1], grid).transpose(1, 2)

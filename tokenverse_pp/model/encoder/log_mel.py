"""Whisper's log-mel spectrogram of padded batches, in torch."""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor

from tokenverse_pp.model.encoder.masking import length_mask, stacked_lens


class LogMel(nn.Module):
    """What ``transformers.WhisperFeatureExtractor`` gives on the valid frames, without filling up to 30 s.

    An utterance of S samples has ceil(S / 160) frames of 10 ms, frame t being centred on sample 160 t.
    Silence follows it (and its mirror image precedes it), as in the extractor, which pads with zeros before
    the spectrogram. The dynamic range is cut at 8 (80 dB) below the maximum over *all frames that see a
    sample of the utterance*: the one or two centred after its end count although they are not returned, as in
    the extractor.
    """

    max_samples = 480000
    filters: Tensor
    window: Tensor

    def __init__(self, num_mel_bins: int) -> None:
        super().__init__()
        extractor = WhisperFeatureExtractor(feature_size=num_mel_bins)
        self.n_fft, self.hop = extractor.n_fft, extractor.hop_length
        filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float32).T.contiguous()
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    def frame_lens(self, lens: Tensor) -> Tensor:
        """Samples -> frames of 10 ms."""
        return stacked_lens(lens, self.hop)

    def forward(self, audio: Tensor, lens: Tensor) -> Tuple[Tensor, Tensor]:
        """Audio (N, S), lens (N,) samples, at most 30 s -> (N, num_mel_bins, T), zero on padding; lens (N,)."""
        longest = int(lens.max())
        # Room for the frames that still see the end, but never past 30 s, where the extractor mirrors its
        # buffer.
        size = min(longest + self.n_fft, self.max_samples)
        audio = audio[:, :longest].float().masked_fill(~length_mask(lens, longest), 0.0)
        audio = nn.functional.pad(audio, (0, size - longest))
        frame_lens = self.frame_lens(lens)
        frames = self.max_samples // self.hop
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(audio, self.n_fft, self.hop, window=self.window, return_complex=True)
            power = spectrum[:, :, :frames].abs().square()
            mel = (self.filters @ power).clamp(min=1e-10).log10()
            mel = torch.maximum(mel, mel.amax(dim=(1, 2), keepdim=True) - 8.0)
            mel = (mel[:, :, : self.frame_lens(torch.tensor(longest))] + 4.0) / 4.0
        return mel.masked_fill(~length_mask(frame_lens, mel.shape[2]).unsqueeze(1), 0.0), frame_lens

"""Whisper: the log-mel spectrogram of padded batches in torch, and the encoder for utterances of up to 30 s."""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor

from tokenverse_pp.base.config import SAMPLE_RATE, ChunkOptions
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.models.encoders.base import Backbone, length_mask, stacked_lens, zero_padding
from tokenverse_pp.models.encoders.chunks import ChunkGrid, chunk_grid, from_chunks, in_chunks

LEAST = -10.0  # log10 of the power floor, 1e-10


class LogMel(nn.Module):
    """The output of ``transformers.WhisperFeatureExtractor`` on the valid frames, without padding to 30 s.

    An utterance of S samples has ceil(S / 160) frames of 10 ms; frame t is centred on sample 160 t. As in the
    extractor, silence follows the utterance and its mirror image precedes it. The dynamic range is cut at 8 (80 dB)
    below the maximum over all frames that see a sample of the utterance, including one or two that are centred after
    its end and not returned.
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
        # Leave room for frames that still see the end, up to 30 s, where the extractor mirrors its buffer.
        size = min(longest + self.n_fft, self.max_samples)
        audio = audio[:, :longest].float().masked_fill(~length_mask(lens, longest, audio.device), 0.0)
        audio = nn.functional.pad(audio, (0, size - longest))
        frame_lens = self.frame_lens(lens)
        frames = self.max_samples // self.hop
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(audio, self.n_fft, self.hop, window=self.window, return_complex=True)
            power = spectrum[:, :, :frames].abs().square()
            mel = (self.filters @ power).clamp(min=1e-10).log10()
            mel = torch.maximum(mel, mel.amax(dim=(1, 2), keepdim=True) - 8.0)
            mel = (mel[:, :, : self.frame_lens(torch.tensor(longest))] + 4.0) / 4.0
        return mel.masked_fill(~length_mask(frame_lens, mel.shape[2], mel.device).unsqueeze(1), 0.0), frame_lens

    def running(self, audio: Tensor, lens: Tensor, chunks: ChunkOptions) -> Tuple[Tensor, Tensor]:
        """Like `forward`, for any length, with the maximum over the frames up to the end of a frame's chunk."""
        longest = int(lens.max())
        audio = audio[:, :longest].float().masked_fill(~length_mask(lens, longest, audio.device), 0.0)
        audio = nn.functional.pad(audio, (0, self.n_fft))
        mel = self.log_power(torch.cat([self.mirrored_start(audio), audio], dim=1))
        lens = self.frame_lens(lens)
        frames = int(lens.max())
        valid = length_mask(lens, frames, audio.device)
        grid, peaks = self.grid(chunks), mel[:, :, :frames].amax(dim=1).masked_fill(~valid, LEAST)
        highest = (in_chunks(peaks - LEAST, grid).amax(-1) + LEAST).cummax(dim=1).values  # up to each chunk's end
        peaks = from_chunks(highest.unsqueeze(-1).expand(-1, -1, grid.size), frames, grid)
        mel = self.clip(mel[:, :, :frames], peaks)
        return mel.masked_fill(~valid.unsqueeze(1), 0.0), lens

    def grid(self, chunks: ChunkOptions) -> ChunkGrid:
        """The chunks of frames of 10 ms."""
        return chunk_grid(chunks, self.hop, self.n_fft // 2)

    def mirrored_start(self, audio: Tensor) -> Tensor:
        """The mirror image of the first samples of audio (N, S), S > 200, that precedes it: (N, 200)."""
        return audio[:, 1 : self.n_fft // 2 + 1].flip(1)

    def log_power(self, audio: Tensor) -> Tensor:
        """Audio (N, 240 + 160 T or a little more) -> log-mel (N, num_mel_bins, T) before clipping.

        Frame t sees 400 samples from 160 t on.
        """
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(audio, self.n_fft, self.hop, window=self.window, center=False, return_complex=True)
            return (self.filters @ spectrum.abs().square()).clamp(min=1e-10).log10()

    @staticmethod
    def clip(mel: Tensor, peaks: Tensor) -> Tensor:
        """Clip mel (N, M, T) at 8 below the peaks (N, T) and scale it as Whisper does."""
        return (torch.maximum(mel, peaks.unsqueeze(1) - 8.0) + 4.0) / 4.0


class WhisperBackbone(Backbone):
    """transformers' ``WhisperEncoder``: log-mel and two convolutions | positions, layers, final norm.

    Its own forward requires 30 s of input; here the input is not padded, and the convolutions see zeros after
    the utterance (their own padding, which the model knows from both ends of 30 s). For 30 s both are the same.

    In chunks, an utterance may have any length: positions restart from 0 at a chunk boundary whenever the next chunk
    would run past the model's last position (30 s). In full context, the limit is 30 s.
    """

    frame_shift = 0.02
    hop = 320
    # The second convolution sees mel frames 2t - 2 to 2t + 2, and mel frame m samples 160 m - 200 to 160 m + 199.
    receptive = 520
    norm_name = "layer_norm"
    streams = True

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.log_mel = LogMel(encoder.config.num_mel_bins)
        self.hidden_size = encoder.config.d_model
        self.max_samples = self.hop * int(encoder.config.max_source_positions)

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
        longest, limit = int(lens.max()), self.max_samples or 0
        if longest > limit and chunks is None:
            raise UserError(
                f"an utterance has {longest / SAMPLE_RATE:.2f} s: Whisper takes {limit / SAMPLE_RATE:g} s at most"
            )
        if int(lens.min()) < 1:
            raise UserError("an utterance has no samples: expected at least one")
        mel, mel_lens = self.log_mel(audio, lens) if chunks is None else self.log_mel.running(audio, lens, chunks)
        x = nn.functional.gelu(self.encoder.conv1(mel))
        x = x.masked_fill(~length_mask(mel_lens, x.shape[2], x.device).unsqueeze(1), 0.0)
        x = nn.functional.gelu(self.encoder.conv2(x)).transpose(1, 2)
        return zero_padding(x, self.frame_lens(lens))

    def add_positions(self, x: Tensor, lens: Tensor, grid: Optional[ChunkGrid] = None) -> Tensor:
        """See Backbone: absolute positions, which restart in chunks before they run out."""
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

    def freeze_embedding(self) -> None:
        """Stop training both convolutions."""
        self.encoder.conv1.requires_grad_(False)
        self.encoder.conv2.requires_grad_(False)

    def position_modules(self) -> List[nn.Module]:
        """The (sinusoidal) position embedding."""
        return [self.encoder.embed_positions]

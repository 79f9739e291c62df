"""Inputs of the runtime: audio from files or arrays, and Whisper's log-mel spectrogram in NumPy."""

from __future__ import annotations

import os
from typing import BinaryIO, Optional, Union

import numpy as np

from tokenverse_pp.base.config import SAMPLE_RATE
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.audio import read_audio as read_file
from tokenverse_pp.decoding.streaming.events import check_range

Audio = Union[str, "os.PathLike[str]", bytes, BinaryIO, np.ndarray]


def read_audio(audio: Audio) -> np.ndarray:
    """Read a file, its bytes, or samples (S,) at 16 kHz as samples (S,) float32; averages the channels of a file.

    The containers are those of `tokenverse-pp transcribe` (`tokenverse_pp.data.audio`).

    Raises:
        UserError: for anything else. A file of another rate needs the package soxr.
    """
    if isinstance(audio, np.ndarray):
        return checked(audio, "audio")
    if isinstance(audio, (str, os.PathLike)):
        name = os.fspath(audio)
        if not os.path.exists(name) or os.path.isdir(name):
            raise UserError(f"{name}: no such audio file")
    elif isinstance(audio, (bytes, bytearray, memoryview)) or hasattr(audio, "read"):
        name = "audio"
    else:
        return checked(np.asarray(audio), "audio")
    samples, rate = read_file(audio, name, SAMPLE_RATE)
    if rate == SAMPLE_RATE:
        return samples
    try:
        import soxr
    except ImportError:
        raise UserError(f"{name}: has {rate} Hz; resample it to {SAMPLE_RATE}, or pip install soxr") from None
    return soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32)


def checked(samples: np.ndarray, name: str) -> np.ndarray:
    """Return samples (S,) as float32. Raises UserError, which calls them ``name``, for anything else."""
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise UserError(f"{name}: expected floats of one channel, got {samples.dtype} of shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise UserError(f"{name}: holds NaN or infinity")
    check_range(float(np.abs(samples).max(initial=0)), name)
    return np.ascontiguousarray(samples, dtype=np.float32)


RANGE = 8.0  # powers of ten below the maximum
LEAST = 1e-10
MAX_SAMPLES = 480000  # Whisper's own extractor pads to 30 s and mirrors the end of the padded audio


class NumpyLogMel:
    """`tokenverse_pp.models.encoders.whisper.LogMel` in NumPy.

    Args:
        filters: (bins, n_fft / 2 + 1).
        n_fft: samples of a window, a multiple of 2.
        hop: samples from one frame to the next.
    """

    def __init__(self, filters: np.ndarray, n_fft: int, hop: int):
        self.filters, self.n_fft, self.hop = filters.astype(np.float32), n_fft, hop
        self.window = np.hanning(n_fft + 1)[:-1].astype(np.float32)

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Audio (S,) float32, at least one sample -> (bins, ceil(S / hop)) float32."""
        size = min(len(audio) + self.n_fft, max(MAX_SAMPLES, len(audio)))
        padded = np.zeros(size, dtype=np.float32)
        padded[: len(audio)] = audio
        mel = self.log_power(np.pad(padded, self.n_fft // 2, mode="reflect"))[:, : MAX_SAMPLES // self.hop]
        # The maximum includes frames after the end that still overlap the utterance, although they are not returned.
        mel = np.maximum(mel, mel.max() - RANGE)[:, : -(-len(audio) // self.hop)]
        return ((mel + 4.0) / 4.0).astype(np.float32)

    def log_power(self, audio: np.ndarray) -> np.ndarray:
        """Audio (S,), at least a window -> (bins, T), before the range is limited; frame t starts at hop * t."""
        windows = np.lib.stride_tricks.sliding_window_view(audio, self.n_fft)[:: self.hop]
        spectrum = np.fft.rfft(windows * self.window, axis=1)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        return np.log10(np.maximum(self.filters @ power.T, LEAST))


class RunningLogMel:
    """`NumpyLogMel` of one stream, chunk by chunk; the range is relative to the maximum so far."""

    def __init__(self, log_mel: NumpyLogMel):
        self.log_mel = log_mel
        self.audio: Optional[np.ndarray] = None  # samples that later frames need
        self.peak = np.float32(np.log10(LEAST))

    def push(self, chunk: np.ndarray) -> np.ndarray:
        """Take a chunk (S,), longer than half a window; return the frames (bins, T) that it completes."""
        n_fft, hop = self.log_mel.n_fft, self.log_mel.hop
        before = chunk[n_fft // 2 : 0 : -1] if self.audio is None else self.audio
        audio = np.concatenate([before, chunk])
        frames = (len(audio) - n_fft) // hop + 1
        self.audio = audio[frames * hop :]
        mel = self.log_mel.log_power(audio)
        self.peak = np.maximum(self.peak, mel.max())
        return ((np.maximum(mel, self.peak - RANGE) + 4.0) / 4.0).astype(np.float32)

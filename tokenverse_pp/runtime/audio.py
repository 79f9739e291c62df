"""Audio for the runtime: a file, or samples that somebody has already."""

from __future__ import annotations

import os
from typing import BinaryIO, Union

import numpy as np

from tokenverse_pp.audio import read_audio as read_file
from tokenverse_pp.errors import UserError
from tokenverse_pp.runtime.folder import SAMPLING_RATE

Audio = Union[str, "os.PathLike[str]", bytes, BinaryIO, np.ndarray]


def read_audio(audio: Audio) -> np.ndarray:
    """A file, its bytes, or an array at 16 kHz -> samples (S,) float32; the channels of a file are averaged.

    Takes the containers that `tokenverse-pp transcribe` takes (`tokenverse_pp.audio`).

    Raises:
        UserError: for what is no such audio. A file of another rate needs the package soxr.
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
    samples, rate = read_file(audio, name, SAMPLING_RATE)
    return samples if rate == SAMPLING_RATE else _resampled(samples, rate, name)


def _resampled(samples: np.ndarray, rate: int, path: str) -> np.ndarray:
    try:
        import soxr
    except ImportError:
        raise UserError(f"{path}: has {rate} Hz; resample it to {SAMPLING_RATE}, or pip install soxr") from None
    return soxr.resample(samples, rate, SAMPLING_RATE).astype(np.float32)


def checked(samples: np.ndarray, name: str) -> np.ndarray:
    """Samples (S,) as float32 (raises UserError, calling them ``name``, for what is no audio)."""
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise UserError(f"{name}: expected floats of one channel, got {samples.dtype} of shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise UserError(f"{name}: holds NaN or infinity")
    return np.ascontiguousarray(samples, dtype=np.float32)

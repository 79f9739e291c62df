"""Audio for the runtime: a file, or samples that somebody has already."""

from __future__ import annotations

import os
from typing import Union

import numpy as np

from tokenverse_pp.errors import UserError
from tokenverse_pp.runtime.folder import SAMPLING_RATE

Audio = Union[str, "os.PathLike[str]", np.ndarray]


def read_audio(audio: Audio) -> np.ndarray:
    """A file, or an array at 16 kHz -> samples (S,) float32; the channels of a file are averaged.

    Raises:
        UserError: for what is no such audio. A file of another rate needs the package soxr.
    """
    if isinstance(audio, (str, os.PathLike)):
        return checked(_read_file(os.fspath(audio)), os.fspath(audio))
    return checked(np.asarray(audio), "audio")


def _read_file(path: str) -> np.ndarray:
    try:
        import soundfile
    except ImportError:
        raise UserError(f"{path}: reading files needs soundfile: pip install soundfile") from None
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such audio file")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path}: not audio that soundfile can read: {' '.join(str(error).split())}") from None
    mono = samples.mean(axis=1)
    return mono if rate == SAMPLING_RATE else _resampled(mono, rate, path)


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

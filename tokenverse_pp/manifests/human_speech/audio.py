"""Decodes the packages' recordings to 16 kHz mono, trims their silent edges, and writes FLAC."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Tuple

import numpy as np
import soundfile
import soxr

from tokenverse_pp.errors import UserError
from tokenverse_pp.files import replacing

SAMPLE_RATE = 16000

_FRAME = 160  # 10 ms
_MARGIN = 8  # frames of context kept on each side: quiet consonants lie below the threshold
_THRESHOLD_DB = -45.0


def decode(path: str) -> np.ndarray:
    """Samples of an audio file as float32 `(T,)` at 16 kHz, mono; G.722 (`.g722`) or whatever libsndfile reads (ogg,
    wav, flac).

    A whole Ogg file without a single sample gives `(0,)`: one of the packages ships two. G.722 has no header and no end
    mark, so that a shortened G.722 file only shows as an outlier of its text.

    Raises:
        UserError: the file is missing, truncated or damaged; names it.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: audio file is missing")
    if os.path.getsize(path) == 0:
        raise UserError(f"{path}: audio file is empty (truncated?)")
    try:
        samples, rate = _decode_g722(path) if path.endswith(".g722") else _decode_soundfile(path)
    except Exception as error:  # libsndfile and FFmpeg raise a dozen types for damaged files
        raise UserError(f"{path}: cannot be decoded as audio ({error})") from error
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: holds samples that are not numbers (damaged file)")
    if rate != SAMPLE_RATE and len(samples):
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    return np.ascontiguousarray(samples, dtype=np.float32)


def _decode_soundfile(path: str) -> Tuple[np.ndarray, int]:
    if path.endswith(".ogg"):
        _check_ogg_end(path)
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return samples.mean(axis=1), rate


def _check_ogg_end(path: str) -> None:
    """Vorbis decoders stop silently where a file was cut off: look for the page that is flagged as the last (RFC
    3533, section 6)."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(max(0, size - 65536))
        tail = file.read()
    last = tail.rfind(b"OggS")
    if last < 0 or len(tail) < last + 27 or not tail[last + 5] & 4:
        raise UserError("no end-of-stream page: the file is truncated")
    segments = tail[last + 27 : last + 27 + tail[last + 26]]
    if len(tail) < last + 27 + tail[last + 26] + sum(segments):
        raise UserError("its last page is cut short")


def _decode_g722(path: str) -> Tuple[np.ndarray, int]:
    import av  # an optional extra, and only this format needs it

    with av.open(path, format="g722") as container:
        chunks = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
        rate = container.streams.audio[0].rate
    samples = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
    return samples.astype(np.float32) / 32768.0, int(rate)


def trim_silence(samples: np.ndarray) -> np.ndarray:
    """Cuts silent edges, leaving 80 ms of margin, so that drawn pauses are the pauses heard; `(T,)` -> `(T',)`.

    Silence is a 10 ms frame whose power lies 45 dB or more below the loudest frame.
    """
    count = len(samples) // _FRAME
    if count == 0:
        return samples
    power = (samples[: count * _FRAME].reshape(count, _FRAME) ** 2).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (_THRESHOLD_DB / 10))
    if len(loud) == 0:
        return samples
    start = max(0, loud[0] - _MARGIN) * _FRAME
    return samples[start : min(len(samples), (loud[-1] + 1 + _MARGIN) * _FRAME)]


def change_speed(samples: np.ndarray, speed: float) -> np.ndarray:
    """Plays `(T,)` samples `speed` times as fast (tempo and pitch together, as Kaldi's and lhotse's speed
    perturbation)."""
    if speed == 1.0:
        return samples
    return soxr.resample(samples, SAMPLE_RATE * speed, SAMPLE_RATE)


def write_flac(path: Path, samples: np.ndarray) -> None:
    """Writes 16-bit FLAC that appears whole or not at all; samples beyond full scale are clipped."""
    with replacing(path) as aside:
        soundfile.write(str(aside), np.clip(samples, -1.0, 1.0), SAMPLE_RATE, format="FLAC", subtype="PCM_16")

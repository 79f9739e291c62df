"""Audio out of containers that libsndfile does not read (m4a, mp4, webm, ..), by PyAV where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import List

import numpy as np

from tokenverse_pp.errors import UserError

ENDINGS_OF_CONTAINERS = (".aac", ".amr", ".m4a", ".mka", ".mkv", ".mov", ".mp4", ".webm", ".wma")
ENDINGS = (".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".sph", ".wav", *ENDINGS_OF_CONTAINERS)


def read_container(path: Path, rate: int) -> np.ndarray:
    """The first audio stream of a file, mixed down and resampled to ``rate`` Hz: (S,) float32.

    Raises:
        UserError: without PyAV, and naming the file where it has no audio or is damaged.
    """
    try:
        import av
    except ImportError:
        raise UserError(f"{path}: {path.suffix} files need PyAV: pip install 'tokenverse_pp[human-speech]'") from None
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    parts: List[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise UserError(f"{path}: holds no audio")
            for frame in container.decode(audio=0):
                parts.extend(part.to_ndarray()[0] for part in resampler.resample(frame))
        parts.extend(part.to_ndarray()[0] for part in resampler.resample(None))
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{path}: no audio that can be decoded: {' '.join(str(error).split())[:200]}") from error
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)

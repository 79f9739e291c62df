"""The one backend by which lhotse reads audio in this package.

By default lhotse tries what happens to be installed (ffmpeg, sph2pipe, torchaudio, torchcodec, audioread), so that the
same manifest gives other samples, or other errors, on another machine: where ffmpeg is installed, half a file loads in
silence. `use_backend` puts `TokenverseBackend` in its place for the process. The modules that read audio by lhotse call
it when they are imported, so that it is there in workers of a DataLoader too, forked or spawned.

What a user has chosen stays: the environment variable ``LHOTSE_AUDIO_BACKEND``, or a backend that was set by
`lhotse.audio.backend.set_current_audio_backend` (before or after). Then lhotse's checks are all there are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional, Set, Tuple

import numpy as np
from lhotse import AudioSource, Recording
from lhotse.audio import backend as lhotse_backends
from lhotse.audio.backend import LibsndfileBackend, LibsndfileCompatibleAudioInfo
from lhotse.audio.utils import AudioLoadingError
from lhotse.utils import compute_num_samples

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.audio.pyav import TOLERANCE
from tokenverse_pp.data.audio.reader import BAD_FRAMES, AudioInput

_told: Set[str] = set()  # files with frames that cannot be decoded, which are told of once


class DamagedAudio(UserError, AudioLoadingError):
    """Audio that is truncated or damaged: an error for the user here, and for lhotse one of loading."""


class TokenverseBackend(LibsndfileBackend):
    """Reads whatever `AudioInput` reads, a piece of it by seeking where libsndfile can; saves as libsndfile does.

    What is shorter than asked for raises `DamagedAudio` with both lengths; lhotse itself would pad up to half a second.
    """

    def read_audio(
        self,
        path_or_fd: Any,
        offset: float = 0.0,
        duration: Optional[float] = None,
        force_opus_sampling_rate: Optional[int] = None,
    ) -> Tuple[np.ndarray, int]:
        """Samples (C, S) as float32 and their rate; ``duration`` None reads to the end."""
        if _in_archive(path_or_fd):
            return super().read_audio(path_or_fd, offset, duration, force_opus_sampling_rate)
        with AudioInput(path_or_fd, _name(path_or_fd), thorough=duration is None) as audio:
            start = compute_num_samples(offset, audio.rate) if offset > 0 else 0
            stop = audio.frames if duration is None else start + compute_num_samples(duration, audio.rate)
            samples = audio.read(start, stop)
            if BAD_FRAMES in audio.problems and audio.name not in _told:
                _told.add(audio.name)
                audio.tell()
            # What PyAV decodes is measured by that; the others were by their structure.
            wrong = audio.damage or (audio.problems[0] if audio.by_pyav and stop is None and audio.problems else None)
            if wrong:
                raise DamagedAudio(f"{audio.name}: {wrong}")
            if stop is None or stop - start - samples.shape[1] <= TOLERANCE * audio.rate:
                return samples, audio.rate
            wrong = audio.why_short(start + samples.shape[1], stop)
        if audio.container == "flac" and duration is not None:
            # What is asked for may be in a second file that is joined to the first.
            whole, rate = self.read_audio(path_or_fd)
            if whole.shape[1] >= stop - TOLERANCE * rate:
                return whole[:, start:stop], rate
        raise DamagedAudio(f"{audio.name}: {wrong}")

    def info(self, path_or_fd: Any, force_opus_sampling_rate: Optional[int] = None) -> Any:
        """What lhotse makes a recording of; raises `DamagedAudio` for what is truncated or damaged."""
        if _in_archive(path_or_fd):
            return super().info(path_or_fd, force_opus_sampling_rate)
        with AudioInput(path_or_fd, _name(path_or_fd)) as audio:
            frames = audio.measure().frames or 0
            wrong = audio.damage or next(iter(audio.problems), None)
            if wrong:
                raise DamagedAudio(f"{audio.name}: {wrong}")
            return LibsndfileCompatibleAudioInfo(audio.channels, frames, audio.rate, frames / audio.rate)


def _in_archive(path: Any) -> bool:
    """Whether lhotse means a file in a tar archive."""
    return isinstance(path, (str, Path)) and ".tar/" in str(path)


def _name(path: Any) -> Optional[str]:
    return None if isinstance(path, (str, os.PathLike)) else "audio in memory"


def use_backend() -> None:
    """Have lhotse read audio by `TokenverseBackend`, unless the user has chosen another backend."""
    current = lhotse_backends.CURRENT_AUDIO_BACKEND
    if os.environ.get("LHOTSE_AUDIO_BACKEND") is not None:
        return
    # lhotse sets its own choice as soon as anything has been read.
    if current is None or current is lhotse_backends.get_default_audio_backend():
        lhotse_backends.set_current_audio_backend(TokenverseBackend())


def recording_of(audio: AudioInput, source: Any, name: str) -> Recording:
    """The recording of a file (a path) or of bytes that `AudioInput.measure` has measured."""
    frames = audio.frames or 0
    in_memory = isinstance(source, bytes)
    part = AudioSource(
        "memory" if in_memory else "file", list(range(audio.channels)), source if in_memory else str(source)
    )
    return Recording(name, [part], audio.rate, frames, frames / audio.rate)

"""lhotse's audio backend made of this package's reader, and checks that the audio of cuts exists and is intact.

By default lhotse tries the decoders that are installed (ffmpeg, sph2pipe, torchaudio, torchcodec, audioread), so the
same manifest gives different samples, or different errors, on another machine: where ffmpeg is installed, a truncated
file loads without an error. `use_backend` installs `TokenverseBackend` for the process. Modules that read audio through
lhotse call it when they are imported, so it is also active in DataLoader workers, forked or spawned.

A user's choice is kept: the environment variable ``LHOTSE_AUDIO_BACKEND``, or a backend set by
`lhotse.audio.backend.set_current_audio_backend` (before or after). Then only lhotse's own checks apply.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Iterator, List, Optional, Set, Tuple

import numpy as np
from lhotse import AudioSource, Recording
from lhotse.audio import backend as lhotse_backends
from lhotse.audio.backend import LibsndfileBackend, LibsndfileCompatibleAudioInfo
from lhotse.audio.utils import AudioLoadingError
from lhotse.cut import Cut, MixedCut
from lhotse.utils import compute_num_samples

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.access import access_problems
from tokenverse_pp.data.audio.pyav import TOLERANCE
from tokenverse_pp.data.audio.reader import BAD_FRAMES, AudioInput

_told: Set[str] = set()  # files with undecodable frames that were reported already


class DamagedAudio(UserError, AudioLoadingError):
    """Truncated or damaged audio: both a UserError and lhotse's AudioLoadingError."""


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
    """Make lhotse read audio with `TokenverseBackend`, unless the user has chosen another backend."""
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


LONGER = 0.5  # seconds that a file may be longer: lhotse loads no recording that differs by more

use_backend()


def check_audio(cut: Cut) -> List[str]:
    """Problems of a cut's audio, one line per problem with the file name. All audio is decoded.

    The length that is read, the one that the file's header states, and that of the manifest are compared.
    """
    problems = check_files(cut) or [problem for recording in _recordings(cut) for problem in _measure(recording)]
    if problems:
        return problems
    try:
        cut.load_audio()
    except Exception as error:  # audio backends raise errors of any type
        return [undecodable(cut, error)]
    return []


def check_files(cut: Cut) -> List[str]:
    """Problems of a cut's audio that its file headers show, and sources that may not be opened."""
    problems = access_problems(cut)
    if problems:
        return problems
    recordings = list(_recordings(cut))
    if not recordings:
        return ["field 'recording': expected a recording, found none"]
    return [problem for recording in recordings for problem in _check_files(recording)]


def undecodable(cut: Cut, error: Exception) -> str:
    """One line for what an audio backend threw: the user needs the file."""
    files = recording_files(cut)
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if "Exception #" in line), lines[0] if lines else repr(error)).strip()
    return f"field 'recording': {files}: cannot be decoded: {reason.replace(f'{files}: ', '', 1)[:200]}"


def _recordings(cut: Cut) -> Iterator[Recording]:
    if isinstance(cut, MixedCut):
        for track in cut.tracks:
            yield from _recordings(track.cut)
    elif getattr(cut, "recording", None) is not None:
        yield cut.recording


def recording_files(cut: Cut) -> str:
    """The audio files of a cut, for a message."""
    return ", ".join(str(s.source) for recording in _recordings(cut) for s in recording.sources if s.type == "file")


def _check_files(recording: Recording) -> Iterator[str]:
    """Files that are missing or shorter than in the manifest."""
    if not isinstance(recording.duration, (int, float)):
        yield f"field 'recording.duration': expected seconds, found {recording.duration!r}"
        return
    for source in recording.sources:
        if source.type != "file":
            continue
        where = f"field 'recording': {source.source}"
        if not os.path.isfile(str(source.source)):
            yield f"{where}: no such file"
            continue
        if not isinstance(source.channels, (list, tuple)):
            yield f"{where}: field 'channels': expected a list of numbers, found {source.channels!r}"
            continue
        try:
            rate, channels, frames = _header(str(source.source))
            if frames is not None and frames < (recording.duration - TOLERANCE) * rate:
                rate, channels, frames = _header(str(source.source), thorough=True)
        except UserError:
            continue  # decoding reports the reason
        if recording.transforms or frames is None:
            continue
        seconds = frames / rate
        if seconds < recording.duration - TOLERANCE:
            yield f"{where}: truncated: {seconds:.3f} s of {recording.duration:.3f} s"
        elif rate != recording.sampling_rate:
            yield f"{where}: has {rate} Hz, where the manifest says {recording.sampling_rate} Hz"
        elif channels < len(source.channels):
            yield f"{where}: has {channels} channels, where the manifest says {len(source.channels)}"


def _header(path: str, thorough: bool = False) -> Tuple[int, int, Optional[int]]:
    """Rate, channels and samples, as far as the structure of a file tells (raises UserError)."""
    with AudioInput(path, thorough=thorough) as audio:
        return audio.rate, audio.channels, audio.frames


def _measure(recording: Recording) -> Iterator[str]:
    """Files that are damaged, shorter than their header states, or of a different length than in the manifest."""
    for source in recording.sources:
        if source.type != "file":
            continue
        where = f"field 'recording': {source.source}"
        try:
            with AudioInput(str(source.source), thorough=True) as audio:
                audio.measure()
        except UserError as error:
            yield f"{where}: cannot be decoded: {str(error).replace(f'{source.source}: ', '', 1)}"
            continue
        problem = audio.damage or next(iter(audio.problems), None)
        seconds = (audio.frames or 0) / audio.rate
        if problem is not None:
            yield f"{where}: {problem}"
        elif not recording.transforms and seconds > recording.duration + LONGER:
            yield f"{where}: longer than the manifest says: {seconds:.3f} s, not {recording.duration:.3f} s"

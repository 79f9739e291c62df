"""Recordings as training wants them, 16 kHz and one channel; what is otherwise is written anew once, as FLAC."""

from __future__ import annotations

import contextlib
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Dict, Iterable, Iterator, Optional

import numpy as np
import soundfile
import torch
from lhotse.audio import Recording
from lhotse.augmentation import get_or_create_resampler
from tqdm import tqdm

from tokenverse_pp.audio.lhotse_backend import use_backend
from tokenverse_pp.dataset import SAMPLING_RATE
from tokenverse_pp.errors import UserError
from tokenverse_pp.files import replacing
from tokenverse_pp.manifests.access import check_access

use_backend()


def channel_name(number: int) -> str:
    """The name of a channel, counted from 0: a letter as for telephone calls, a number behind ``Z``.

    >>> channel_name(0), channel_name(2), channel_name(26)
    ('A', 'C', '27')
    """
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def at_16_khz(
    recordings: Iterable[Recording], folder: Path, jobs: int = 1, channel: Optional[int] = None
) -> Dict[str, Recording]:
    """Recordings by id, each 16 kHz and one channel: as they are, or written to ``folder``.

    Resampling at every step of training would cost more than the disk, and SPHERE files may need another program. A
    file that is there from an earlier run is taken as it is.

    Args:
        jobs: processes.
        channel: of a recording with several; None: their mean.

    Raises:
        UserError: naming a file that cannot be decoded.
    """
    folder = folder.absolute()
    kept: Dict[str, Recording] = {}
    others = []
    for recording in recordings:
        kept[recording.id] = recording
        if not _is_ready(recording):
            others.append(recording)
    if not others:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    convert = partial(write_16_khz, folder=folder, channel=channel)
    with contextlib.ExitStack() as stack:
        written: Iterator[Recording] = map(convert, others)
        if jobs > 1:
            # One thread each: OpenMP's threads of this process do not exist in a forked one.
            pool = stack.enter_context(ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)))
            written = pool.map(convert, others, chunksize=8)
        progress = tqdm(zip(others, written), total=len(others), desc=f"16 kHz {folder.name}", mininterval=1.0)
        kept.update((recording.id, new) for recording, new in progress)
    return kept


def _is_ready(recording: Recording) -> bool:
    sphere = any(str(source.source).lower().endswith((".sph", ".wv1")) for source in recording.sources)
    return recording.sampling_rate == SAMPLING_RATE and recording.num_channels == 1 and not sphere


def write_16_khz(
    recording: Recording, folder: Path, channel: Optional[int] = None, rate: int = SAMPLING_RATE
) -> Recording:
    """Write a recording as 16-bit FLAC -> the recording of that file, with the same id (``-A``, ``-B``, ..: a channel).

    Args:
        channel: from 0; None: the mean of all.
        rate: in Hz, of the file.

    Raises:
        UserError: naming a file that cannot be decoded.
    """
    suffix = "" if channel is None else f"-{channel_name(channel)}"
    path = folder / f"{recording.id}{suffix}.flac"
    if not path.is_file():
        with torch.inference_mode():
            samples = torch.from_numpy(_decode(recording, channel))
            if recording.sampling_rate != rate:
                samples = get_or_create_resampler(recording.sampling_rate, rate)(samples[None])[0]
        with replacing(path) as temporary:
            soundfile.write(temporary, samples.clamp(-1.0, 1.0).numpy(), rate, format="FLAC", subtype="PCM_16")
    return Recording.from_file(path, recording_id=f"{recording.id}{suffix}")


def _decode(recording: Recording, channel: Optional[int]) -> np.ndarray:
    """Samples (S,) of one channel, or the mean of all."""
    check_access(recording, f"recording {recording.id}")
    try:
        samples = recording.load_audio(channels=channel)
    except Exception as error:  # whatever the audio backend throws
        source = str(recording.sources[0].source)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{source}: cannot be decoded: {reason.replace(f'{source}: ', '', 1)}") from error
    return np.ascontiguousarray(samples.mean(axis=0), dtype=np.float32)

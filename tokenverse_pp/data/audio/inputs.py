"""Audio input: a path, bytes, an open file, an array, a recording or a cut, turned into a cut with a name."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, List, Mapping, Optional, Union

import numpy as np
import soundfile
import torch
from lhotse import CutSet, Recording
from lhotse.cut import Cut, MonoCut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.access import file_problem, recording_of
from tokenverse_pp.data.audio import AudioInput, check_whole
from tokenverse_pp.data.dataset import SAMPLING_RATE

LOUDEST = 100.0  # samples should be in [-1, 1]; larger values were not divided by 32768
MOST_CHANNELS = 64
SINGLE = (str, Path, bytes, bytearray, memoryview, np.ndarray, torch.Tensor, Mapping, Cut, Recording)


@dataclass(frozen=True)
class Heard:
    """Audio to transcribe: ``label`` for messages (its path, if it has one), ``name`` for results."""

    label: str
    name: str
    cut: Cut


@dataclass(frozen=True)
class Refused:
    """Audio that could not be transcribed, with the reason (one line that begins with ``label``)."""

    label: str
    reason: str


def is_single(audio: Any) -> bool:
    """Whether the input is a single recording.

    >>> is_single("a.wav"), is_single((np.zeros(8), 8000)), is_single(["a.wav", "b.wav"])
    (True, True, False)
    """
    return isinstance(audio, SINGLE) or _is_pair(audio) or hasattr(audio, "read")


def _is_pair(audio: Any) -> bool:
    """Whether the input is (samples, rate)."""
    if not (isinstance(audio, tuple) and len(audio) == 2 and isinstance(audio[0], (np.ndarray, torch.Tensor))):
        return False
    return isinstance(audio[1], (int, float, np.integer, np.floating))


def open_audio(audio: Any, sample_rate: Optional[float] = None, label: str = "audio", mix: bool = True) -> Heard:
    """Open one recording.

    Args:
        audio: a path, the bytes of a file, or an open binary file; an array or tensor of samples, alone, in a pair with
            their rate, or in a mapping (``array``, ``sampling_rate``); a lhotse cut or recording. Any rate is accepted.
        sample_rate: the rate of samples that come without one; None for 16 kHz.
        label: the name of audio without one.
        mix: average the channels; otherwise the cut has all of them, for `channels_of`.

    Raises:
        UserError: naming the file, if it is missing, empty, not audio, or damaged in the middle; also for invalid
            samples. A missing end of a file and gaps in its time stamps are logged as warnings.
    """
    if isinstance(audio, (str, Path)):
        return _open_file(Path(audio), mix)
    if isinstance(audio, Cut):
        return Heard(f"cut {audio.id}", audio.id, audio)
    if isinstance(audio, Recording):
        return Heard(f"recording {audio.id}", audio.id, audio.to_cut())
    if isinstance(audio, Mapping):
        return _open_mapping(audio, sample_rate, label, mix)
    if _is_pair(audio):
        return Heard(label, label, cut_of_samples(audio[0], audio[1], label, mix))
    if isinstance(audio, (np.ndarray, torch.Tensor)):
        rate = SAMPLING_RATE if sample_rate is None else sample_rate
        return Heard(label, label, cut_of_samples(audio, rate, label, mix))
    if hasattr(audio, "read"):
        audio = audio.read()
    if isinstance(audio, (bytes, bytearray, memoryview)):
        return Heard(label, label, _cut_of_source(bytes(audio), label, label, mix))
    raise UserError(f"{label}: expected a file, samples, bytes or a cut, got {type(audio).__name__}")


def channels_of(heard: Heard) -> List[Heard]:
    """Split a recording that was opened without ``mix`` into its channels, named ``NAME-1``, ``NAME-2``, ..

    >>> [item.name for item in channels_of(open_audio((np.zeros((2, 800)), 8000), label="call", mix=False))]
    ['call-1', 'call-2']
    """
    cut = heard.cut
    if cut.num_channels == 1:
        return [heard]
    found = []
    for channel in cut.channel:
        part = MonoCut(cut.id, cut.start, cut.duration, channel, recording=cut.recording)
        found.append(Heard(f"{heard.label}, channel {channel + 1}", f"{heard.name}-{channel + 1}", part))
    return found


def open_or_refuse(audio: Any, sample_rate: Optional[float] = None, number: int = 1) -> Union[Heard, Refused]:
    """Like `open_audio`, but return an error as `Refused`, so that it does not stop other recordings."""
    if isinstance(audio, (Heard, Refused)):
        return audio
    label = str(audio) if isinstance(audio, (str, Path)) else f"audio {number}"
    try:
        return open_audio(audio, sample_rate, label)
    except UserError as error:
        return Refused(label, str(error))


def several(audio: Any) -> Iterable[Any]:
    """Recordings from a list, an iterator or a CutSet (raises UserError for anything else)."""
    if isinstance(audio, CutSet) or (hasattr(audio, "__iter__") and not isinstance(audio, (int, float))):
        return audio
    raise UserError(f"audio: expected a file, samples, bytes, a cut, or several of these, got {type(audio).__name__}")


def _open_file(path: Path, mix: bool = True) -> Heard:
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected an audio file")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    regular = path.is_file()  # not a named pipe, which can be read only once
    try:
        source = path if regular else path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if file_problem(str(path)):
        raise UserError(file_problem(str(path)))
    return Heard(str(path), path.stem, _cut_of_source(source, str(path), path.stem, mix))


def _cut_of_source(source: Union[Path, bytes], label: str, name: str, mix: bool = True) -> Cut:
    """Return a file or its bytes as a cut of the length that can be read.

    A source in which libsndfile can seek is decoded later, a window at a time. One that only PyAV reads, or whose
    truncated end stops the decoder, is decoded into memory here.
    """
    with AudioInput(source, label, thorough=True, rate=SAMPLING_RATE if mix else None) as audio:
        samples = None
        if not audio.by_pyav:
            audio.measure()
        if audio.by_pyav or (audio.problems and audio.container == "flac"):
            samples = audio.samples(mix)
        check_whole(audio)
        if not audio.frames:
            raise UserError(f"{label}: {audio.problems[0] if audio.problems else 'holds no samples'}")
        audio.tell()
        if samples is not None:
            return cut_of_samples(samples, audio.rate, label, mix)
        return recording_of(audio, source, name).to_cut()


def _open_mapping(audio: Mapping[str, Any], sample_rate: Optional[float], label: str, mix: bool) -> Heard:
    """An entry of an audio column of Hugging Face's ``datasets``."""
    if audio.get("array") is None and audio.get("path") is not None:
        return _open_file(Path(audio["path"]), mix)
    if audio.get("array") is None:
        raise UserError(
            f"{label}: expected 'array' and 'sampling_rate', found {', '.join(map(str, audio)) or 'nothing'}"
        )
    rate = next(x for x in (audio.get("sampling_rate"), sample_rate, SAMPLING_RATE) if x is not None)
    name = Path(audio["path"]).stem if audio.get("path") else label
    return Heard(label, name, cut_of_samples(np.asarray(audio["array"]), rate, label, mix))


def cut_of_samples(samples: Any, rate: float, label: str, mix: bool = True) -> Cut:
    """Return samples (S,), (C, S) or (S, C) as a cut in memory; integers are scaled to [-1, 1].

    With ``mix`` the channels are averaged.

    Raises:
        UserError: if there are no samples, they are not finite, far from [-1, 1] or of another shape.
    """
    try:
        hertz = float(rate)
    except (TypeError, ValueError):
        hertz = 0.0
    if not 1 <= hertz <= 1e6 or hertz != int(hertz):
        raise UserError(f"{label}: expected a sample rate in Hz, got {rate!r}")
    array = samples.detach().cpu().numpy() if isinstance(samples, torch.Tensor) else np.asarray(samples)
    if array.dtype.kind == "i":
        array = array.astype(np.float32) / -float(np.iinfo(array.dtype).min)
    elif array.dtype == np.uint8:
        array = (array.astype(np.float32) - 128) / 128
    if array.dtype.kind != "f" or array.ndim not in (1, 2) or (array.ndim == 2 and min(array.shape) > MOST_CHANNELS):
        shape = f"{array.dtype} of shape {tuple(array.shape)}"
        raise UserError(f"{label}: expected samples (S,), (channels, S) or (S, channels), got {shape}")
    if array.size == 0:
        raise UserError(f"{label}: holds no samples")
    if array.ndim == 2:
        shorter = int(np.argmin(array.shape))
        array = array.mean(axis=shorter) if mix else np.moveaxis(array, shorter, 1)
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{label}: holds samples of NaN or infinity")
    if np.abs(array).max() > LOUDEST:
        raise UserError(f"{label}: expected samples in [-1, 1], found {np.abs(array).max():g}; divide by 32768?")
    memory = io.BytesIO()
    soundfile.write(memory, array, int(hertz), format="WAV", subtype="FLOAT")
    # libsndfile writes the time into the PEAK chunk, but the same samples must give the same bytes (`batch_digest`).
    peak = bytes(memory.getbuffer()[:256]).find(b"PEAK")
    if peak > 0:
        memory.getbuffer()[peak + 12 : peak + 16] = bytes(4)
    return Recording.from_bytes(memory.getvalue(), "samples").to_cut()

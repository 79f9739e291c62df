"""Decodes the packages' recordings to 16 kHz mono, trims their silent edges, and writes FLAC.

Turns examples into FLAC files and lhotse cuts, on several processes, in a fixed order.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, List, Sequence, Tuple

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from corpus.clips import Clip, Example
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import replacing

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


@dataclass(frozen=True)
class Rendered:
    """A written example: its file, its length, and `(start, length)` of every turn, all in samples."""

    example: Example
    path: str
    samples: int
    turns: Tuple[Tuple[int, int], ...]


def clip_file(clip: Clip, folder: Path) -> Path:
    """Where the decoded samples of a clip are kept while the corpus is prepared."""
    return folder / f"{clip.id}.npy"


def decode_clip(clip: Clip, folder: Path) -> float:
    """Decodes and trims a clip into `folder` (unless it is there) and returns its length in seconds."""
    file = clip_file(clip, folder)
    if not file.is_file():
        samples = trim_silence(decode(clip.path))
        with replacing(file) as aside, open(aside, "wb") as sink:
            np.save(sink, (np.clip(samples, -1.0, 1.0) * 32767.0).astype(np.int16))
    return len(np.load(file, mmap_mode="r")) / SAMPLE_RATE


def mix(example: Example, load: Callable[[Clip], np.ndarray]) -> Tuple[np.ndarray, List[Tuple[int, int]]]:
    """The samples `(T,)` of an example, and start and length of every turn in samples."""
    pieces: List[np.ndarray] = []
    spans: List[Tuple[int, int]] = []
    position = 0
    for number, turn in enumerate(example.turns):
        if number:
            pieces.append(_pause(example.gaps[number - 1]))
            position += len(pieces[-1])
        start = position
        for place, clip in enumerate(turn.clips):
            if place:
                pieces.append(_pause(turn.gaps[place - 1]))
                position += len(pieces[-1])
            pieces.append(load(clip))
            position += len(pieces[-1])
        spans.append((start, position - start))
    samples = change_speed(np.concatenate(pieces), example.speed)
    ratio = len(samples) / position
    edges = [(int(start * ratio), int((start + length) * ratio)) for start, length in spans]
    return samples, [(start, end - start) for start, end in edges]


def _pause(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def render_example(example: Example, clips_dir: Path, audio_dir: Path) -> Rendered:
    """Writes the FLAC of an example to `audio_dir/<corpus>/<language>/<id>.flac`."""

    def load(clip: Clip) -> np.ndarray:
        return np.load(clip_file(clip, clips_dir)).astype(np.float32) / 32767.0

    samples, spans = mix(example, load)
    path = audio_dir / example.corpus / example.language / f"{example.id}.flac"
    write_flac(path, samples)
    return Rendered(example, str(path), len(samples), tuple(spans))


def to_cut(rendered: Rendered) -> Any:
    """The lhotse MonoCut of a written example, labelled after the schema of `tokenverse_pp.data.labels`."""
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

    example = rendered.example
    seconds = rendered.samples / SAMPLE_RATE
    recording = Recording(
        id=example.id,
        sources=[AudioSource(type="file", channels=[0], source=rendered.path)],
        sampling_rate=SAMPLE_RATE,
        num_samples=rendered.samples,
        duration=seconds,
    )
    supervisions = []
    for number, (turn, (start, length)) in enumerate(zip(example.turns, rendered.turns)):
        custom: dict = {"clips": [clip.id for clip in turn.clips]}
        if "ner" in example.tasks:
            custom["entities"] = [{"start": s, "end": e, "type": kind} for s, e, kind in turn.entities or ()]
        if "endp" in example.tasks:
            custom["endpoint"] = bool(turn.endpoint)
        if "punct" in example.tasks:
            custom["written"] = turn.written
        supervisions.append(
            SupervisionSegment(
                id=f"{example.id}-{number}",
                recording_id=example.id,
                start=start / SAMPLE_RATE,
                duration=length / SAMPLE_RATE,
                channel=0,
                text=turn.text,
                language=example.language,
                speaker=turn.speaker,
                custom=custom,
            )
        )
    custom = {"tasks": list(example.tasks), "corpus": example.corpus, "speed": example.speed}
    return MonoCut(
        id=example.id,
        start=0,
        duration=seconds,
        channel=0,
        recording=recording,
        supervisions=supervisions,
        custom=custom,
    )


class Call:
    """A function with its trailing arguments fixed, which can be sent to another process."""

    def __init__(self, function: Callable, *rest: Any):
        self.function = function
        self.rest = rest

    def __call__(self, item: Any) -> Any:
        """Calls the function."""
        return self.function(item, *self.rest)


def run_all(call: Callable, items: Sequence[Any], jobs: int, title: str) -> List[Any]:
    """`[call(item) for item in items]` on `jobs` processes with a progress bar; the order is that of `items`."""

    def results() -> Iterator[Any]:
        if jobs <= 1:
            yield from map(call, items)
            return
        with ProcessPoolExecutor(jobs) as pool:
            yield from pool.map(call, items, chunksize=16)

    return list(tqdm(results(), total=len(items), desc=title, mininterval=1.0))

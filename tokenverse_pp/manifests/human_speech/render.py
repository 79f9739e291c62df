"""Turns examples into FLAC files and lhotse cuts, on several processes, in a fixed order."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, List, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from tokenverse_pp.files import replacing
from tokenverse_pp.manifests.human_speech.audio import SAMPLE_RATE, change_speed, decode, trim_silence, write_flac
from tokenverse_pp.manifests.human_speech.clips import Clip, Example


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
    """The lhotse MonoCut of a written example, labelled after the schema of `tokenverse_pp.manifests`."""
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

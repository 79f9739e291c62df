"""How well and how soon a model's endpoint probabilities distinguish the end of a turn from a pause inside it.

Each turn that is labelled as complete is a clip of its own, followed by `SILENCE` seconds of silence, like the rows of
eot-bench (`tokenverse_pp.metrics.endpoints`). The pauses inside are those between words, if the corpus has word times
(``alignment["word"]`` of the supervision), else those that silero-vad detects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from lhotse.cut import Cut

from tokenverse_pp.base.errors import UserError, needing
from tokenverse_pp.base.files import aligned
from tokenverse_pp.base.options import DecodeOptions, StreamingOptions
from tokenverse_pp.data.access import check_access
from tokenverse_pp.data.dataset import SAMPLING_RATE, collate, load_inputs
from tokenverse_pp.data.labels import labelled_tasks
from tokenverse_pp.decoding.recognizer import NOT_FINITE, Recognizer
from tokenverse_pp.decoding.streaming.transcriber import StreamingTranscriber
from tokenverse_pp.metrics.endpoints import (
    BUDGETS,
    THRESHOLDS,
    OperatingPoint,
    ScoredPause,
    best_within,
    operating_points,
    silence_points,
)
from tokenverse_pp.models.bundle import ModelBundle

SILENCE = 2.0  # seconds after each turn
SHORTEST, LONGEST = 0.2, 5.0  # seconds of the pauses inside turns that count, as in eot-bench
VAD_SAMPLES = 512  # a window of silero-vad at 16 kHz: 32 ms
VAD_THRESHOLD = 0.5  # its default
TOGETHER = 16  # turns that are decoded at once
Span = Tuple[float, float]


class SileroVad:
    """silero-vad through onnxruntime (raises UserError if silero-vad is not installed)."""

    def __init__(self) -> None:
        with needing("turns without word times need silero_vad", "endpoints"):
            from silero_vad import load_silero_vad
        self.model = load_silero_vad(onnx=True)

    def probabilities(self, audio: np.ndarray) -> np.ndarray:
        """Audio (S,) at 16 kHz -> probabilities (ceil(S / 512),) of speech in each 32 ms."""
        padded = np.pad(audio, (0, -len(audio) % VAD_SAMPLES))
        self.model.reset_states()
        windows = torch.from_numpy(padded).view(-1, VAD_SAMPLES)
        return np.array([self.model(window, SAMPLING_RATE).item() for window in windows])


def silences(probabilities: Union[Sequence[float], np.ndarray]) -> List[Span]:
    """Return the stretches without speech between stretches of speech, in seconds.

    >>> silences([0.1, 0.9, 0.2, 0.3, 0.8, 0.1])
    [(0.064, 0.128)]
    """
    speech = np.flatnonzero(np.asarray(probabilities) >= VAD_THRESHOLD)
    step = VAD_SAMPLES / SAMPLING_RATE
    return [(round((a + 1) * step, 3), round(b * step, 3)) for a, b in zip(speech, speech[1:]) if b > a + 1]


@dataclass(frozen=True)
class TurnClip:
    """A complete turn, followed by silence.

    Args:
        name: id of the supervision.
        audio: (S,) float32 at 16 kHz.
        speech_end: second at which the last pause begins.
        inner: start and end of each pause before it, in seconds.
    """

    name: str
    audio: torch.Tensor
    speech_end: float
    inner: Tuple[Span, ...]


def turns_of(cuts: Iterable[Cut], vad: Optional[SileroVad] = None) -> List[TurnClip]:
    """Return the complete turns of cuts that are labelled for ``endp``.

    Args:
        cuts: labelled cuts; a turn is a supervision whose custom field ``endpoint`` is true.
        vad: for turns without word times; None: silero-vad.

    Raises:
        UserError: for audio that cannot be read, and if silero-vad is needed but not installed.
    """
    turns = []
    for cut in cuts:
        if "endp" not in labelled_tasks(cut):
            continue
        check_access(cut)
        for turn in cut.supervisions:
            if not (turn.custom or {}).get("endpoint"):
                continue
            first = max(0.0, turn.start)
            duration = min(turn.end, cut.duration) - first
            part = cut.truncate(offset=first, duration=duration, preserve_id=True)
            audio = load_inputs(part, convert=True)
            words = (turn.alignment or {}).get("word")
            if words:
                times = [(word.start - first, word.end - first) for word in words]
                pauses = [(a[1], b[0]) for a, b in zip(times, times[1:])]
                end = times[-1][1]
            else:
                vad = vad or SileroVad()
                speech = vad.probabilities(audio.numpy())
                pauses = silences(speech)
                heard = np.flatnonzero(speech >= VAD_THRESHOLD)
                if not len(heard):
                    continue
                end = min((int(heard[-1]) + 1) * VAD_SAMPLES / SAMPLING_RATE, duration)
            inner = tuple(span for span in pauses if SHORTEST - 1e-6 <= span[1] - span[0] <= LONGEST)
            silent = torch.nn.functional.pad(audio, (0, round(SILENCE * SAMPLING_RATE)))
            turns.append(TurnClip(turn.id, silent, end, inner))
    return turns


Track = Tuple[List[float], List[float]]  # times at which a probability became known, and the probabilities


def stream_tracks(loaded: ModelBundle, turns: Sequence[TurnClip], options: StreamingOptions) -> List[Track]:
    """Return the endpoint probabilities of each turn after each chunk of streaming decoding; 0 outside pauses."""
    transcriber = StreamingTranscriber(loaded, options)
    size = transcriber.encoder.chunk_samples
    tracks: List[Track] = []
    for first in range(0, len(turns), TOGETHER):
        group = turns[first : first + TOGETHER]
        streams = [transcriber.open(pauses=True) for _ in group]
        told: List[Track] = [([], []) for _ in group]
        for start in range(0, max(len(turn.audio) for turn in group), size):
            going = [i for i, turn in enumerate(group) if start + size <= len(turn.audio)]
            transcriber.push_many([(streams[i], group[i].audio[start : start + size]) for i in going])
            for i in going:
                told[i][0].append(streams[i].seconds)
                told[i][1].append(streams[i].pause or 0.0)
        tracks += told
    return tracks


def batch_tracks(loaded: ModelBundle, turns: Sequence[TurnClip], options: DecodeOptions) -> List[Track]:
    """Return the probabilities of each frame in batch decoding.

    With full context it sees the rest of the clip, so it is not causal.
    """
    recognizer = Recognizer(loaded, options)
    reader = recognizer.pause_reader
    if reader is None:
        raise UserError("the model does not know the task 'endp'")
    tracks: List[Track] = []
    for first in range(0, len(turns), TOGETHER):
        inputs, lens = collate([turn.audio for turn in turns[first : first + TOGETHER]])
        weights = recognizer.weights.expand(len(inputs), -1)
        out, lens = recognizer.encode(inputs, lens, weights, False, options.chunks)
        found = recognizer.search(out, lens)
        if None in found:
            raise UserError(NOT_FINITE)
        for curve in reader.read(out.float(), lens.tolist(), [best[0] for best in found if best is not None]):
            tracks.append((((np.arange(len(curve)) + 1) * recognizer.shift).tolist(), curve.tolist()))
    return tracks


def scored_pauses(turns: Sequence[TurnClip], tracks: Sequence[Track]) -> List[ScoredPause]:
    """Return the pauses of all turns, each with the probabilities during it and the last one before it."""
    found = []
    for turn, (times, scores) in zip(turns, tracks):
        end = len(turn.audio) / SAMPLING_RATE
        spans = [(a, b, False) for a, b in turn.inner] + [(turn.speech_end, end, True)]
        for start, stop, is_end in spans:
            first = max(0, int(np.searchsorted(times, start, side="right")) - 1)
            last = int(np.searchsorted(times, stop, side="right"))
            shifted = tuple(time - start for time in times[first:last])
            found.append(
                ScoredPause(shifted, tuple(scores[first:last]), is_end, float("inf") if is_end else stop - start)
            )
    return found


def share_cut_off(turns: Sequence[TurnClip], tracks: Sequence[Track], threshold: float) -> float:
    """The share of turns in which the probability reaches the threshold anywhere before speech ends.

    Besides the pauses that count, this includes short ones, and words that the model wrote late.
    """
    early = [
        any(score >= threshold and time < turn.speech_end for time, score in zip(*track))
        for turn, track in zip(turns, tracks)
    ]
    return sum(early) / len(early)


@dataclass(frozen=True)
class EndpointScores:
    """The curves of a model and of silence of a fixed length on the same pauses.

    Args:
        alone: points of the policies "the probability is at least a threshold".
        gated: "and the pause has lasted so many seconds", which needs a voice activity detector.
        silence: "the pause has lasted so many seconds".
        ends: number of true ends of turns. inner: number of pauses inside turns.
    """

    alone: List[OperatingPoint]
    gated: List[OperatingPoint]
    silence: List[OperatingPoint]
    ends: int
    inner: int

    def as_dict(self) -> Dict[str, Any]:
        """For JSON: the lowest rate of false cut-offs of each policy by median latency in milliseconds."""
        columns = {"probability": self.alone, "probability_and_silence": self.gated, "silence": self.silence}
        rows = {}
        for budget in BUDGETS:
            rates = {name: best_within(points, budget).false_cutoffs for name, points in columns.items()}
            rows[f"{1000 * budget:.0f}"] = rates
        return {"ends": self.ends, "inner_pauses": self.inner, "false_cutoffs_at_ms": rows}


def endpoint_scores(pauses: Sequence[ScoredPause]) -> EndpointScores:
    """Return the curves of some pauses (raises UserError unless both kinds occur)."""
    ends = sum(pause.is_end for pause in pauses)
    if not 0 < ends < len(pauses):
        raise UserError(
            f"expected complete turns (endpoint: true) with pauses of {SHORTEST:g} s or more inside some of them; "
            f"found {ends} ends and {len(pauses) - ends} pauses"
        )
    return EndpointScores(
        operating_points(pauses, THRESHOLDS, (0.0,)),
        operating_points(pauses),
        silence_points(pauses),
        ends,
        len(pauses) - ends,
    )


def endpoint_table(scores: EndpointScores) -> str:
    """Format the lowest rate of false cut-offs at each median latency."""
    rows = [["median latency", "probability", "threshold", "with silence", "silence alone"]]
    for budget in BUDGETS:
        best = best_within(scores.alone, budget)
        rates = [f"{100 * best_within(p, budget).false_cutoffs:.1f}" for p in (scores.gated, scores.silence)]
        rows.append([f"{1000 * budget:.0f} ms", f"{100 * best.false_cutoffs:.1f}", f"{best.threshold:.2f}", *rates])
    head = f"false cut-offs in % of {scores.inner} pauses inside turns; {scores.ends} ends of turns"
    return f"{head}\n{aligned(rows)}"


def fitted_table(
    fitted: Mapping[int, float], scores: EndpointScores, turns: Sequence[TurnClip], tracks: Sequence[Track]
) -> str:
    """Format the results of thresholds that were fitted on other speech; the last column is `share_cut_off`."""
    rows = [["fitted for", "threshold", "false cut-offs %", "median latency", "turns cut off %"]]
    for latency, threshold in fitted.items():
        point = min(scores.alone, key=lambda p: abs(p.threshold - threshold))
        middle, early = f"{1000 * point.median_latency:.0f} ms", share_cut_off(turns, tracks, threshold)
        rows.append(
            [f"{latency} ms", f"{threshold:.2f}", f"{100 * point.false_cutoffs:.1f}", middle, f"{100 * early:.1f}"]
        )
    return aligned(rows)

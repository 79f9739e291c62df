"""LiveKit's eot-bench: false cut-offs against latency, by its own policy and grid (github.com/livekit/eot-bench).

A row of its data is one turn of a user with every silence in it (``silence_spans``). The last one is the end of the
turn, the others are pauses at which an agent should wait. A detector gives each silence a probability every 0.1 s. A
policy of ``threshold``, ``action_delay`` and ``timeout`` (seconds) fires at the first probability *above* the
threshold, but not before ``action_delay``, and in any case after ``timeout``. The probability may have fallen again by
then: that is the difference to `tokenverse_pp.metrics.endpoints`, where a score has to hold.

- false cut-offs: the share of pauses of 0.2 to 5 s that last longer than it takes the policy to fire;
- latency: from the end of speech to the firing, averaged over the ends of turns; not the time of computing.

The board shows the least rate of false cut-offs with a mean latency of at most 300 and 600 ms, and the least mean
latency with at most 5% and 10% of false cut-offs, over all policies of a grid, and the same of silence alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.base.files import aligned, is_finite, json_of, replacing
from tokenverse_pp.data.audio.inputs import open_audio
from tokenverse_pp.data.dataset import SAMPLING_RATE, load_inputs
from tokenverse_pp.data.lines import text_lines
from tokenverse_pp.evaluation.endpoints import Track, TurnClip

# Grids and limits of eot_harness/metrics.py, seconds.
THRESHOLDS = np.round(np.arange(0.0, 1.01, 0.01), 2)
ACTION_DELAYS = np.round(np.arange(0.2, 1.01, 0.1), 2)
TIMEOUTS = np.round(np.arange(1.0, 3.51, 0.5), 2)
SHORTEST, LONGEST = 0.2, 5.0  # of the pauses that count
SHORTEST_SPAN = 0.1  # silences below get no prediction
INTERVAL = 0.1  # between two predictions
SILENCE_STEP = 0.01  # of the grid of silence alone
LATENCIES, CUTOFFS = (0.3, 0.6), (0.05, 0.10)  # budgets
EPS = 1e-9
HOLD, EOT = "hold", "eot"
COLUMNS = ("id", "span_index", "timestamp", "silence_dur", "p_eot", "label")


@dataclass(frozen=True)
class Silence:
    """One silence with its predictions.

    Args:
        row: id of the turn. index: of the silence in it.
        label: `HOLD` or `EOT`.
        times: seconds of silence at each prediction, in order; the last is the length of the silence.
        scores: the probability that the turn is over.
        start: seconds from the start of the turn.
    """

    row: str
    index: int
    label: str
    times: Tuple[float, ...]
    scores: Tuple[float, ...]
    start: float = 0.0

    @property
    def duration(self) -> float:
        """Seconds, as far as it was predicted for."""
        return self.times[-1]


def time_grid(length: float) -> List[float]:
    """Seconds of silence at which a silence of this length gets a prediction: every `INTERVAL`, and at its end.

    >>> time_grid(0.25)
    [0.0, 0.1, 0.2, 0.25]
    """
    grid = [round(i * INTERVAL, 6) for i in range(math.floor(length / INTERVAL + 1e-6) + 1)]
    return [*grid, round(length, 6)] if grid[-1] < length - 1e-6 else grid


def silences_of(turns: Sequence[TurnClip], tracks: Sequence[Track]) -> List[Silence]:
    """The silences of turns with what a stream said of them.

    As eot-bench reads the events of a streaming service: within a silence the score is 0 until something is said.

    Args:
        turns: with their pauses, and the end of speech.
        tracks: of each turn the seconds at which a probability became known, and the probabilities.
    """
    found = []
    for turn, (times, scores) in zip(turns, tracks):
        spans = [*turn.inner, (turn.speech_end, len(turn.audio) / SAMPLING_RATE)]
        for index, (start, stop) in enumerate(spans):
            if stop - start < SHORTEST_SPAN - 1e-6:
                continue
            first = int(np.searchsorted(times, start - 1e-6))
            grid = time_grid(stop - start)
            last = [int(np.searchsorted(times, start + at + 1e-6, side="right")) for at in grid]
            told = tuple(scores[i - 1] if i > first else 0.0 for i in last)
            label = EOT if index == len(spans) - 1 else HOLD
            found.append(Silence(turn.name, index, label, tuple(grid), told, start))
    return found


def turns_of_data(paths: Sequence[Path]) -> Tuple[List[TurnClip], Dict[str, str]]:
    """The rows of eot-bench's data (Parquet files: id, language, audio, silence_spans), and their languages by id.

    Args:
        paths: files, or folders of files at any depth.

    Raises:
        UserError: for a file that is none of this kind, audio that cannot be read, and a row that is there twice.
    """
    turns: Dict[str, TurnClip] = {}
    languages: Dict[str, str] = {}
    for path in paths:
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"--data {path}: no Parquet file in this folder")
        for file in files:
            for row in _parquet_rows(file, ("id", "language", "audio", "silence_spans")):
                name, spans = str(row["id"]), row["silence_spans"] or []
                if name in turns:
                    raise UserError(
                        f"{file}: turn {name}: it is there twice; give --data the files of one configuration"
                    )
                if not spans or not all(is_finite(span.get(key)) for span in spans for key in ("start", "end")):
                    raise UserError(f"{file}: turn {name}: expected silence_spans with start and end in seconds")
                data = (row["audio"] or {}).get("bytes")
                if data is None:
                    raise UserError(f"{file}: turn {name}: expected audio with its bytes")
                audio = load_inputs(open_audio(data, label=f"{file}: turn {name}").cut, convert=True)
                ends = [(float(span["start"]), float(span["end"])) for span in spans]
                turns[name] = TurnClip(name, audio, ends[-1][0], tuple(ends[:-1]))
                languages[name] = str(row["language"])
    return list(turns.values()), languages


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Dict[str, Any]]:
    """The rows of a Parquet file (raises UserError for another file, or one without the columns)."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'tokenverse_pp[scoreboards]'") from error
    try:
        file = parquet.ParquetFile(path)
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise UserError(f"{path}: expected the columns {', '.join(columns)}; {', '.join(missing)} is not there")
        for batch in file.iter_batches(batch_size=64, columns=list(columns)):
            yield from batch.to_pylist()
    except ArrowException as error:
        raise UserError(f"{path}: expected a Parquet file ({one_line(error)})") from error


def write_predictions(path: Path, silences: Sequence[Silence], languages: Mapping[str, str]) -> None:
    """Write the ``predictions.parquet`` of eot-bench's harness, whose ``compute-metrics`` takes it."""
    try:
        from pyarrow import Table, parquet
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'tokenverse_pp[scoreboards]'") from error
    with replacing(path) as aside:
        parquet.write_table(Table.from_pylist(list(rows_of(silences, languages))), aside)


def rows_of(silences: Sequence[Silence], languages: Mapping[str, str]) -> Iterator[Dict[str, Any]]:
    """Predictions as eot-bench's harness takes them (its ``predictions.parquet``), languages by turn where known."""
    for silence in silences:
        for time, score in zip(silence.times, silence.scores):
            yield {
                "id": silence.row,
                **({"language": languages[silence.row]} if silence.row in languages else {}),
                "span_index": silence.index,
                "timestamp": round(silence.start + time, 6),
                "silence_dur": time,
                "p_eot": float(score),
                "label": silence.label,
            }


def read_predictions(path: Path) -> List[Silence]:
    """Predictions of any detector: eot-bench's ``predictions.parquet``, or JSON lines with the same fields.

    Raises:
        UserError: for a file without these columns, or a silence whose label changes.
    """
    if path.suffix == ".parquet":
        rows = list(_parquet_rows(path, COLUMNS))
    else:
        lines = text_lines(path, "predictions")
        rows = [json_of(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    for number, row in enumerate(rows, 1):
        missing = [name for name in COLUMNS if not isinstance(row, dict) or row.get(name) is None]
        if missing or row["label"] not in (HOLD, EOT) or not all(map(is_finite, (row["silence_dur"], row["p_eot"]))):
            fields = ", ".join(COLUMNS)
            raise UserError(
                f"{path}: prediction {number}: expected {fields}, label {HOLD} or {EOT}, numbers that are finite"
            )
    rows.sort(key=lambda row: (str(row["id"]), row["span_index"], row["silence_dur"], row["timestamp"]))
    found = []
    for (name, index), group in groupby(rows, key=lambda row: (str(row["id"]), row["span_index"])):
        of_span = list(group)
        if len({row["label"] for row in of_span}) > 1:
            raise UserError(f"{path}: turn {name}, silence {index}: it is labelled both {HOLD} and {EOT}")
        times, scores = (tuple(float(row[key]) for row in of_span) for key in ("silence_dur", "p_eot"))
        start = of_span[0]["timestamp"] - times[0]
        found.append(Silence(name, index, of_span[0]["label"], times, scores, start))
    return found


def counted(silences: Sequence[Silence]) -> List[Silence]:
    """Those that count: all ends of turns, and pauses of `SHORTEST` to `LONGEST` seconds.

    Raises:
        UserError: where there are none of either kind.
    """
    found = [s for s in silences if s.label == EOT or SHORTEST - EPS <= s.duration <= LONGEST + EPS]
    ends = sum(silence.label == EOT for silence in found)
    if not 0 < ends < len(found):
        raise UserError(
            f"expected ends of turns and pauses of {SHORTEST:g} to {LONGEST:g} s inside them; found {ends} ends and "
            f"{len(found) - ends} pauses"
        )
    return found


def crossings(silences: Sequence[Silence], thresholds: np.ndarray, score_point: Optional[float] = None) -> np.ndarray:
    """Seconds of silence at the first score above each threshold, infinite where there is none: (thresholds, silences).

    Args:
        score_point: only the score at this time counts, as for eot-bench's adapters of batch models.

    Raises:
        UserError: for an end of a turn without a score at that time.
    """
    found = np.full((len(thresholds), len(silences)), math.inf)
    for n, silence in enumerate(silences):
        times, scores = np.array(silence.times), np.array(silence.scores)
        if score_point is not None:
            here = np.isclose(times, score_point, atol=EPS)
            if silence.label == EOT and not here.any():
                raise UserError(f"turn {silence.row}, silence {silence.index}: no score at {score_point:g} s")
            times, scores = times[here], scores[here]
        above = scores[None, :] > thresholds[:, None]
        found[:, n] = np.where(above, times, math.inf).min(axis=1, initial=math.inf)
    return found


@dataclass(frozen=True)
class Policies:
    """What the policies of a grid do: arrays of one length.

    Args:
        settings: threshold, action delay, timeout of each; (policies, 3).
        cutoffs: rates of false cut-offs.
        latencies: mean latencies in seconds.
    """

    settings: np.ndarray
    cutoffs: np.ndarray
    latencies: np.ndarray

    def least(self, of: str, budget: float) -> Optional[Dict[str, float]]:
        """The policy of the fewest ``cutoffs`` or ``latencies`` among those within the budget of the other, or None."""
        wanted, bound = (self.cutoffs, self.latencies) if of == "cutoffs" else (self.latencies, self.cutoffs)
        within = np.flatnonzero(bound <= budget + EPS)
        if not len(within):
            return None
        best = min(within.tolist(), key=lambda i: (wanted[i], bound[i]))
        rates = {"false_cutoffs": float(self.cutoffs[best]), "mean_latency": float(self.latencies[best])}
        return {**rates, **dict(zip(("threshold", "action_delay", "timeout"), self.settings[best].tolist()))}


def sweep(
    silences: Sequence[Silence],
    score_point: Optional[float] = None,
    thresholds: Sequence[float] = tuple(THRESHOLDS),
    action_delays: Sequence[float] = tuple(ACTION_DELAYS),
    timeouts: Sequence[float] = tuple(TIMEOUTS),
) -> Policies:
    """All policies of the grid whose timeout is not before the action delay (nor that before the score point)."""
    is_end = np.array([silence.label == EOT for silence in silences])
    lengths = np.array([silence.duration for silence in silences])[~is_end]
    fired = crossings(silences, np.asarray(thresholds, dtype=float), score_point)
    settings, cutoffs, latencies = [], [], []
    for delay in action_delays:
        if score_point is not None and delay < score_point - EPS:
            continue
        at = np.maximum(fired, delay)
        for timeout in timeouts:
            if timeout < delay - EPS:
                continue
            cut = (lengths > at[:, ~is_end] + EPS) | (lengths > timeout + EPS)
            waited = np.where(at[:, is_end] <= timeout + EPS, at[:, is_end], timeout)
            settings += [(float(threshold), float(delay), float(timeout)) for threshold in thresholds]
            cutoffs.append(cut.mean(axis=1))
            latencies.append(waited.mean(axis=1))
    if not settings:
        raise UserError("no policy of the grid has its action delay at the score point or after it")
    return Policies(np.array(settings), np.concatenate(cutoffs), np.concatenate(latencies))


def silence_alone(silences: Sequence[Silence]) -> Policies:
    """The detector that fires after a fixed length of silence: the board's "VAD baseline" (threshold 0: any score)."""
    lengths = np.array([silence.duration for silence in silences if silence.label == HOLD])
    delays = np.round(np.arange(SHORTEST, LONGEST + SILENCE_STEP / 2, SILENCE_STEP), 6)
    cutoffs = (lengths[None, :] > delays[:, None] + EPS).mean(axis=1)
    return Policies(np.stack([np.zeros(len(delays)), delays, delays], axis=1), cutoffs, delays)


def bench_scores(silences: Sequence[Silence], score_point: Optional[float] = None) -> Dict[str, Any]:
    """The board's four numbers with their policies, of the detector and of silence alone; None: no policy is within."""
    used = counted(silences)
    found: Dict[str, Any] = {}
    for name, policies in (("detector", sweep(used, score_point)), ("silence", silence_alone(used))):
        points = {f"false_cutoffs_at_{1000 * b:.0f}_ms": policies.least("cutoffs", b) for b in LATENCIES}
        points.update({f"latency_at_{100 * b:.0f}_percent": policies.least("latencies", b) for b in CUTOFFS})
        found[name] = points
    ends = sum(silence.label == EOT for silence in used)
    return {**found, "turns": ends, "pauses": len(used) - ends}


def bench_table(scores: Mapping[str, Any], title: str) -> str:
    """The board's columns for the detector and for silence alone."""
    rows = [["detector", *(f"cut-offs at {1000 * b:.0f} ms" for b in LATENCIES)]]
    rows[0] += [f"latency at {100 * b:.0f}%" for b in CUTOFFS]
    for name, key in ((title, "detector"), ("silence alone", "silence")):
        cells = []
        for kind, point in scores[key].items():
            if point is None:
                cells.append("-")
            else:
                is_rate = kind.startswith("false_cutoffs")
                cells.append(
                    f"{100 * point['false_cutoffs']:.1f}%" if is_rate else f"{1000 * point['mean_latency']:.0f} ms"
                )
        rows.append([name, *cells])
    return aligned(rows)

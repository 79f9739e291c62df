"""The logs of a run (log.jsonl, tensorboard, curves.png), and the meter that averages steps between records."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, TypeVar

from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.base.files import aligned, replacing, write_text
from tokenverse_pp.data.dataset import Batch
from tokenverse_pp.training.steps import StepResult, as_record

LOG = logging.getLogger(__name__)
LOG_FILE = "log.jsonl"


class RunLog:
    """Appends records to ``log.jsonl`` and scalars to tensorboard; used by ranks that write.

    If tensorboard is missing or cannot be imported, the run continues with a warning.
    """

    def __init__(self, exp_dir: Path, step: int):
        self.path = exp_dir / LOG_FILE
        # A resumed run starts at its checkpoint: it writes the later records of the killed run again.
        kept = [record for record in read_log(self.path) if record["step"] <= step]
        with self._writing():
            write_text(self.path, "".join(map(_line, kept)))
            self.file = self.path.open("a", encoding="utf-8")
        self.board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except Exception as error:  # ImportError, TypeError of protobuf, AttributeError of NumPy, ..
            LOG.warning("tensorboard cannot be imported (%s): the run is logged to %s only", one_line(error), self.path)
        else:
            self.board = SummaryWriter(str(exp_dir / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: Dict[str, float]) -> None:
        """Write a record of numbers; ``kind``: train or valid."""
        self.note(kind, step, values)
        for name, value in values.items() if self.board is not None else ():
            self.board.add_scalar(f"{kind}/{name}", value, step)

    def note(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write a record only to ``log.jsonl``; ``kind``: also ``drawn`` (`Meter.drawn`)."""
        with self._writing():
            self.file.write(_line({"kind": kind, "step": step, **values}))
            self.file.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise a UserError that names the file; on a full disk the error of a write does not."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Close both logs."""
        self.file.close()
        if self.board is not None:
            self.board.close()


def _line(record: Mapping[str, Any]) -> str:
    """A line of ``log.jsonl``: numbers that are not finite, which JSON does not have, are null."""
    plain = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in record.items()}
    return json.dumps(plain, allow_nan=False) + "\n"


def read_log(path: Path) -> List[Dict]:
    """The records of a ``log.jsonl``, with NaN for null; an incomplete line of a killed run is skipped."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            records.append({key: math.nan if value is None else value for key, value in record.items()})
    return records


# The panels of curves.png: title, and the kind of record and the names (with "*") of the values drawn in it.
PANELS: Tuple[Tuple[str, Tuple[Tuple[str, str], ...]], ...] = (
    ("pruned loss, nats a frame", (("train", "pruned"), ("valid", "loss"))),
    ("WER of a greedy search", (("valid", "wer"),)),
    ("F1 and accuracy of the tasks", (("valid", "*_f1"), ("valid", "*_accuracy"))),
    ("log-probability of a task's tokens, valid", (("valid", "log_prob_*"),)),
    ("seconds of audio a second", (("train", "speed"),)),
    ("gradient norm", (("train", "grad_norm"),)),
)


def plot_curves(exp_dir: Path) -> Optional[Path]:
    """Draw `PANELS` over steps into ``curves.png``; return None if matplotlib cannot be imported."""
    try:
        from matplotlib.figure import Figure
    except Exception as error:  # whatever is wrong with matplotlib must not fail a finished run
        if not (isinstance(error, ModuleNotFoundError) and error.name == "matplotlib"):
            LOG.warning("no curves.png: matplotlib cannot be imported (%s)", one_line(error))
        return None
    records = read_log(exp_dir / LOG_FILE)
    figure = Figure(figsize=(12, 7))
    # Not `tight_layout`, which draws everything once more.
    figure.subplots_adjust(left=0.06, right=0.985, bottom=0.08, top=0.95, wspace=0.23, hspace=0.32)
    for number, (title, sources) in enumerate(PANELS, start=1):
        axis = figure.add_subplot(2, 3, number)
        for kind, pattern in sources:
            mine = [record for record in records if record["kind"] == kind]
            for name in sorted({key for record in mine for key in record if fnmatch(key, pattern)}):
                points = [(record["step"], record[name]) for record in mine if name in record]
                axis.plot(*zip(*points), label=name if "*" in pattern else kind, marker="." if kind == "valid" else "")
        axis.set_title(title, fontsize=10, y=1.0)  # without y it is computed
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    with replacing(exp_dir / "curves.png") as temporary:
        figure.savefig(temporary, dpi=100)
    return exp_dir / "curves.png"


T = TypeVar("T")
Drawn = Dict[str, Dict[str, Any]]


class Meter:
    """Means over the steps since the last log record; ``rows``: those of a cut in a batch, 2 with ``tasks.paired``."""

    def __init__(self, tasks: Sequence[str] = (), rows: int = 1):
        self.tasks, self.rows = tasks, rows
        self.start_over()

    def start_over(self) -> None:
        """Reset, after a log record."""
        self.results: List[StepResult] = []
        self.drawn: Drawn = {}
        self.seconds = 0.0  # wall time
        self.waited = 0.0  # part of it spent waiting for data
        self.restart()

    def restart(self) -> None:
        """Do not count the time since the last step (validation, writing a checkpoint)."""
        self.started = time.monotonic()

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches; the time until each arrives counts as waiting for data."""
        iterator = iter(batches)
        while True:
            start = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.waited += time.monotonic() - start
            yield batch

    def add(self, result: StepResult, batches: Sequence[Batch]) -> None:
        """Count a step, the time since the previous one, and this rank's batches."""
        now = time.monotonic()
        self.seconds += now - self.started
        self.restart()
        self.results.append(result)
        for batch in batches:
            columns = (batch["corpora"], batch["durations"], batch["active"].tolist())
            for row, (corpus, seconds, active) in enumerate(zip(*columns)):
                new = {"cuts": 0, "hours": 0.0, "active": dict.fromkeys(self.tasks, 0)}
                counts = self.drawn.setdefault(corpus, new)
                if row % self.rows == 0:
                    counts["cuts"] += 1
                    counts["hours"] += seconds / 3600
                for task, is_active in zip(self.tasks, active):
                    counts["active"][task] += int(is_active)

    def mean(self) -> Dict[str, float]:
        """Means over the steps that were not skipped (over all steps if all were).

        ``speed``: seconds of audio (all ranks) per second of wall time. ``data_wait``: the share of the wall time in
        which this rank waited for a batch.
        """
        made = [result for result in self.results if not result.skipped] or self.results
        records = [as_record(result) for result in made]
        mean = {key: sum(record[key] for record in records) / len(records) for key in records[0]}
        audio = sum(result.seconds for result in self.results)
        seconds = max(self.seconds, 1e-9)
        return {**mean, "speed": audio / seconds, "data_wait": min(1.0, self.waited / seconds)}


def add_drawn(parts: Iterable[Drawn]) -> Drawn:
    """Sum the drawn cuts of several ranks or log records."""
    total: Drawn = {}
    for part in parts:
        for corpus, counts in part.items():
            mine = total.setdefault(corpus, {"cuts": 0, "hours": 0.0, "active": {}})
            mine["cuts"] += counts["cuts"]
            mine["hours"] += counts["hours"]
            for task, count in counts["active"].items():
                mine["active"][task] = mine["active"].get(task, 0) + count
    return dict(sorted(total.items()))


def drawn_table(drawn: Drawn) -> str:
    """A plain-text table: the cuts drawn from each corpus, and how often each task was active."""
    hours = sum(counts["hours"] for counts in drawn.values()) or 1.0
    tasks = list(next(iter(drawn.values()))["active"]) if drawn else []
    rows = [["drawn from", "cuts", "hours", "share", *tasks]]
    for corpus, counts in drawn.items():
        numbers = [str(counts["cuts"]), f"{counts['hours']:.2f}", f"{counts['hours'] / hours:.1%}"]
        rows.append([corpus, *numbers, *(str(counts["active"][task]) for task in tasks)])
    return aligned(rows)

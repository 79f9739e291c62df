"""What the steps since the last log record were like: losses, speed, waiting for data, and what was drawn."""

from __future__ import annotations

import time
from typing import Any, Dict, Iterable, Iterator, List, Sequence, TypeVar

from tokenverse_pp.dataset import Batch
from tokenverse_pp.tables import aligned
from tokenverse_pp.training.steps import StepResult, as_record

T = TypeVar("T")
Drawn = Dict[str, Dict[str, Any]]


class Meter:
    """Means over the steps since the last log record."""

    def __init__(self, tasks: Sequence[str] = ()):
        self.tasks = tasks
        self.start_over()

    def start_over(self) -> None:
        """Forget everything, after a log record."""
        self.results: List[StepResult] = []
        self.drawn: Drawn = {}
        self.seconds = 0.0  # wall time
        self.waited = 0.0  # of it: for data
        self.restart()

    def restart(self) -> None:
        """Leave out the time since the last step (validation, writing a checkpoint)."""
        self.started = time.monotonic()

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time until each is there counts as waiting for data."""
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
        """Count a step, the time since the one before, and this rank's batches."""
        now = time.monotonic()
        self.seconds += now - self.started
        self.restart()
        self.results.append(result)
        for batch in batches:
            self._count(batch)

    def _count(self, batch: Batch) -> None:
        for corpus, seconds, active in zip(batch["corpora"], batch["durations"], batch["active"].tolist()):
            counts = self.drawn.setdefault(corpus, {"cuts": 0, "hours": 0.0, "active": dict.fromkeys(self.tasks, 0)})
            counts["cuts"] += 1
            counts["hours"] += seconds / 3600
            for task, is_active in zip(self.tasks, active):
                counts["active"][task] += int(is_active)

    def mean(self) -> Dict[str, float]:
        """Losses averaged over the steps that were not skipped (over all where all were).

        ``speed``: seconds of audio (all ranks) a second of wall time. ``data_wait``: the share of the wall time in
        which this rank waited for a batch.
        """
        made = [result for result in self.results if not result.skipped] or self.results
        records = [as_record(result) for result in made]
        mean = {key: sum(record[key] for record in records) / len(records) for key in records[0]}
        audio = sum(result.seconds for result in self.results)
        seconds = max(self.seconds, 1e-9)
        return {**mean, "speed": audio / seconds, "data_wait": min(1.0, self.waited / seconds)}


def add_drawn(parts: Iterable[Drawn]) -> Drawn:
    """Sum what several ranks, or several log records, have drawn."""
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
    """A plain-text table: what was drawn from each corpus, and how often each task was active there."""
    hours = sum(counts["hours"] for counts in drawn.values()) or 1.0
    tasks = list(next(iter(drawn.values()))["active"]) if drawn else []
    rows = [["drawn from", "cuts", "hours", "share", *tasks]]
    for corpus, counts in drawn.items():
        numbers = [str(counts["cuts"]), f"{counts['hours']:.2f}", f"{counts['hours'] / hours:.1%}"]
        rows.append([corpus, *numbers, *(str(counts["active"][task]) for task in tasks)])
    return aligned(rows)

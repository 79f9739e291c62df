"""A part of a manifest: chosen by what the cuts are, by number or hours, and with labels kept for a share of them."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence, Set, Tuple

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import PathLike
from tokenverse_pp.base.languages import compatible_languages
from tokenverse_pp.data.editing.label import drop_tasks
from tokenverse_pp.data.editing.stats import SECONDS_PER_HOUR
from tokenverse_pp.data.lines import fields, text_lines
from tokenverse_pp.data.manifests import (
    ManifestRow,
    custom_of,
    duration_of,
    read_rows,
    supervisions_of,
    tasks_of,
    writing_rows,
)
from tokenverse_pp.tasks.registry import REGISTRY, unknown_task


@dataclass(frozen=True)
class Wanted:
    """Which cuts to take. What is not given does not narrow the choice.

    Args:
        languages: cuts all of whose turns are in one of these: ``fr`` takes ``fr-CA`` and ``FRA``, ``pt-BR`` takes
            ``pt`` but not ``pt-PT``.
        corpora: cuts whose custom field ``corpus`` is one of these.
        tasks: cuts that are labelled for all of these.
        without_tasks: cuts that are labelled for none of these.
        ids: cuts with these ids.
        cuts: so many of them.
        hours: so many of them that they last this long; the cut that would exceed it is left out, and all after it.
        at_random: not the first ones but any, drawn by the seed. The order of the manifest stays.
        keep_labels: task -> share of its labelled cuts that keep the label; the others lose it (`drop_tasks`).
    """

    languages: FrozenSet[str] = frozenset()
    corpora: FrozenSet[str] = frozenset()
    tasks: FrozenSet[str] = frozenset()
    without_tasks: FrozenSet[str] = frozenset()
    ids: Optional[FrozenSet[str]] = None
    cuts: Optional[int] = None
    hours: Optional[float] = None
    at_random: bool = False
    keep_labels: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for task in (*self.tasks, *self.without_tasks, *self.keep_labels):
            if task not in REGISTRY:
                raise UserError(unknown_task(task))
        if "asr" in self.keep_labels:
            raise UserError("--keep-labels asr: every cut is labelled for asr")

    def takes(self, row: ManifestRow) -> bool:
        """True for a row that is wanted for what it is."""
        if self.ids is not None and row.id not in self.ids:
            return False
        if self.tasks and not self.tasks <= set(tasks_of(row)):
            return False
        if self.without_tasks and self.without_tasks & set(tasks_of(row)):
            return False
        if self.corpora and str(custom_of(row.data).get("corpus")) not in self.corpora:
            return False
        if not self.languages:
            return True
        found = {str(supervision.get("language")) for supervision in supervisions_of(row.data)}
        return bool(found) and all(
            any(code == wanted or compatible_languages(code, wanted) for wanted in self.languages) for code in found
        )


@dataclass
class Report:
    """What a subset is: cuts and hours, and for each task of ``keep_labels`` how many cuts kept it and lost it."""

    cuts: int = 0
    hours: float = 0.0
    kept: Dict[str, int] = field(default_factory=dict)
    lost: Dict[str, int] = field(default_factory=dict)


def write_subset(path: PathLike, output: PathLike, wanted: Wanted, bar: Any = None) -> Report:
    """Write the wanted cuts of a manifest to another, reading it twice; memory: some bytes a cut.

    Raises:
        UserError: where no cut is wanted, an id of ``ids`` is not there, or a row is no cut. Nothing is written.
    """
    seconds, labelled, missing = _survey(path, wanted, bar)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{path}: no cut {min(missing)!r}, which --ids asks for{more}")
    taken = _take(seconds, wanted)
    if not taken:
        raise UserError(f"{path}: no cut to write: {len(seconds)} fit the filters, and of these none the hours")
    losing = {
        task: _losing(sorted(taken & set(where)), wanted.keep_labels[task], f"{wanted.seed}/{task}")
        for task, where in labelled.items()
    }
    report = Report(kept=dict.fromkeys(losing, 0), lost={task: len(lost) for task, lost in losing.items()})
    number = -1
    with writing_rows(output) as writer:
        for row in read_rows(path, bar):
            if not wanted.takes(row):
                continue
            number += 1
            if number not in taken:
                continue
            _write(row, number, losing, writer, report)
    return report


def _write(row: ManifestRow, number: int, losing: Mapping[str, Set[int]], writer: Any, report: Report) -> None:
    dropped = [task for task, lost in losing.items() if number in lost]
    for task in losing:
        report.kept[task] += task in tasks_of(row) and task not in dropped
    if dropped:
        drop_tasks(row.data, dropped)
    writer.write(row.data if dropped else row)
    report.cuts += 1
    report.hours += duration_of(row) / SECONDS_PER_HOUR


def _survey(path: PathLike, wanted: Wanted, bar: Any) -> Tuple[array[float], Dict[str, array[int]], Set[str]]:
    """Of the cuts that fit the filters: seconds of each, and the numbers of those that are labelled for each task.

    Also the ids that were asked for and not found.
    """
    seconds = array("d")
    labelled: Dict[str, array[int]] = {task: array("q") for task in wanted.keep_labels}
    missing = set(wanted.ids or ())
    for row in read_rows(path, bar):
        missing.discard(row.id)
        if not wanted.takes(row):
            continue
        for task, where in labelled.items():
            if task in tasks_of(row):
                where.append(len(seconds))
        seconds.append(duration_of(row))
    return seconds, labelled, missing


def _take(seconds: Sequence[float], wanted: Wanted) -> Set[int]:
    """Numbers of the cuts to take among those that fit."""
    order: List[int] = list(range(len(seconds)))
    if wanted.at_random:
        random.Random(wanted.seed).shuffle(order)
    order = order[: wanted.cuts]
    if wanted.hours is None:
        return set(order)
    taken, left = set(), wanted.hours * SECONDS_PER_HOUR + 1e-6
    for number in order:
        left -= seconds[number]
        if left < 0:
            break
        taken.add(number)
    return taken


def _losing(labelled: List[int], share: float, seed: str) -> Set[int]:
    """All but a share of the numbers, at random; rounded to the nearest number of cuts."""
    random.Random(seed).shuffle(labelled)
    return set(labelled[round(share * len(labelled)) :])


def read_ids(path: PathLike) -> FrozenSet[str]:
    """The first word of every line of a file (raises UserError where there is none)."""
    ids = frozenset(fields(line)[0] for _, line in text_lines(Path(path)) if fields(line))
    if not ids:
        raise UserError(f"{path}: expected an id in every line, found none")
    return ids

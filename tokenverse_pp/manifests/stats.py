"""How much there is in cuts: hours, turns, words and task tokens, by task, language and corpus, labelled or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Sequence, Tuple

from lhotse.cut import Cut

from tokenverse_pp.errors import UserError
from tokenverse_pp.files import PathLike
from tokenverse_pp.manifests.ids import NameSet
from tokenverse_pp.manifests.label_source import machine_tasks
from tokenverse_pp.manifests.labels import check_cut, labelled_tasks
from tokenverse_pp.manifests.plain import labelled_cut
from tokenverse_pp.manifests.rows import UNKNOWN, languages_joined, read_rows
from tokenverse_pp.tables import aligned
from tokenverse_pp.tasks.registry import REGISTRY, build_tasks
from tokenverse_pp.tasks.turns import turns_of

SECONDS_PER_HOUR = 3600.0
PARTS = ("labelled", "machine", "not_labelled")
TOTALS = ("cuts", "hours", "turns", "words")


class Statistics:
    """Counts of cuts, one after another, in memory that grows with the number of speakers only.

    The counts of a group of cuts are ``cuts``, ``hours``, ``turns``, ``words``, ``speakers``, and under ``tasks`` for
    each task ``labelled``, ``machine`` (the part of ``labelled`` whose labels a machine made) and ``not_labelled``,
    each with ``cuts`` and ``hours``, and ``tokens``, the number of task tokens that the labels write (for asr: the
    number of words).
    """

    def __init__(self) -> None:
        self._tasks = build_tasks(list(REGISTRY)).tasks
        self._cells: Dict[Tuple[str, str], Dict[str, Any]] = {}  # (corpus, language) -> counts
        self._speakers: Dict[Tuple[str, str], NameSet] = {}

    def add(self, cut: Cut, corpus: str = UNKNOWN) -> None:
        """Count a valid cut (see `check_cut`)."""
        turns = turns_of(cut)
        key = (corpus, languages_joined(turn.language for turn in turns))
        if key not in self._cells:
            self._cells[key], self._speakers[key] = _empty(), NameSet()
        cell, hours, words = self._cells[key], cut.duration / SECONDS_PER_HOUR, sum(len(turn.words) for turn in turns)
        for name, number in zip(TOTALS, (1, hours, len(turns), words)):
            cell[name] += number
        for turn in turns:
            if turn.speaker:
                self._speakers[key].add(turn.speaker)
        labelled, by_machine = labelled_tasks(cut), machine_tasks(cut.custom)
        for task in self._tasks:
            counts = cell["tasks"][task.name]
            parts = ["labelled" if task.name in labelled else "not_labelled"]
            parts += ["machine"] if task.name in labelled and task.name in by_machine else []
            for part in parts:
                counts[part]["cuts"] += 1
                counts[part]["hours"] += hours
            if task.name == "asr":
                counts["tokens"] += words
            elif task.name in labelled:
                counts["tokens"] += len(task.to_marks(task.from_cut(cut), words))

    def by_language(self) -> Dict[str, Any]:
        """``{"all": counts, "<language>": counts}``; a cut of several languages is in a group ``cs+nl``.

        Codes count as their language: ``fr``, ``FRA`` and ``fr-CA`` are one group.
        """
        return {"all": self._sum(list(self._cells)), **self._by(1)}

    def by_corpus(self) -> Dict[str, Any]:
        """``{"<corpus>": counts}``."""
        return self._by(0)

    def _by(self, axis: int) -> Dict[str, Any]:
        names = sorted({key[axis] for key in self._cells})
        return {name: self._sum([key for key in self._cells if key[axis] == name]) for name in names}

    def _sum(self, keys: Sequence[Tuple[str, str]]) -> Dict[str, Any]:
        total, speakers = _empty(), NameSet()
        for key in keys:
            _add_counts(total, self._cells[key])
            speakers.update(self._speakers[key])
        total["speakers"] = len(speakers)
        return total


def count_cuts(cuts: Iterable[Cut]) -> Dict[str, Any]:
    """The counts of valid cuts over all and by language: see `Statistics.by_language`."""
    statistics = Statistics()
    for cut in cuts:
        statistics.add(cut)
    return statistics.by_language()


def count_manifests(paths: Sequence[PathLike], bar: Any = None) -> Dict[str, Any]:
    """Check and count the cuts of manifests, reading each once.

    The corpus of a cut is its ``custom["corpus"]``, or else the name of its file.

    Returns:
        ``{"languages": .., "corpora": ..}``: see `Statistics`.

    Raises:
        UserError: naming the first cut that breaks the label schema, or whose id another one of its file has.
    """
    statistics = Statistics()
    for path, name in zip(paths, corpus_names(paths)):
        for cut in valid_cuts(path, bar):
            statistics.add(cut, str((cut.custom or {}).get("corpus", name)))
    return {"languages": statistics.by_language(), "corpora": statistics.by_corpus()}


def valid_cuts(path: PathLike, bar: Any = None) -> Iterator[Cut]:
    """The cuts of a manifest as their labels are read (see `plain`), each checked; ids as in `count_manifests`."""
    seen = NameSet()
    for row in read_rows(path, bar):
        cut = labelled_cut(row)
        problems = check_cut(cut) if seen.add(row.id) else ["field 'id': another cut has it already"]
        if problems:
            raise UserError(f"{row.where}: cut {row.id}: {problems[0]}; see `tokenverse-pp manifest validate`")
        yield cut


def corpus_names(paths: Sequence[PathLike]) -> List[str]:
    """The names of manifest files without their endings, with their folder's where that alone tells them apart.

    >>> corpus_names(["ami/cuts.jsonl.gz", "cv/cuts.jsonl.gz", "own.jsonl"])
    ['ami-cuts', 'cv-cuts', 'own']
    """
    stems = [Path(path).name.split(".")[0] for path in paths]
    return [
        f"{Path(path).parent.name}-{stem}" if stems.count(stem) > 1 and Path(path).parent.name else stem
        for path, stem in zip(paths, stems)
    ]


def stats_table(stats: Dict[str, Any], what: str = "language") -> str:
    """Two plain-text tables: what there is by language (or corpus), and for each task what of it is labelled."""
    totals = [[what, "cuts", "hours", "turns", "words", "speakers"]]
    labels = [["task", what, "labelled h", "cuts", "machine h", "not labelled h", "cuts", "tokens"]]
    for name, group in stats.items():
        numbers = [f"{group['cuts']}", f"{group['hours']:.2f}"]
        totals.append([name, *numbers, *(str(group[key]) for key in ("turns", "words", "speakers"))])
    for task in REGISTRY:
        for name, group in stats.items():
            counts = group["tasks"][task]
            row = [task, name]
            for part in PARTS:
                row += [f"{counts[part]['hours']:.2f}", str(counts[part]["cuts"])]
            del row[5]  # cuts labelled by machine: the hours say enough
            labels.append([*row, str(counts["tokens"])])
    return "\n\n".join((aligned(totals), aligned(labels, left=2)))


def shares_table(corpora: Dict[str, Any]) -> str:
    """What each corpus gives to each task: hours, and the share of all that is labelled for it."""
    rows: List[List[str]] = [["gives to", *REGISTRY]]
    for name, group in corpora.items():
        cells = []
        for task in REGISTRY:
            hours = group["tasks"][task]["labelled"]["hours"]
            total = sum(other["tasks"][task]["labelled"]["hours"] for other in corpora.values())
            cells.append(f"{hours:.2f} h {100 * hours / total:3.0f} %" if hours else "-")
        rows.append([name, *cells])
    return aligned(rows)


def _add_counts(total: Dict[str, Any], part: Dict[str, Any]) -> None:
    for name in TOTALS:
        total[name] += part[name]
    for task, counts in part["tasks"].items():
        into = total["tasks"][task]
        into["tokens"] += counts["tokens"]
        for name in PARTS:
            for unit in ("cuts", "hours"):
                into[name][unit] += counts[name][unit]


def _empty() -> Dict[str, Any]:
    tasks = {name: {part: {"cuts": 0, "hours": 0.0} for part in PARTS} for name in REGISTRY}
    return {
        "cuts": 0,
        "hours": 0.0,
        "turns": 0,
        "words": 0,
        "speakers": 0,
        "tasks": {name: {**parts, "tokens": 0} for name, parts in tasks.items()},
    }

"""Inspect a manifest: validation against the label schema, statistics, a plot of them, and single cuts as text.

Statistics count hours, turns, words and task tokens by task, language and corpus. The plot needs the extra "plots".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from lhotse.cut import Cut

from tokenverse_pp.base.errors import UserError, needing, printable
from tokenverse_pp.base.files import PathLike, aligned, replacing
from tokenverse_pp.data.access import check_audio, recording_files
from tokenverse_pp.data.labels import check_cut, labelled_cut, labelled_tasks, machine_tasks
from tokenverse_pp.data.lines import NameSet
from tokenverse_pp.data.manifests import UNKNOWN, cut_of, languages_joined, read_cuts, read_rows, scan_rows
from tokenverse_pp.tasks.registry import REGISTRY, build_tasks, render
from tokenverse_pp.tasks.transcript import transcript_of, turns_of

SECONDS_PER_HOUR = 3600.0
PARTS = ("labelled", "machine", "not_labelled")
TOTALS = ("cuts", "hours", "turns", "words")
ALLAR = "all (language)"  # the group of the language whose code is the name of the totals


class Statistics:
    """Running counts of cuts; memory grows only with the number of speakers.

    The counts of a group of cuts are ``cuts``, ``hours``, ``turns``, ``words``, ``speakers``, and under ``tasks`` for
    each task ``labelled``, ``machine`` (the machine-labelled part of ``labelled``) and ``not_labelled``, each with
    ``cuts`` and ``hours``, and ``tokens``, the number of task tokens of the labels (for asr: of words).
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

        ``fr``, ``FRA`` and ``fr-CA`` are one group. ``all`` is also the code of a language, Allar: see `ALLAR`.
        """
        groups = {ALLAR if name == "all" else name: counts for name, counts in self._by(1).items()}
        return {"all": self._sum(self._cells), **groups}

    def by_corpus(self) -> Dict[str, Any]:
        """``{"<corpus>": counts}``."""
        return self._by(0)

    def _by(self, axis: int) -> Dict[str, Any]:
        names = sorted({key[axis] for key in self._cells})
        return {name: self._sum(key for key in self._cells if key[axis] == name) for name in names}

    def _sum(self, keys: Iterable[Tuple[str, str]]) -> Dict[str, Any]:
        total, speakers = _empty(), NameSet()
        for key in keys:
            cell = self._cells[key]
            for name in TOTALS:
                total[name] += cell[name]
            for task, counts in cell["tasks"].items():
                into = total["tasks"][task]
                into["tokens"] += counts["tokens"]
                for part in PARTS:
                    into[part]["cuts"] += counts[part]["cuts"]
                    into[part]["hours"] += counts[part]["hours"]
            speakers.update(self._speakers[key])
        total["speakers"] = len(speakers)
        return total


def count_manifests(paths: Sequence[PathLike], bar: Any = None) -> Dict[str, Any]:
    """Check and count the cuts of manifests, reading each once.

    The corpus of a cut is its ``custom["corpus"]``, or else the name of its file.

    Returns:
        ``{"languages": .., "corpora": ..}``: see `Statistics`.

    Raises:
        UserError: naming the first cut that breaks the label schema, or repeats an id of its file.
    """
    statistics = Statistics()
    for path, name in zip(paths, corpus_names(paths)):
        seen = NameSet()
        for row in read_rows(path, bar):
            cut = labelled_cut(row)
            problems = check_cut(cut) if seen.add(row.id) else ["field 'id': another cut has it already"]
            if problems:
                raise UserError(f"{row.where}: cut {row.id}: {problems[0]}; see `tokenverse-pp manifest validate`")
            statistics.add(cut, str((cut.custom or {}).get("corpus", name)))
    return {"languages": statistics.by_language(), "corpora": statistics.by_corpus()}


def corpus_names(paths: Sequence[PathLike]) -> List[str]:
    """The names of manifest files without their endings, with as many folders as are needed to distinguish them.

    >>> corpus_names(["ami/cuts.jsonl.gz", "cv/cuts.jsonl.gz", "own.jsonl"])
    ['ami-cuts', 'cv-cuts', 'own']
    >>> corpus_names(["a/x/cuts.jsonl", "b/x/cuts.jsonl", "cuts.jsonl"])
    ['a-x-cuts', 'b-x-cuts', 'cuts']
    """
    parts = [(*Path(path).parent.parts, Path(path).name.split(".")[0]) for path in paths]
    different = set(parts)

    def name(mine: Tuple[str, ...]) -> str:
        depths = range(1, len(mine))
        depth = next((n for n in depths if sum(other[-n:] == mine[-n:] for other in different) == 1), len(mine))
        return "-".join(part for part in mine[-depth:] if part != os.sep)

    return [name(mine) for mine in parts]


def stats_table(stats: Dict[str, Any], what: str = "language") -> str:
    """Two plain-text tables: amounts by language (or corpus), and the labelled share for each task."""
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
    """The hours that each corpus has labelled for each task, and their share of the total."""
    rows: List[List[str]] = [["gives to", *REGISTRY]]
    for name, group in corpora.items():
        cells = []
        for task in REGISTRY:
            hours = group["tasks"][task]["labelled"]["hours"]
            total = sum(other["tasks"][task]["labelled"]["hours"] for other in corpora.values())
            cells.append(f"{hours:.2f} h {100 * hours / total:3.0f} %" if hours else "-")
        rows.append([name, *cells])
    return aligned(rows)


def _empty() -> Dict[str, Any]:
    tasks = {name: {part: {"cuts": 0, "hours": 0.0} for part in PARTS} for name in REGISTRY}
    counted = {name: {**parts, "tokens": 0} for name, parts in tasks.items()}
    return {"cuts": 0, "hours": 0.0, "turns": 0, "words": 0, "speakers": 0, "tasks": counted}


def plot_stats(stats: Dict[str, Any], path: PathLike) -> None:
    """Write a PNG: for each task the labelled hours, by language and, if there are several, by corpus.

    Machine labels are hatched; hours that are not labelled are grey.

    Raises:
        UserError: if matplotlib is not installed, or the name does not end in ``.png``.
    """
    if not str(path).endswith(".png"):
        raise UserError(f"{path}: a plot is named .png")
    with needing("--plot needs matplotlib", "plots"):
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    languages = {name: group for name, group in stats["languages"].items() if name != "all"}
    panels = [("language", languages)]
    if len(stats["corpora"]) > 1:
        panels.append(("corpus", stats["corpora"]))
    figure = Figure(figsize=(8, 2.6 * len(panels) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, groups) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels):
        colours = colormaps["tab10" if len(groups) <= 10 else "tab20"]
        _plot_groups(axes, title, groups, colours)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def _plot_groups(axes: Any, title: str, groups: Dict[str, Any], colours: Any) -> None:
    """One stacked bar per task."""
    tasks = list(REGISTRY)
    left = [0.0] * len(tasks)
    for i, (name, group) in enumerate(groups.items()):
        machine = [group["tasks"][task]["machine"]["hours"] for task in tasks]
        people = [group["tasks"][task]["labelled"]["hours"] - m for task, m in zip(tasks, machine)]
        for hours, label, hatch in ((people, name, ""), (machine, None, "////")):
            axes.barh(
                tasks, hours, left=left, label=label, color=colours(i % colours.N), hatch=hatch, edgecolor="white"
            )
            left = [a + b for a, b in zip(left, hours)]
    rest = [sum(group["tasks"][task]["not_labelled"]["hours"] for group in groups.values()) for task in tasks]
    axes.barh(tasks, rest, left=left, label="not labelled", color="0.9")
    axes.invert_yaxis()
    axes.set_xlabel("hours; hatched: labelled by a machine")
    axes.set_title(f"hours labelled for each task, by {title}", fontsize=10)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


COLUMNS = ("endpoint", "entities")


def find_cut(path: PathLike, cut_id: str) -> Cut:
    """The first cut with an id (raises UserError if there is none, or the manifest cannot be read up to it)."""
    count = 0
    for cut in read_cuts(path):
        if cut.id == cut_id:
            return cut
        count += 1
    raise UserError(f"{path}: no cut {cut_id!r} among {count}")


def show_cut(cut: Cut, tasks: Optional[Sequence[str]] = None) -> str:
    """A cut as text: its tokens, turns with times, and missing labels.

    Args:
        tasks: task names; by default all.

    Raises:
        UserError: if the cut breaks the label schema, or a task is unknown.
    """
    problems = check_cut(cut)
    if problems:
        raise UserError(f"cut {cut.id}: {problems[0]}")
    wanted = build_tasks(list(REGISTRY) if tasks is None else tasks)
    labelled = labelled_tasks(cut)
    lines = [
        f"cut {cut.id}: {cut.duration:.2f} s, labelled for {', '.join(labelled)}",
        f"audio: {recording_files(cut) or 'no file'}",
        "",
        render(transcript_of(cut, wanted), wanted),
        "",
        _turns(cut),
    ]
    missing = [_missing(cut, name) for name in wanted.names if name not in labelled]
    return printable("\n".join([*lines, *(["", *missing] if missing else [])]))


def _turns(cut: Cut) -> str:
    others = [key for task in REGISTRY.values() for key in task.own_fields if key not in COLUMNS]
    others = [key for key in dict.fromkeys(others) if any(key in turn.custom for turn in turns_of(cut))]
    rows = [["start", "end", "speaker", "language", *COLUMNS, *others, "text"]]
    for turn in turns_of(cut):
        items = turn.custom.get("entities")
        entities = [f"{turn.text[e['start'] : e['end']]} ({e.get('type') or 'NE'})" for e in _spans(items)]
        endpoint = turn.custom.get("endpoint")
        rows.append(
            [
                f"{turn.start:.2f}",
                f"{turn.end:.2f}",
                turn.speaker or "-",
                turn.language or "-",
                {True: "yes", False: "no"}.get(endpoint, "-") if isinstance(endpoint, bool) else "-",
                ", ".join(entities) or ("none" if items == [] else "-"),
                *(str(turn.custom.get(key, "-")) for key in others),
                turn.text,
            ]
        )
    # Align times to the right, words to the left.
    return aligned([[row[0].rjust(8), row[1].rjust(8), *row[2:]] for row in rows], left=len(rows[0]))


def _spans(items: object) -> List[dict]:
    """Entities of a cut, or none if the field is invalid: it is unchecked if the cut is not labelled for them."""
    whole = isinstance(items, list) and all(
        isinstance(e, dict) and type(e.get("start")) is int and type(e.get("end")) is int for e in items
    )
    return items if whole else []  # type: ignore[return-value]


def _missing(cut: Cut, name: str) -> str:
    """Why a task is not among those that a cut is labelled for."""
    problems = REGISTRY[name].from_options({}).check(cut)
    if problems:
        return f"not labelled for {name}: {problems[0].split(' because ')[0]}"
    return f"not labelled for {name}: the field is there; 'custom.tasks' does not list {name!r}"


def first_problems(path: PathLike, limit: int, audio: bool = False, bar: Any = None) -> Iterator[str]:
    """The first problems of a manifest (`manifest_problems`); the last line counts the remaining ones."""
    found, held = 0, ""
    try:
        for problem in manifest_problems(path, audio, bar):
            found += 1
            if found <= limit:
                if held:
                    yield held
                held = problem  # until it is known whether it is the last
    except UserError as error:
        if held:
            yield held
        found, limit, held = 0, 0, str(error)
    if held:
        yield held + (f" (and {found - limit} more)" if found > limit else "")


def manifest_problems(path: PathLike, audio: bool = False, bar: Any = None) -> Iterator[str]:
    """Every problem of a manifest, as lines that name the file, the line and the cut.

    Args:
        audio: decode all the audio as well (slow).
        bar: progress bar, moved by the bytes read.

    Raises:
        UserError: if the file is missing or cannot be read further.
    """
    seen, number = NameSet(), 0
    for row in scan_rows(path, bar):
        number += 1
        if row.problem:
            yield f"{row.where}: {row.problem}"
            continue
        if not seen.add(row.id):
            yield f"{row.where}: cut {row.id}: field 'id': another cut has it already"
        try:
            for problem in check_cut(labelled_cut(row)):
                yield f"{row.where}: cut {row.id}: {problem}"
            if audio:
                for problem in check_audio(cut_of(row.data, row.where)):
                    yield f"{row.where}: cut {row.id}: {problem}"
        except UserError as error:  # lhotse cannot read the row
            yield str(error)
    if not number:
        yield f"{path}: expected cuts, found none"

"""One cut as people read it."""

from __future__ import annotations

from typing import List, Optional, Sequence

from lhotse.cut import Cut

from tokenverse_pp.errors import UserError, printable
from tokenverse_pp.manifests.audio import recording_files
from tokenverse_pp.manifests.labels import check_cut, labelled_tasks
from tokenverse_pp.manifests.lines import PathLike
from tokenverse_pp.manifests.reading import read_cuts
from tokenverse_pp.tables import aligned
from tokenverse_pp.tasks.registry import REGISTRY, build_tasks
from tokenverse_pp.tasks.text import render, transcript_of
from tokenverse_pp.tasks.turns import turns_of

COLUMNS = ("endpoint", "entities")


def find_cut(path: PathLike, cut_id: str) -> Cut:
    """The first cut with an id.

    Raises:
        UserError: where there is none, or the manifest cannot be read up to it.
    """
    count = 0
    for cut in read_cuts(path):
        if cut.id == cut_id:
            return cut
        count += 1
    raise UserError(f"{path}: no cut {cut_id!r} among {count}")


def show_cut(cut: Cut, tasks: Optional[Sequence[str]] = None) -> str:
    """Text with the tokens of tasks, turns with their times, and what is missing.

    Args:
        tasks: task names; by default all that there are.

    Raises:
        UserError: where the cut breaks the label schema, or a task is unknown.
    """
    problems = check_cut(cut)
    if problems:
        raise UserError(f"cut {cut.id}: {problems[0]}")
    wanted = build_tasks(tasks if tasks is not None else list(REGISTRY))
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
    # Times to the right, words to the left.
    return aligned([[row[0].rjust(8), row[1].rjust(8), *row[2:]] for row in rows], left=len(rows[0]))


def _spans(items: object) -> List[dict]:
    """Entities of a cut that may not be labelled for them: then nobody has checked the field."""
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

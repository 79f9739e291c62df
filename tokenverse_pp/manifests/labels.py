"""The label schema of cuts, and its validation.

One cut is one training example. ``cut.custom["tasks"]`` lists the tasks that it is labelled for, ``asr``
always among them; each task says what its labels are (`Task.check`). A task that is not listed was not
annotated; a task that is listed and has nothing to say (no entity spoken) was.
"""

from __future__ import annotations

import math
import os
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

from lhotse.cut import Cut
from lhotse.supervision import SupervisionSegment

from tokenverse_pp.errors import UserError
from tokenverse_pp.files import is_finite
from tokenverse_pp.manifests.audio import TOLERANCE as AUDIO_TOLERANCE
from tokenverse_pp.manifests.audio import check_audio as audio_problems
from tokenverse_pp.manifests.ids import NameSet
from tokenverse_pp.manifests.label_source import check_sources
from tokenverse_pp.manifests.lines import CONTROL, PathLike
from tokenverse_pp.manifests.plain import labelled_cut
from tokenverse_pp.manifests.reading import read_cuts, shortened
from tokenverse_pp.manifests.rows import read_rows
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.registry import REGISTRY

TOLERANCE = 0.001  # seconds of rounding by which a turn may stick out of its cut or into another


def labelled_tasks(cut: Cut) -> List[str]:
    """The tasks that a cut is labelled for.

    Raises:
        UserError: where ``custom["tasks"]`` breaks the schema.
    """
    problems = _check_tasks(cut)
    if problems:
        raise UserError(f"cut {cut.id}: {shortened(problems[0])}")
    return list((cut.custom or {})["tasks"])


def check_cut(cut: Cut, tasks: Optional[TaskSet] = None) -> List[str]:
    """What is wrong with a cut's labels: one line a problem, naming the field; nothing if all is well.

    Args:
        tasks: the tasks of a model, whose options (languages, entity types) narrow what is allowed.
    """
    problems = _check_tasks(cut) + _check_supervisions(cut) + _check_extent(cut)
    if not problems:  # the tasks may count on fields of the right kind
        for name in (cut.custom or {})["tasks"]:
            task = tasks[name] if tasks is not None and name in tasks else REGISTRY[name].from_options({})
            problems.extend(task.check(cut))
    return [shortened(problem) for problem in problems or check_sources(cut, REGISTRY)]


def find_problems(
    cuts: Iterable[Cut], tasks: Optional[TaskSet] = None, check_audio: bool = False
) -> Iterator[Tuple[str, str]]:
    """Every problem of every cut as (cut id, problem); also ids that occur twice.

    Args:
        tasks: see `check_cut`.
        check_audio: decode all the audio as well (slow).
    """
    seen = NameSet()
    for number, cut in enumerate(cuts):
        if not isinstance(cut.id, str) or not cut.id or CONTROL.search(cut.id):
            yield f"number {number}", f"field 'id': expected a name, found {cut.id!r}"
            continue
        if not seen.add(cut.id):
            yield cut.id, "field 'id': another cut has it already"
        for problem in check_cut(cut, tasks):
            yield cut.id, problem
        if check_audio:
            for problem in audio_problems(cut):
                yield cut.id, problem


def validate_cuts(
    cuts: Union[PathLike, Iterable[Cut]],
    tasks: Optional[TaskSet] = None,
    check_audio: bool = False,
    list_all: bool = False,
) -> None:
    """Check cuts, or the manifest at a path, against the label schema.

    Args:
        tasks: see `check_cut`.
        check_audio: decode all the audio as well (slow).
        list_all: put every problem into the message, one a line; otherwise the first, and how many more there
            are.

    Raises:
        UserError: naming file (where a path is given), cut id and field.
    """
    source, prefix = (_cuts_of(cuts, check_audio), f"{cuts}: ") if isinstance(cuts, (str, os.PathLike)) else (cuts, "")
    lines, count = [], 0
    for cut_id, text in find_problems(source, tasks, check_audio):
        count += 1
        if list_all or count == 1:
            lines.append(f"{prefix}cut {cut_id}: {text}")
    if not lines:
        return
    more = f" (and {count - 1} more)" if count > len(lines) else ""
    raise UserError("\n".join(lines) + more)


def _cuts_of(path: PathLike, with_audio: bool) -> Iterable[Cut]:
    return read_cuts(path) if with_audio else (labelled_cut(row) for row in read_rows(path))


def _check_tasks(cut: Cut) -> List[str]:
    where = "field 'custom.tasks'"
    custom = getattr(cut, "custom", None)
    if custom is not None and not isinstance(custom, dict):
        return [f"field 'custom': expected a mapping, found {custom!r}"]
    names = (custom or {}).get("tasks")
    if not isinstance(names, list):
        found = "nothing" if names is None else repr(names)
        return [f"{where}: expected a list such as ['asr', 'lid'], found {found}"]
    problems = [
        f"{where}: unknown task {name!r}, expected some of {', '.join(REGISTRY)}"
        for name in names
        if not isinstance(name, str) or name not in REGISTRY
    ]
    if not problems and len(set(names)) < len(names):
        problems.append(f"{where}: a task is listed twice in {names!r}")
    if "asr" not in names:
        problems.append(f"{where}: expected 'asr' among them, found {names!r}")
    return problems


def _check_supervisions(cut: Cut) -> List[str]:
    if not _is_number(cut.duration) or cut.duration <= 0:
        return [f"field 'duration': expected seconds > 0, found {cut.duration!r}"]
    supervisions = cut.supervisions
    if not supervisions:
        return ["field 'supervisions': expected at least one turn, found none"]
    problems = [p for i, sup in enumerate(supervisions) for p in type_problems(f"supervision {i}", sup)]
    return problems or _check_times(supervisions, cut.duration)


def _check_extent(cut: Cut) -> List[str]:
    """The cut lies inside its recording, where it has one of its own."""
    recording = getattr(cut, "recording", None)
    if recording is None or not _is_number(cut.duration):
        return []
    start, whole = getattr(cut, "start", 0.0), recording.duration
    if not _is_number(whole) or whole <= 0:
        return [f"field 'recording.duration': expected seconds > 0, found {whole!r}"]
    if not _is_number(start) or start < 0 or start + cut.duration > whole + AUDIO_TOLERANCE:
        return [
            f"field 'start': the cut, {cut.duration:.3f} s from {start!r} s on, is not inside its recording "
            f"of {whole} s"
        ]
    return []


def type_problems(where: str, sup: SupervisionSegment) -> List[str]:
    """Fields of a turn that are not of their type, or no Unicode: one line each, beginning with ``where``."""
    problems = [
        f"{where}, field '{name}': expected a string, found {getattr(sup, name)!r}"
        for name in ("text", "speaker", "language")
        if not isinstance(getattr(sup, name), (str, type(None)))
    ]
    problems += [
        f"{where}, field '{name}': expected valid Unicode, found {getattr(sup, name)!r}"
        for name in ("text", "speaker", "language")
        if isinstance(getattr(sup, name), str) and not _is_unicode(getattr(sup, name))
    ]
    problems += [
        f"{where}, field '{name}': expected seconds, found {getattr(sup, name)!r}"
        for name in ("start", "duration")
        if not _is_number(getattr(sup, name))
    ]
    if not isinstance(sup.custom, (dict, type(None))):
        problems.append(f"{where}, field 'custom': expected a mapping, found {sup.custom!r}")
    return problems


def _check_times(supervisions: Sequence[SupervisionSegment], cut_duration: float) -> List[str]:
    """Turns inside the cut, in time order; two speakers may talk at once, one speaker may not."""
    problems = []
    last_end: Dict[Optional[str], float] = {}
    last_start = -math.inf
    for i, sup in enumerate(supervisions):
        where = f"supervision {i}"
        end = sup.start + sup.duration
        if sup.duration <= 0:
            problems.append(f"{where}, field 'duration': expected seconds > 0, found {sup.duration!r}")
        if sup.start < -TOLERANCE or end > cut_duration + TOLERANCE:
            problems.append(
                f"{where}, field 'start': the turn, {sup.start:.3f} to {end:.3f} s, is not inside its cut "
                f"of {cut_duration:.3f} s"
            )
        if sup.start < last_start:
            problems.append(f"{where}, field 'start': turns must be listed in time order")
        elif sup.speaker is not None and sup.start < last_end.get(sup.speaker, -math.inf) - TOLERANCE:
            problems.append(f"{where}, field 'start': speaker {sup.speaker!r} is still in an earlier turn")
        last_start = max(last_start, sup.start)
        last_end[sup.speaker] = max(last_end.get(sup.speaker, -math.inf), end)
    return problems


def _is_number(value: Any) -> bool:
    return is_finite(value)


def _is_unicode(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can hold and no file can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

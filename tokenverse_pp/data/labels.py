"""The label schema of cuts and its validation, on lhotse cuts or directly on rows of JSON.

One cut is one training example. ``cut.custom["tasks"]`` lists the tasks that it is labelled for, always with ``asr``;
each task defines its labels (`Task.check`). A task that is not listed was not annotated; a listed task without labels
(no entity spoken) was annotated.

``cut.custom["label_source"]`` maps a task to the source of its labels on that cut, e.g.
``{"ner": "machine:spacy/en_core_web_sm"}``. Names that begin with ``machine:`` are automatic labels; a task that is not
in the mapping was labelled by people. Each entity of a machine-labelled cut also has ``"source"`` (the same name) and
``"confidence"`` (0 to 1). A cut has one source per task, so human and automatic labels never mix within it.

Building lhotse objects takes longer than checking labels. Rows of the usual form (a MonoCut with a recording and no
stored features) are checked without building them. Other rows, and rows that lhotse might reject, are read by lhotse.
"""

from __future__ import annotations

import math
import os
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union, cast

from lhotse.cut import Cut, MixedCut
from lhotse.supervision import SupervisionSegment

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import PathLike, is_finite
from tokenverse_pp.data.audio.pyav import TOLERANCE as AUDIO_TOLERANCE
from tokenverse_pp.data.lines import CONTROL, NameSet
from tokenverse_pp.data.manifests import ManifestRow, cut_of, read_rows, shortened
from tokenverse_pp.tasks.base import TaskSet
from tokenverse_pp.tasks.registry import REGISTRY
from tokenverse_pp.tasks.transcript import FixedTurns, turns_of

LABEL_SOURCE = "label_source"  # key of cut.custom
MACHINE = "machine:"


def machine_tasks(custom: Optional[Mapping[str, Any]]) -> List[str]:
    """The tasks that have automatic labels according to a cut's custom fields."""
    sources = (custom or {}).get(LABEL_SOURCE) or {}
    return [task for task, source in sources.items() if str(source).startswith(MACHINE)]


def check_sources(cut: Cut) -> List[str]:
    """Problems of a cut's label sources: one line per problem, naming the field."""
    found = (cut.custom or {}).get(LABEL_SOURCE)
    sources, where = {} if found is None else found, f"field 'custom.{LABEL_SOURCE}'"
    if not isinstance(sources, dict):
        return [f"{where}: expected a mapping from tasks to names, found {sources!r}"]
    problems = [
        f"{where}: unknown task {task!r}, expected some of {', '.join(REGISTRY)}"
        for task in sources
        if task not in REGISTRY
    ]
    problems += [
        f"{where}: expected a name such as 'machine:spacy/NAME' for {task}, found {name!r}"
        for task, name in sources.items()
        if not isinstance(name, str) or not name
    ]
    if problems or "ner" not in (cut.custom or {}).get("tasks", ()):
        return problems
    maker = sources.get("ner")
    return [
        f"supervision {turn.index}, field 'custom.entities': {problem}"
        for turn in turns_of(cut)
        for item in turn.custom.get("entities") or ()
        if isinstance(item, dict)
        for problem in _check_entity(item, maker)
    ]


def _check_entity(item: Dict[str, Any], maker: Optional[str]) -> List[str]:
    source, confidence = item.get("source"), item.get("confidence")
    problems = []
    if source != maker and (source is not None or str(maker).startswith(MACHINE)):
        problems.append(
            f"source {source!r} of {item.get('start')}..{item.get('end')} is not that of the cut's "
            f"custom.{LABEL_SOURCE}, {maker!r}"
        )
    if confidence is not None and not (is_finite(confidence) and 0 <= confidence <= 1):
        problems.append(f"confidence of {item.get('start')}..{item.get('end')}: expected 0 to 1, found {confidence!r}")
    return problems


TOLERANCE = 0.001  # seconds by which a turn may exceed its cut or overlap another through rounding


def labelled_tasks(cut: Cut) -> List[str]:
    """The tasks that a cut is labelled for (raises UserError if ``custom["tasks"]`` breaks the schema)."""
    problems = _check_tasks(cut)
    if problems:
        raise UserError(f"cut {cut.id}: {shortened(problems[0])}")
    return list((cut.custom or {})["tasks"])


def check_cut(cut: Cut, tasks: Optional[TaskSet] = None) -> List[str]:
    """Problems of a cut's labels: one line per problem, naming the field; empty if there are none.

    Args:
        tasks: the tasks of a model, whose options (languages, entity types) narrow what is allowed.
    """
    problems = _check_tasks(cut) + _check_supervisions(cut) + _check_extent(cut)
    if not problems:  # the tasks rely on fields of the right type
        for name in (cut.custom or {})["tasks"]:
            task = tasks[name] if tasks is not None and name in tasks else REGISTRY[name].from_options({})
            problems.extend(task.check(cut))
    return [shortened(problem) for problem in problems or check_sources(cut)]


def find_problems(cuts: Iterable[Cut], tasks: Optional[TaskSet] = None) -> Iterator[Tuple[str, str]]:
    """Yield every problem of every cut as (cut id, problem), including ids that occur twice."""
    seen = NameSet()
    for number, cut in enumerate(cuts):
        if not isinstance(cut.id, str) or not cut.id or CONTROL.search(cut.id):
            yield f"number {number}", f"field 'id': expected a name, found {cut.id!r}"
            continue
        if not seen.add(cut.id):
            yield cut.id, "field 'id': another cut has it already"
        for problem in check_cut(cut, tasks):
            yield cut.id, problem


def validate_cuts(cuts: Union[PathLike, Iterable[Cut]], unlabelled: bool = False) -> None:
    """Check cuts, or the manifest at a path, against the label schema.

    Args:
        unlabelled: pass over cuts without a list of tasks, which count in no score.

    Raises:
        UserError: naming file (for a path), cut id and field of the first problem, and the number of others.
    """
    prefix = ""
    found: Iterator[Cut]
    if isinstance(cuts, (str, os.PathLike)):
        prefix, found = f"{cuts}: ", (labelled_cut(row) for row in read_rows(cuts))
    else:
        found = iter(cuts)
    first, count = "", 0
    for cut_id, text in find_problems(cut for cut in found if not unlabelled or "tasks" in (cut.custom or {})):
        first = first or f"{prefix}cut {cut_id}: {text}"
        count += 1
    if count:
        raise UserError(first + (f" (and {count - 1} more)" if count > 1 else ""))


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
    if not problems and isinstance(cut, MixedCut):  # lhotse gives it the list of its last track that has one
        for track in cut.tracks:
            theirs = (track.cut.custom or {}).get("tasks", names)
            if theirs != names:
                problems.append(
                    f"{where}: the tracks of this mixed cut differ, expected the same: {theirs!r}, {names!r}"
                )
    return problems


def _check_supervisions(cut: Cut) -> List[str]:
    if not is_finite(cut.duration) or cut.duration <= 0:
        return [f"field 'duration': expected seconds > 0, found {cut.duration!r}"]
    supervisions = cut.supervisions
    if not supervisions:
        return ["field 'supervisions': expected at least one turn, found none"]
    problems = [p for i, sup in enumerate(supervisions) for p in type_problems(f"supervision {i}", sup)]
    return problems or _check_times(supervisions, cut.duration)


def _check_extent(cut: Cut) -> List[str]:
    """Check that a cut with its own recording lies inside it."""
    recording = getattr(cut, "recording", None)
    if recording is None or not is_finite(cut.duration):
        return []
    start, whole = getattr(cut, "start", 0.0), recording.duration
    if not is_finite(whole) or whole <= 0:
        return [f"field 'recording.duration': expected seconds > 0, found {whole!r}"]
    if not is_finite(start) or start < 0 or start + cut.duration > whole + AUDIO_TOLERANCE:
        return [
            f"field 'start': the cut, {cut.duration:.3f} s from {start!r} s on, is not inside its recording "
            f"of {whole} s"
        ]
    return []


def type_problems(where: str, sup: SupervisionSegment) -> List[str]:
    """Return one line, beginning with ``where``, for each field of a turn with a wrong type or invalid Unicode."""
    texts = [(name, getattr(sup, name)) for name in ("text", "speaker", "language")]
    wrong = [(name, "a string", value) for name, value in texts if not isinstance(value, (str, type(None)))]
    wrong += [(name, "valid Unicode", x) for name, x in texts if isinstance(x, str) and not _is_unicode(x)]
    times = [(name, getattr(sup, name)) for name in ("start", "duration")]
    wrong += [(name, "seconds", value) for name, value in times if not is_finite(value)]
    if not isinstance(sup.custom, (dict, type(None))):
        wrong.append(("custom", "a mapping", sup.custom))
    return [f"{where}, field '{name}': expected {what}, found {value!r}" for name, what, value in wrong]


def _check_times(supervisions: Sequence[SupervisionSegment], cut_duration: float) -> List[str]:
    """Check that turns lie inside the cut, in time order; only turns of different speakers may overlap."""
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


def _is_unicode(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can represent and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_CUT_NEEDS = frozenset(("id", "start", "duration", "channel"))
_CUT_MAY = _CUT_NEEDS | {"type", "supervisions", "recording", "custom"}
_TURN_NEEDS = frozenset(("id", "recording_id", "start", "duration"))
_TURN_MAY = _TURN_NEEDS | {"channel", "text", "language", "speaker", "gender", "custom"}
_RECORDING_NEEDS = frozenset(("id", "sources", "sampling_rate", "num_samples", "duration"))
_RECORDING_MAY = _RECORDING_NEEDS | {"channel_ids"}
_SOURCE = frozenset(("type", "channels", "source"))


class PlainTurn:
    """The fields of a supervision with labels; see `lhotse.SupervisionSegment`."""

    __slots__ = ("custom", "duration", "language", "speaker", "start", "text")

    def __init__(self, data: Dict[str, Any]):
        get = data.get
        self.start = data["start"]
        self.duration = data["duration"]
        self.text = get("text")
        self.speaker = get("speaker")
        self.language = get("language")
        self.custom = get("custom")

    @property
    def end(self) -> float:
        """The end in seconds, rounded as by lhotse."""
        return round(self.start + self.duration, ndigits=8)


class PlainCut(FixedTurns):
    """The fields of a cut with labels; see `lhotse.cut.Cut`."""

    def __init__(self, data: Dict[str, Any]):
        self.id = data["id"]
        self.duration = data["duration"]
        self.custom = data.get("custom")
        self.supervisions: List[PlainTurn] = [PlainTurn(item) for item in data.get("supervisions", ())]


def labelled_cut(row: ManifestRow) -> Cut:
    """Return a row as `PlainCut` if that suffices, else as a lhotse cut (raises UserError if lhotse rejects it)."""
    if is_plain(row.data):
        return cast(Cut, PlainCut(row.data))
    return cut_of(row.data, row.where)


def is_plain(data: Dict[str, Any]) -> bool:
    """Whether lhotse can certainly read a row, and nothing in it changes how its labels are read."""
    supervisions = data.get("supervisions", [])
    return (
        data.get("type") == "MonoCut"
        and _has(data, _CUT_NEEDS, _CUT_MAY)
        and isinstance(supervisions, list)
        and all(_has(item, _TURN_NEEDS, _TURN_MAY) and _is_plain_custom(item.get("custom")) for item in supervisions)
        and _is_plain_custom(data.get("custom"))
        and ("recording" not in data or (_is_plain_recording(data["recording"]) and _lies_inside(data)))
    )


def _has(item: Any, needs: frozenset[str], may: frozenset[str]) -> bool:
    return isinstance(item, dict) and needs <= item.keys() <= may


def _is_plain_custom(custom: Optional[Any]) -> bool:
    """Whether lhotse would read no custom field as a recording or an image."""
    if custom is None:
        return True
    return isinstance(custom, dict) and not any(
        isinstance(value, dict) and ("sources" in value or "width" in value) for value in custom.values()
    )


def _lies_inside(data: Dict[str, Any]) -> bool:
    """Whether the cut lies in its recording; if not, `check_cut` needs the recording."""
    times = data["start"], data["duration"], data["recording"]["duration"]
    if not all(type(time) in (int, float) for time in times):
        return False
    start, seconds, whole = times
    try:
        return 0 <= start <= start + seconds <= whole
    except OverflowError:  # an integer too large for a float
        return False


def _is_plain_recording(recording: Any) -> bool:
    if not _has(recording, _RECORDING_NEEDS, _RECORDING_MAY):
        return False
    if recording.get("channel_ids") is None:  # lhotse computes them, which can fail
        return False
    sources = recording["sources"]
    return isinstance(sources, list) and all(_has(source, _SOURCE, _SOURCE) for source in sources)

"""Who made a task's labels: people (or a corpus), or a machine.

``cut.custom["label_source"]`` maps a task to the name of the maker of its labels on that cut, e.g.
``{"ner": "machine:spacy/en_core_web_sm"}``. A name that begins with ``machine:`` is a machine's; a task that is not
in the mapping was labelled by people. Each entity of a machine-labelled cut says so too: ``"source"`` (the same name)
and ``"confidence"`` (0 to 1). One cut has one maker of a task's labels, so that the two never mix unseen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional

from tokenverse_pp.files import is_finite
from tokenverse_pp.tasks.turns import turns_of

if TYPE_CHECKING:
    from lhotse.cut import Cut

LABEL_SOURCE = "label_source"  # key of cut.custom
MACHINE = "machine:"


def machine_tasks(custom: Optional[Mapping[str, Any]]) -> List[str]:
    """The tasks whose labels a machine made, by a cut's custom fields."""
    sources = (custom or {}).get(LABEL_SOURCE) or {}
    return [task for task, source in sources.items() if str(source).startswith(MACHINE)]


def check_sources(cut: Cut, known: Mapping[str, Any]) -> List[str]:
    """What is wrong with what a cut says of the makers of its labels: one line a problem, naming the field.

    Args:
        known: the tasks that there are (``REGISTRY``).
    """
    sources = (cut.custom or {}).get(LABEL_SOURCE)
    where = f"field 'custom.{LABEL_SOURCE}'"
    if sources is None:
        sources = {}
    if not isinstance(sources, dict):
        return [f"{where}: expected a mapping from tasks to names, found {sources!r}"]
    problems = [
        f"{where}: unknown task {task!r}, expected some of {', '.join(known)}" for task in sources if task not in known
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
    if confidence is not None and not _is_probability(confidence):
        problems.append(f"confidence of {item.get('start')}..{item.get('end')}: expected 0 to 1, found {confidence!r}")
    return problems


def _is_probability(value: Any) -> bool:
    return is_finite(value) and 0 <= value <= 1

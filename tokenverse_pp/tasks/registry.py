"""The tasks that exist, in the order in which vectors, tokens and scores list them."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Sequence, Type

from tokenverse_pp.errors import UserError
from tokenverse_pp.tasks.asr import Asr
from tokenverse_pp.tasks.base import Task, TaskSet
from tokenverse_pp.tasks.endp import Endpoint
from tokenverse_pp.tasks.lid import LanguageId
from tokenverse_pp.tasks.ner import NamedEntities
from tokenverse_pp.tasks.scd import SpeakerChange

REGISTRY: Dict[str, Type[Task]] = {
    task.name: task for task in (Asr, SpeakerChange, Endpoint, NamedEntities, LanguageId)
}


def register(task: Type[Task]) -> Type[Task]:
    """Add a task from outside the package (also a class decorator); it comes after those already there."""
    REGISTRY[task.name] = task
    return task


def build_tasks(names: Sequence[str], options: Optional[Mapping[str, Mapping[str, Any]]] = None) -> TaskSet:
    """The tasks of a model, in registry order.

    Args:
        names: task names; ``asr`` is added if missing.
        options: options by task name, e.g. ``{"lid": {"languages": ["fr"]}, "ner": {"types": ["NUM"]}}``.

    Raises:
        UserError: for a name that no task has.
    """
    for name in names:
        if name not in REGISTRY:
            raise UserError(f"unknown task {name!r}: expected some of {', '.join(REGISTRY)}")
    options = options or {}
    wanted = {"asr", *names}
    return TaskSet(tuple(cls.from_options(options.get(n, {})) for n, cls in REGISTRY.items() if n in wanted))


def task_options(tasks: TaskSet) -> Dict[str, Dict[str, Any]]:
    """Options with which `build_tasks` makes the same set again."""
    return {task.name: task.options() for task in tasks.tasks if task.options()}

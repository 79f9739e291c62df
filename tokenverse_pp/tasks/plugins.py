"""Tasks from outside the package: of installed packages (entry points), and of files or modules by name."""

from __future__ import annotations

import copyreg
import hashlib
import importlib
import inspect
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Iterator, List, Mapping, Tuple, Type

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.tasks.base import Task

GROUP = "tokenverse_pp.tasks"  # of entry points: ``NAME_OF_TASK = "my_package.my_module:MyTask"``


def task_classes(module: ModuleType) -> List[Type[Task]]:
    """The tasks that a module defines (not those that it imports), in its order."""
    return [
        item
        for item in vars(module).values()
        if inspect.isclass(item)
        and issubclass(item, Task)
        and item.__module__ == module.__name__
        and not inspect.isabstract(item)
        and isinstance(getattr(item, "name", None), str)
    ]


def entry_point_tasks() -> Iterator[Tuple[str, str, Any]]:
    """(name of the entry point, what it points at, the task class or the reason why there is none)."""
    found: Any = entry_points()
    group = found.select(group=GROUP) if hasattr(found, "select") else found.get(GROUP, ())  # Python 3.9 has a dict
    for point in sorted(set(group), key=lambda point: (point.name, point.value)):
        try:
            yield point.name, point.value, point.load()
        except Exception as error:  # whatever somebody else's module raises: the other tasks are not to suffer
            yield point.name, point.value, f"{type(error).__name__}: {error}"


def is_file(plugin: str) -> bool:
    """Whether a plugin is named by its file, not as a module."""
    return plugin.endswith(".py") or "/" in plugin or "\\" in plugin


def resolved(plugin: str) -> str:
    """A file with its whole path, so that it is found from other folders too; a module's name as it is."""
    return str(Path(plugin).resolve()) if is_file(plugin) else plugin


def import_plugin(plugin: str) -> List[Type[Task]]:
    """Run a Python file, or import a module, and return the tasks that it defines.

    Args:
        plugin: a path (it ends in ``.py`` or has a slash), or the dotted name of an importable module.

    Raises:
        UserError: where it is not there, cannot be imported, or defines no task.
    """
    try:
        module = _run_file(Path(resolved(plugin))) if is_file(plugin) else importlib.import_module(plugin)
    except FileNotFoundError as error:
        raise UserError(f"tasks.plugins: {error.filename or plugin}: no such file") from None
    except Exception as error:  # a user's own code may raise anything
        raise UserError(f"tasks.plugins: {plugin}: cannot be imported: {type(error).__name__}: {error}") from error
    classes = task_classes(module)
    if not classes:
        raise UserError(f"tasks.plugins: {plugin}: defines no task: expected a subclass of tokenverse_pp.tasks.Task")
    return classes


def _run_file(path: Path) -> ModuleType:
    """A file as a module of a name of its own; run once a process."""
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    source = path.read_bytes()  # FileNotFoundError before anything is made
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    for cls in task_classes(module):
        # Worker processes that do not share this one's memory have to run the file again before they know the class.
        copyreg.pickle(cls, _reduce)  # type: ignore[arg-type]
    return module


def _reduce(task: Task) -> Tuple[Any, Tuple[str, str, Mapping[str, Any]]]:
    path = str(sys.modules[type(task).__module__].__file__)
    return _rebuild, (path, type(task).__name__, task.options())


def _rebuild(path: str, cls: str, options: Mapping[str, Any]) -> Task:
    return getattr(_run_file(Path(path)), cls).from_options(options)


def origin(task: Type[Task]) -> str:
    """Where a task is defined: its file, or its module."""
    module = sys.modules.get(task.__module__)
    return getattr(module, "__file__", None) or task.__module__

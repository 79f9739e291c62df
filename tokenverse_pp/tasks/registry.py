"""Tasks by name: those of the package, of installed packages (entry points) and of plugins (files or modules).

`render` and `parse` convert between `Answers` and text with task tokens.
"""

from __future__ import annotations

import copyreg
import hashlib
import importlib
import inspect
import re
import sys
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, Iterator, List, Mapping, MutableMapping, Optional, Sequence, Tuple, Type

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.tasks.asr import Asr
from tokenverse_pp.tasks.base import Task, TaskSet
from tokenverse_pp.tasks.endp import Endpoint
from tokenverse_pp.tasks.lid import CODE, LanguageId, language_code, language_token
from tokenverse_pp.tasks.ner import NamedEntities
from tokenverse_pp.tasks.punct import Punctuation
from tokenverse_pp.tasks.scd import SpeakerChange
from tokenverse_pp.tasks.transcript import Answers, is_task_token, split_marks

GROUP = "tokenverse_pp.tasks"  # entry point group: ``NAME_OF_TASK = "my_package.my_module:MyTask"``


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
    """Yield (entry point name, its target, the task class or the reason why it cannot be loaded)."""
    found: Any = entry_points()
    group = found.select(group=GROUP) if hasattr(found, "select") else found.get(GROUP, ())  # Python 3.9 has a dict
    for point in sorted(set(group), key=lambda point: (point.name, point.value)):
        try:
            yield point.name, point.value, point.load()
        except Exception as error:  # foreign modules may raise anything: other tasks stay usable
            yield point.name, point.value, f"{type(error).__name__}: {error}"


def is_file(plugin: str) -> bool:
    """Whether a plugin is a file path and not a module name."""
    return plugin.endswith(".py") or "/" in plugin or "\\" in plugin


def resolved(plugin: str) -> str:
    """Return the absolute path of a file, so that it is found from other folders, or a module's name unchanged."""
    return str(Path(plugin).resolve()) if is_file(plugin) else plugin


def import_plugin(plugin: str) -> List[Type[Task]]:
    """Run a Python file, or import a module, and return the tasks that it defines (raises UserError without any)."""
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
    """Load a file as a module with a unique name; it runs once per process."""
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    source = path.read_bytes()  # FileNotFoundError before anything is created
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    for cls in task_classes(module):
        # Worker processes that do not share this one's memory must run the file again to know the class.
        copyreg.pickle(cls, _reduce)  # type: ignore[arg-type]
    return module


def _reduce(task: Task) -> Tuple[Any, Tuple[str, str, Mapping[str, Any]]]:
    path = str(sys.modules[type(task).__module__].__file__)
    return _rebuild, (path, type(task).__name__, task.options())


def _rebuild(path: str, cls: str, options: Mapping[str, Any]) -> Task:
    return getattr(_run_file(Path(path)), cls).from_options(options)


def origin(task: Type[Task]) -> str:
    """The file or module in which a task is defined."""
    module = sys.modules.get(task.__module__)
    return getattr(module, "__file__", None) or task.__module__


BUILT_IN: Dict[str, Type[Task]] = {
    task.name: task for task in (Asr, SpeakerChange, Endpoint, NamedEntities, LanguageId, Punctuation)
}
NAME = re.compile(r"[a-z][a-z0-9_]*")
# Keys of scores.json and hyps.jsonl, which cannot be task names.
RESERVED = {
    *("wer", "wer_by_corpus", "wer_by_corpus_and_language", "utterances", "not_decoded", "refused", "speed", "options"),
    *("id", "text", "tokens", "times", "words", "score", "tasks", "language", "turns", "speaker_changes"),
    *("endpoints", "entities", "written"),
}


class Registry(MutableMapping[str, Type[Task]]):
    """Task classes by name: those of the package first, then external ones in alphabetical order.

    So the order does not depend on the order of imports. Entry points are read on the first access.
    """

    def __init__(self) -> None:
        self._outside: Dict[str, Type[Task]] = {}
        self.broken: Dict[str, str] = {}  # entry points that cannot be loaded: name -> reason
        self._complete = False

    def _all(self) -> Dict[str, Type[Task]]:
        if not self._complete:
            self._complete = True  # set first: the modules imported below may use the registry
            for name, target, found in entry_point_tasks():
                if isinstance(found, type) and issubclass(found, Task) and getattr(found, "name", None) == name:
                    self.add(found)
                elif isinstance(found, str):
                    self.broken[name] = f"{target} cannot be imported: {found}"
                else:
                    self.broken[name] = f"{target} is no task of that name"
        return {**BUILT_IN, **dict(sorted(self._outside.items()))}

    def add(self, task: Type[Task]) -> None:
        """Add an external task (raises UserError if the name is invalid, or another task has it)."""
        name, source = task.name, origin(task)
        if not NAME.fullmatch(name) or name in RESERVED:
            raise UserError(f"{source}: task name {name!r}: expected small letters, digits and _, not a taken name")
        known = BUILT_IN.get(name) or self._outside.get(name)
        if known is not None and origin(known) != source:
            raise UserError(f"{source}: task {name!r} is defined already, by {origin(known)}")
        self[name] = task

    def __getitem__(self, name: str) -> Type[Task]:
        return self._all()[name]

    def __setitem__(self, name: str, task: Type[Task]) -> None:
        if name not in BUILT_IN:
            self._outside[name] = task

    def __delitem__(self, name: str) -> None:
        del self._outside[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


REGISTRY = Registry()


def register(task: Type[Task]) -> Type[Task]:
    """Add an external task (also a class decorator); `load_plugins` adds all tasks of a file."""
    REGISTRY.add(task)
    return task


def load_plugins(names: Sequence[str]) -> List[str]:
    """Register all tasks of files (paths) and modules (dotted names); return ``names`` with absolute paths.

    Raises:
        UserError: naming the file or module that is missing, cannot be imported, or defines no task.
    """
    for name in names:
        for task in import_plugin(name):
            REGISTRY.add(task)
    return [resolved(name) for name in names]


def load_plugins_for(
    tasks: Sequence[str], names: Sequence[str], trust: bool = False, folder: Optional[Path] = None
) -> None:
    """Check that the tasks of a saved model are known; with ``trust``, run the model's files for unknown ones.

    These files are code of the model's author, so users should name files that they trust (`load_plugins`). Tasks are
    identified by name, so a file may have moved since training.

    Args:
        names: files or modules that the model names (``tasks.plugins`` of its configuration).
        trust: run these files. Relative paths are looked up in ``folder``, then in the working directory.

    Raises:
        UserError: naming task and file, if a required file is not trusted or cannot be run.
    """
    unknown = [task for task in tasks if task not in REGISTRY]
    if not unknown or not names:
        return
    where = f"{folder}: " if folder is not None else ""
    if not trust:
        raise UserError(
            f"{where}task {unknown[0]!r} is not known, and {', '.join(map(repr, names))}, which the model names for "
            "it, is not run: it is code of the model's author. Give your own file of the task: --plugin FILE "
            "(plugins=[..]; in training tasks.plugins), or trust the model's: --trust-plugins (trust_plugins=True)"
        )
    try:
        load_plugins([_beside(name, folder) for name in names])
    except UserError as error:
        raise UserError(f"{where}task {unknown[0]!r}: {error}; if it is elsewhere now: --plugin FILE") from error


def _beside(name: str, folder: Optional[Path]) -> str:
    """Return a plugin's file in the model's folder if it is there, else its name."""
    held = folder / name if folder is not None and is_file(name) else None
    return str(held) if held is not None and held.is_file() else name


def build_tasks(names: Sequence[str], options: Optional[Mapping[str, Mapping[str, Any]]] = None) -> TaskSet:
    """The tasks of a model, in registry order.

    Args:
        names: task names; ``asr`` is added if missing.
        options: options by task name, e.g. ``{"lid": {"languages": ["fr"]}, "ner": {"types": ["NUM"]}}``.

    Raises:
        UserError: for an unknown task, an unknown option of a task, or a token of two tasks.
    """
    for name in names:
        if name not in REGISTRY:
            raise UserError(unknown_task(name))
    options = options or {}
    wanted = {"asr", *names}
    return _checked(TaskSet(tuple(_built(n, cls, options.get(n, {})) for n, cls in REGISTRY.items() if n in wanted)))


def unknown_task(name: Any) -> str:
    """The message for an unknown task name."""
    hint = f" (entry point {name}: {REGISTRY.broken[name]})" if name in REGISTRY.broken else ""
    return f"unknown task {name!r}: expected some of {', '.join(REGISTRY)}{hint}"


def _built(name: str, cls: Type[Task], options: Mapping[str, Any]) -> Task:
    try:
        return cls.from_options(options)
    except TypeError as error:
        raise UserError(f"options of task {name}: {dict(options)!r}: {error}") from None


def _checked(tasks: TaskSet) -> TaskSet:
    """Return the tasks after checking that their tokens differ from words and from each other."""
    for task in tasks.tasks:
        wrong = [symbol for symbol in task.symbols if not is_task_token(symbol) or " " in symbol]
        if wrong:
            raise UserError(f"task {task.name}: token {wrong[0]!r}: expected square brackets around it, and no space")
    twice = [symbol for symbol, count in Counter(tasks.symbols).items() if count > 1]
    if twice:
        owners = ", ".join(task.name for task in tasks.tasks if task.owns(twice[0]))
        raise UserError(f"token {twice[0]} belongs to several tasks: {owners}")
    return tasks


def task_options(tasks: TaskSet) -> Dict[str, Dict[str, Any]]:
    """Return the options with which `build_tasks` builds the same set again."""
    return {task.name: task.options() for task in tasks.tasks if task.options()}


def render(transcript: Answers, tasks: TaskSet) -> str:
    """Write a transcript with the tokens of ``tasks``.

    >>> render(Answers(("oui",), {"lid": "fr", "endp": (1,)}), build_tasks(["lid", "endp"]))
    '[FR] oui [ENDP]'
    """
    return tasks.render(transcript)


def parse(text: str, tasks: Optional[TaskSet] = None) -> Answers:
    """Read text with task tokens. Never raises: task classes document how they read malformed output.

    Without ``tasks``, every registered task is read, and any other ``[XX]`` is read as a language token.

    >>> parse("[FR] oui [ENDP]", build_tasks(["lid", "endp"], {"lid": {"languages": ["fr"]}}))
    Answers(words=('oui',), answers={'endp': (1,), 'lid': 'fr'})
    """
    words = text.split()
    return (tasks or tasks_for_tokens(words)).read(*split_marks(words))


def tasks_for_tokens(words: Sequence[str]) -> TaskSet:
    """Return all registered tasks, with the options that the tokens in ``words`` imply (languages, entity types)."""
    tokens = [word for word in words if is_task_token(word)]
    options: Dict[str, Dict[str, Any]] = {name: cls.options_for(tokens) for name, cls in REGISTRY.items()}
    others = [name for name in REGISTRY if name != "lid"]
    known = {*build_tasks(others).symbols, *build_tasks(others, options).symbols}
    # Any token that no other task owns is taken as a language.
    codes = [language_code(token) for token in dict.fromkeys(tokens) if token not in known]
    languages = [c for c in dict.fromkeys(codes) if CODE.fullmatch(c) and language_token(c) not in known]
    return build_tasks(list(REGISTRY), {**options, "lid": {"languages": languages}})

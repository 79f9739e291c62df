"""Options of commands: made from the fields of a dataclass, or shared by several commands (docs/security.md)."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Literal,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import click

from tokenverse_pp.base.engine import EngineOptions, opened
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import PathLike, url_of
from tokenverse_pp.base.options import option_help

Command = Callable[..., Any]
PATH = click.Path(path_type=Path)
FILE = click.Path(dir_okay=False)
EMPTY: Tuple[Any, ...] = (None, "", (), frozenset())  # defaults that stand for "not given"


def together(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Combine decorators into one; their options come in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


class NamedNumber(click.ParamType):
    """``NAME=NUMBER`` of a command line -> (NAME, NUMBER)."""

    def __init__(self, name: str, example: str):
        self.name, self.example = name, example

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> Tuple[str, float]:
        """Return the pair (raises UserError)."""
        name, _, text = value.rpartition("=")
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not name or not math.isfinite(number):
            option = f"{param.opts[0]}: " if param else ""
            raise UserError(f"{option}expected {self.name} such as {self.example}, got {value!r}")
        return name, number


def options_from(cls: type, *names: str, **changes: Mapping[str, Any]) -> Callable[[Command], Command]:
    """Options of a command from fields of a dataclass: names, types, defaults and help.

    The help is the docstring of the field. ``Literal`` fields become choices, tuples and sets may be given several
    times, ``bool`` fields are flags, with a ``--no-`` form if they are on by default.

    Args:
        names: the fields that get an option, in the order of ``--help``; all of them if none is named.
        changes: field -> arguments of ``click.option`` that differ (``type``, ``default``, ``help``, ..); ``option`` is
            another name of the option, ``type=click.Choice(..)`` sets the choices of a string. With ``default=None``
            the help names the default of the field, and None means that the option was not given.
    """
    hints, texts = get_type_hints(cls), option_help(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    names = names or tuple(fields)
    unused = set(changes) - set(names)
    if unused:
        raise ValueError(f"changes of options that are not made: {', '.join(sorted(unused))}")
    made = [_option(name, hints[name], fields[name].default, texts.get(name), changes.get(name, {})) for name in names]
    return together(*made)


def _option(name: str, hint: Any, default: Any, text: Any, changes: Mapping[str, Any]) -> Callable[[Command], Command]:
    """One option of `options_from`."""
    if get_origin(hint) is Union:  # Optional[X]
        hint = next(part for part in get_args(hint) if part is not type(None))
    arguments: Dict[str, Any] = {"help": text[:1].upper() + text[1:] if text else None}
    given = default is not dataclasses.MISSING and default not in EMPTY
    if given and changes.get("default", default) is None:
        arguments["help"] = f"{arguments['help']} [default: {default}]"
    if given:
        arguments["default"] = default
    if "type" not in changes and get_origin(hint) in (tuple, frozenset):
        hint = get_args(hint)[0]
        arguments["multiple"] = True
    if hint is bool:
        arguments["is_flag"] = True
    elif hint is Path:
        arguments["type"] = PATH
    else:
        arguments["type"] = click.Choice(get_args(hint)) if get_origin(hint) is Literal else hint
    arguments.update({key: value for key, value in changes.items() if key != "option"})
    default = arguments.get("default")
    option = changes.get("option", f"--{name.replace('_', '-')}")
    if hint is bool and default:
        option = f"{option}/--no-{option[2:]}"
    if default is not False and default not in EMPTY:
        arguments.setdefault("show_default", True)
    return click.option(option, name, **arguments)


def chosen(cls: type, given: Mapping[str, Any], **others: Any) -> Any:
    """Build a dataclass from the options of a command line; fields without an option keep their defaults."""
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{**{name: value for name, value in given.items() if name in names}, **others})


# Changes for the field of that name in `options_from`.
TOKEN_BIAS = {"type": NamedNumber("TOKEN=NUMBER", "[SCD]=0.7"), "multiple": True}

# Options of commands that load a model by its folder, name or hub id.
model_option = click.option("--model", required=True, help="Model folder, checkpoint, experiment, name or hub id.")
model_options = together(
    click.option("--model", help="Folder, name or hub id of a model. [default: human-speech, an example]"),
    click.option("--encoder", help="Folder of the model's pretrained encoder, if it is not found."),
)


def known_model(model: Optional[str]) -> str:
    """The model of `model_options`: the one named, else the example model, which is told on stderr."""
    from tokenverse_pp.api.folders import ABOUT_DEFAULT, DEFAULT  # torch

    if model is None:
        click.echo(f"model: {ABOUT_DEFAULT}", err=True)
    return model or DEFAULT


device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ..")
jobs_option = click.option(
    "--num-jobs",
    "--jobs",
    "jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that read, convert and write audio.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    help="CPU threads; 0: OMP_NUM_THREADS if set, else by the size of the model and the number of cores.",
)

# Of commands that write a manifest; they call `refuse_existing`. Reports (scores, comparisons, plots) are replaced.
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace files that exist already.")


def refuse_existing(outputs: Iterable[PathLike], overwrite: bool, hint: str = "") -> None:
    """Check that no output (a path or a URL) exists, unless it may be replaced (raises UserError)."""
    for path in () if overwrite else outputs:
        url = url_of(path)
        if url is not None:
            from tokenverse_pp.base.storage import exists  # needs no package until a URL is given
        if exists(url) if url is not None else os.path.lexists(path):
            raise UserError(f"{url or path}: exists already; --overwrite replaces it{hint}")


def engine_options(command: Command) -> Command:
    """Add ``--engine`` and its options to a corpus job. The engine is the current one while the command runs."""

    @options_from(EngineOptions, ray_address={"type": str}, worker_gpus={"type": float})
    @functools.wraps(command)
    def with_engine(*arguments: Any, **options: Any) -> Any:
        own = {field.name: options.pop(field.name) for field in dataclasses.fields(EngineOptions)}
        if own["engine"] == "process":
            unused = [name for name, value in own.items() if value and name != "engine"]
            if unused:
                raise UserError(f"--{unused[0].replace('_', '-')}: only with --engine ray")
        elif options.get("jobs", 1) > 1:
            raise UserError("--num-jobs: sets the processes of this machine; with --engine ray use --num-workers")
        with opened(EngineOptions(**own)):
            return command(*arguments, **options)

    return with_engine


# Options of commands that read a training configuration; their context needs ``ignore_unknown_options``.
config_options = together(
    click.option(
        "--config",
        "config_files",
        multiple=True,
        type=PATH,
        help="Training configuration; if given again, later files override. Single values: --section.key value.",
    ),
    click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[--SECTION.KEY VALUE]..."),
)


def read_config(config_files: Sequence[Path], overrides: Sequence[str]) -> Any:
    """The `Config` of `config_options`."""
    from tokenverse_pp.base.config_files import parse_config

    return parse_config([*(word for path in config_files for word in ("--config", str(path))), *overrides])


def plugin_option(command: Command) -> Command:
    """Add ``--plugin``: files with tasks, which are run before the command."""

    @click.option(
        "--plugin",
        "plugins",
        multiple=True,
        metavar="FILE",
        help="Python file, or module, with tasks of your own (docs/new_task.md); may be given several times.",
    )
    @functools.wraps(command)
    def with_plugins(*arguments: Any, plugins: Tuple[str, ...], **options: Any) -> Any:
        if plugins:
            from tokenverse_pp.tasks import load_plugins

            load_plugins(plugins)
        return command(*arguments, **options)

    return with_plugins


def plugin_options(command: Command) -> Command:
    """Add ``--plugin`` and ``--trust-plugins`` to a command that loads a model and takes ``trust_plugins``."""
    trust = click.option(
        "--trust-plugins",
        is_flag=True,
        help="Run the files that the model names for its tasks. This runs code of the model's author.",
    )
    return plugin_option(trust(command))


def source_options(command: Command) -> Command:
    """Add ``--allow-commands`` and ``--allow-urls`` to a command that loads the audio of manifests."""

    @click.option(
        "--allow-commands", is_flag=True, help="Run shell commands that the manifest names as sources of audio."
    )
    @click.option("--allow-urls", is_flag=True, help="Open URLs that the manifest names as sources of audio.")
    @functools.wraps(command)
    def with_sources(*arguments: Any, allow_commands: bool, allow_urls: bool, **options: Any) -> Any:
        from tokenverse_pp.data.access import allow_sources

        with allow_sources(allow_commands, allow_urls):
            return command(*arguments, **options)

    return with_sources

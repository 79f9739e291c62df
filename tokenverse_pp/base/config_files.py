"""Configurations from command lines and YAML, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence, Union

import yaml

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.config_checks import check_activation, check_config, check_languages
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import yaml_of
from tokenverse_pp.base.option_help import nested_option_help


def parse_config(argv: Optional[Sequence[str]] = None, description: str = "") -> Config:
    """Command line -> configuration: ``--config FILE`` and overrides.

    Raises:
        UserError: for an unknown option or a value of the wrong type.
    """
    parser = make_parser(description)
    with type_errors():
        parsed = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
        config = check_config(from_dict(parser.dump(parsed, skip_none=False)))
    # Of what is to be trained; a model that was so trained still loads.
    check_activation(config)
    check_languages(config.tasks)
    return config


def make_parser(description: str = "") -> Any:
    """A jsonargparse parser of all options, whose help is the docstrings of the fields; errors are raised."""
    from jsonargparse import ActionConfigFile, ArgumentParser

    parser = ArgumentParser(description=description, exit_on_error=False, print_config="--print_config")
    about = "YAML file with any of the options below; may be given several times, later files win"
    parser.add_argument("--config", action=ActionConfigFile, help=about)
    parser.add_class_arguments(Config, None, fail_untyped=True)
    # Not by jsonargparse's own setting for attribute docstrings, which is global and was renamed between releases.
    help_of = nested_option_help(Config())
    for action in parser._actions:
        if action.dest in help_of:
            action.help = help_of[action.dest].replace("%", "%%")
    return parser


@contextlib.contextmanager
def type_errors() -> Iterator[None]:
    """Values that are not of their option's type as a UserError of one line."""
    from jsonargparse import ArgumentError

    try:
        yield
    except OverflowError as error:  # a whole number that no float holds
        raise UserError(f"a number is too large: {error}") from None
    except ArgumentError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(" ".join(lines[:3])) from None


def from_dict(source: Union[str, Dict[str, Any]]) -> Config:
    """YAML text or nested dictionaries -> configuration.

    Raises:
        UserError: for a key that no section has.
    """
    data = yaml_of(source) if isinstance(source, str) else source
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key != "config"}
    return _build(Config, data, "")


def _build(cls: Any, data: Any, where: str) -> Any:
    """Nested dictionaries -> nested dataclasses; sections are known by their defaults being dataclasses."""
    if not isinstance(data, dict):
        raise UserError(f"configuration section {where or 'root'!r}: expected a mapping, found {data!r}")
    sections = {f.name: f.default_factory for f in dataclasses.fields(cls)}
    values = {}
    for key, value in data.items():
        if key not in sections:
            raise UserError(f"configuration: unknown key {where}{key}")
        section = sections[key]
        values[key] = _build(section, value, f"{where}{key}.") if dataclasses.is_dataclass(section) else value
    return cls(**values)


def check_types(config: Config) -> None:
    """See that values are of their options' types (raises UserError).

    `tasks.settings` is looked at here alone: its values are of any type, and of a mapping with ``class_path`` in it
    jsonargparse would import the module.
    """
    values = dataclasses.asdict(config)
    settings = values["tasks"].pop("settings")
    if not isinstance(settings, dict) or not all(isinstance(options, dict) for options in settings.values()):
        raise UserError(f"tasks.settings: expected mappings of options by task, found {repr(settings)[:200]}")
    if not all(isinstance(key, str) for options in [settings, *settings.values()] for key in options):
        raise UserError("tasks.settings: expected names of tasks and options")
    _check_nulls(config, "")
    with type_errors():
        make_parser().parse_object(values)


def _check_nulls(section: Any, where: str) -> None:
    """See that no option is null that cannot be, which jsonargparse lets pass (raises UserError)."""
    for option in dataclasses.fields(section):
        value = getattr(section, option.name)
        if dataclasses.is_dataclass(value):
            _check_nulls(value, f"{where}{option.name}.")
        elif value is None and "Optional" not in str(option.type):
            raise UserError(f"{where}{option.name}: expected a value, found null")


def save_config(config: Config, path: Union[str, Path]) -> None:
    """Write the resolved configuration as YAML."""
    Path(path).write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), encoding="utf-8")


def load_config(path: Union[str, Path]) -> Config:
    """Read what `save_config` wrote, and may have been edited since.

    Raises:
        UserError: naming the file, where it is missing, no YAML, or holds an unknown key or a value of the wrong type.
    """
    try:
        config = from_dict(Path(path).read_text(encoding="utf-8"))
        check_types(config)
        return check_config(config)
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None

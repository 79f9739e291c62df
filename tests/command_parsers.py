"""The parsers of our programs, run on commands of documents without running the programs."""

from __future__ import annotations

import argparse
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, List, NoReturn, Optional, Sequence, Tuple

import click
import pytest
from scripts import ROOT, load_script

from tokenverse_pp.base.config_files import make_parser, parse_config, type_errors
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli import manifest_import as import_corpus
from tokenverse_pp.cli.main import cli

PLACEHOLDER = re.compile(r"'([A-Z][A-Z_]*)'")


class Parsed(Exception):
    """A parser has taken all words."""


@cache
def problem_of_parser(program: str, words: Tuple[str, ...]) -> Optional[str]:
    """What the parser of a program says of words; None if it takes them, or if there is none to ask."""
    if program.endswith("tokenverse-pp"):
        return problem_of_click(cli, words)
    if program == "recipes/train.py":
        return problem_of_training(words)
    if program == "tokenverse_pp.runtime":
        from tokenverse_pp.runtime.__main__ import main

        return problem_of_argparse(main, program, words)
    if not program.endswith(".py"):
        return None
    module = script_of(program)
    if module is None:
        return None
    found = next((c for c in (getattr(module, n, None) for n in ("main", "cli")) if isinstance(c, click.Command)), None)
    if found is not None:
        return problem_of_click(found, words)
    return problem_of_argparse(module.main, program, words) if hasattr(module, "main") else None


@cache
def script_of(program: str) -> Optional[ModuleType]:
    """A script as a module; None where a package that it needs is not installed."""
    name = "parsed_" + re.sub(r"\W", "_", program)
    try:
        return load_script(ROOT / program, name)
    except ImportError:
        return None


def problem_of_click(command: click.Command, words: Sequence[str]) -> Optional[str]:
    """Of a click command or group: files need not be there, and placeholders such as N are taken for any value."""
    has_plugin, words = "--plugin" in words, list(words)
    while "--plugin" in words:
        at = words.index("--plugin")
        del words[at : at + 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(click.Path, "convert", _path)
        try:
            context = command.make_context(command.name, words)
            while isinstance(command, click.Group):
                rest = [*getattr(context, "_protected_args", getattr(context, "protected_args", [])), *context.args]
                if not rest:
                    return None
                _, command, rest = command.resolve_command(context, rest)
                context = command.make_context(command.name, rest, parent=context)
            if command is import_corpus.import_corpus and not has_plugin:
                given = {k: v for k, v in context.params.items() if k not in ("output", "overwrite")}
                import_corpus.options_of(given).turns  # noqa: B018
        except click.exceptions.Exit:
            return None  # --help
        except (click.ClickException, UserError) as error:
            said = error.format_message() if isinstance(error, click.ClickException) else str(error)
            wrong_value = isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter)
            if wrong_value and PLACEHOLDER.search(said):
                return None
            return None if type(error).__name__ == "NoArgsIsHelpError" else said
    return None


def _path(self: click.Path, value: Any, param: Any, ctx: Any) -> Any:
    return value if self.type is None else self.type(value)


def problem_of_argparse(main: Any, program: str, words: Sequence[str]) -> Optional[str]:
    """Of a ``main`` that parses first: it is stopped as soon as it has."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> NoReturn:
        parse(self, *args, **kwargs)
        raise Parsed

    def fail(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise UserError(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(argparse.ArgumentParser, "error", fail)
        patch.setattr(sys, "argv", [program, *words])
        patch.setattr(argparse.ArgumentParser, "print_help", lambda self, file=None: None)
        try:
            main()
        except Parsed:
            return None
        except SystemExit as done:
            return None if done.code in (0, None) else str(done.code)
        except UserError as error:
            return None if re.search(r"invalid \S+ value: '[A-Z][A-Z_]*'", str(error)) else str(error)
    return "it does not parse first"


def problem_of_training(words: Sequence[str]) -> Optional[str]:
    """Of recipes/train.py: the whole configuration is checked where all its files are in the repository."""
    words, missing = list(words), False
    for at, word in enumerate(words):
        if word == "--config" and at + 1 < len(words) and not (ROOT / words[at + 1]).is_file():
            if words[at + 1].startswith("recipes/") or not words[at + 1].endswith((".yaml", "...")):
                return f"no file {words[at + 1]}"
            words[at : at + 2] = ["", ""]
            missing = True
        elif word == "--config" and at + 1 < len(words):
            words[at + 1] = str(ROOT / words[at + 1])
    words = [word for word in words if word]
    if set(words) & {"--help", "-h"}:
        return None
    try:
        if missing:
            with type_errors():
                make_parser().parse_args(words)
        else:
            parse_config(words)
    except UserError as error:
        return str(error)
    return None


def trainings(commands: Sequence[Any]) -> List[Any]:
    """The calls of recipes/train.py all of whose configurations are in the repository, each once."""
    found = {}
    for command in commands:
        files = [value for word, value in zip(command.words, command.words[1:]) if word == "--config"]
        if command.words[0] == "recipes/train.py" and files and all((ROOT / Path(file)).is_file() for file in files):
            found.setdefault(command.words, command)
    return list(found.values())

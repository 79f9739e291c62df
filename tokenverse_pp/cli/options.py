"""Options that several commands have: code of models, and what manifests may open (docs/security.md)."""

from __future__ import annotations

import functools
from typing import Any, Callable, Tuple

import click

Command = Callable[..., Any]


def plugin_option(command: Command) -> Command:
    """``--plugin``: files of tasks, which are run before the command."""

    @click.option(
        "--plugin",
        "plugins",
        multiple=True,
        metavar="FILE",
        help="Python file, or module, with tasks of your own; may be given several times.",
    )
    @functools.wraps(command)
    def with_plugins(*arguments: Any, plugins: Tuple[str, ...], **options: Any) -> Any:
        load_given(plugins)
        return command(*arguments, **options)

    return with_plugins


def plugin_options(command: Command) -> Command:
    """``--plugin`` and ``--trust-plugins``, for a command that loads a model; it is called with ``trust_plugins``."""
    trust = click.option(
        "--trust-plugins", is_flag=True, help="Run the files that the model names for its tasks: code of its author."
    )
    return plugin_option(trust(command))


def load_given(plugins: Tuple[str, ...]) -> None:
    """Run the files that the command line names (raises UserError)."""
    if plugins:
        from tokenverse_pp.tasks import load_plugins

        load_plugins(plugins)


def source_options(command: Command) -> Command:
    """``--allow-commands`` and ``--allow-urls``, for a command that loads the audio of manifests."""

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

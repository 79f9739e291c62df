"""Options of the commands that prepare corpora; their names are arguments of the functions that do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import click

OPTIONS = (
    click.option(
        "--output-dir", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to fill."
    ),
    click.option(
        "--packages-dir",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder that holds the Debian packages; without it they are fetched by `apt-get download`.",
    ),
    click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Processes for audio."),
    click.option("--seed", type=int, default=1, show_default=True, help="Of the split and the compositions."),
    click.option(
        "--speed",
        type=click.FloatRange(0.0, 0.5, max_open=True),
        default=0.08,
        show_default=True,
        help="Second and later training compositions are played at 1 - SPEED to 1 + SPEED.",
    ),
    click.option(
        "--compositions",
        type=click.IntRange(min=1),
        default=2,
        show_default=True,
        help="Examples that each training line appears in.",
    ),
)


def preparing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command

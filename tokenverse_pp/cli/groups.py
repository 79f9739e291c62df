"""Click groups that import commands when they are called, and report user errors in one line with exit code 2."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import sys
from typing import Any, Dict, Iterator, List, Optional

import click

from tokenverse_pp.base.engine import messages_to
from tokenverse_pp.base.errors import UserError, printable

EXIT_CODE = 2


def error_line(error: BaseException) -> Optional[str]:
    """The message for an error in a file, option or label; None for a bug in the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None and error.errno != errno.EPIPE:
        name = f"{error.filename}: " if error.filename is not None else ""
        return printable(f"{name}{error.strerror}").replace("\n", "\\n")
    if isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":  # a terminal or pipe of Windows, or Latin-1
        found = ascii(error.object[error.start : error.end])
        return f"the output's encoding ({sys.stdout.encoding}) has no {found:.60}: set PYTHONUTF8=1, or write to files"
    return None


class Group(click.Group):
    """A group whose commands report user errors in one line on stderr, with exit code 2.

    Args:
        lazy: command name -> file of this folder that holds it, imported when the command is used.
    """

    def __init__(self, *args: Any, lazy: Optional[Dict[str, str]] = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lazy = lazy or {}

    def list_commands(self, ctx: click.Context) -> List[str]:
        """Names of all commands."""
        return sorted({*super().list_commands(ctx), *self.lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        """A command by name, imported if necessary."""
        if cmd_name in self.lazy:
            found = vars(importlib.import_module(f"tokenverse_pp.cli.{self.lazy[cmd_name]}")).values()
            return next(each for each in found if isinstance(each, click.Command) and each.name == cmd_name)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see the class."""
        try:
            return super().invoke(ctx)
        except (UserError, OSError, UnicodeEncodeError) as error:
            line = error_line(error)
            if line is None:
                raise
            click.echo(f"error: {line}", err=True)
            raise click.exceptions.Exit(EXIT_CODE) from error


class MessageHandler(logging.Handler):
    """Writes messages to stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        from tqdm import tqdm

        tqdm.write(printable(record.getMessage()), file=sys.stderr)


def quieten() -> None:
    """Show warnings only; for all processes of a run except the first."""
    logging.getLogger("tokenverse_pp").setLevel(logging.WARNING)


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Report user errors in one line with exit code 2, and Ctrl-C with exit code 130; show log messages."""
    try:
        with messages_to(MessageHandler()):
            yield
    except (UserError, OSError, UnicodeEncodeError) as error:
        line = error_line(error)
        if line is None:
            raise
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)

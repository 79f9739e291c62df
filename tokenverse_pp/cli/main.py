"""``tokenverse-pp``: the top of the command line."""

from __future__ import annotations

from typing import Tuple

import click

import tokenverse_pp
from tokenverse_pp.cli.groups import Group

COMMANDS = {
    "average": "tokenverse_pp.cli.average:average",
    "calibrate": "tokenverse_pp.cli.calibrate:calibrate",
    "compare": "tokenverse_pp.cli.compare:compare",
    "export": "tokenverse_pp.cli.export:export",
    "manifest": "tokenverse_pp.cli.manifest:manifest",
    "report": "tokenverse_pp.cli.report:report",
    "score": "tokenverse_pp.cli.score:score",
    "serve": "tokenverse_pp.cli.serve:serve",
    "stream": "tokenverse_pp.cli.stream:stream",
    "transcribe": "tokenverse_pp.cli.transcribe:transcribe",
}


@click.group(cls=Group, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tokenverse_pp.__version__, prog_name="tokenverse-pp")
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="FILE",
    help="A Python file, or module, that defines tasks of your own (docs/new_task.md); may be given several times.",
)
def cli(plugins: Tuple[str, ...]) -> None:
    """Speech recognition with speaker changes, endpoints, entities and language in one transcript."""
    if plugins:
        from tokenverse_pp.tasks import load_plugins

        load_plugins(plugins)


if __name__ == "__main__":
    cli()

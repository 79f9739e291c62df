"""``tokenverse-pp``: the top of the command line."""

from __future__ import annotations

import click

import tokenverse_pp
from tokenverse_pp.cli.groups import Group

COMMANDS = {
    "average": "tokenverse_pp.cli.average:average",
    "calibrate": "tokenverse_pp.cli.calibrate:calibrate",
    "manifest": "tokenverse_pp.cli.manifest:manifest",
    "report": "tokenverse_pp.cli.report:report",
    "score": "tokenverse_pp.cli.score:score",
}


@click.group(cls=Group, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tokenverse_pp.__version__, prog_name="tokenverse-pp")
def cli() -> None:
    """Speech recognition with speaker changes, endpoints, entities and language in one transcript."""


if __name__ == "__main__":
    cli()

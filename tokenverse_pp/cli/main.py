"""``tokenverse-pp manifest``: from corpora and tables to labelled cuts. One file a command in manifest_commands/.

``tokenverse-pp``: the top of the command line.
"""

from __future__ import annotations

from typing import Tuple

import click

import tokenverse_pp
from tokenverse_pp.cli.groups import Group

HERE = "tokenverse_pp.cli"
MANIFEST_COMMANDS = {
    "conversations": f"{HERE}.manifest_edit:conversations",
    "import": f"{HERE}.manifest_import:import_corpus",
    "label": f"{HERE}.manifest_edit:label",
    "mix": f"{HERE}.manifest_edit:mix",
    "show": f"{HERE}.manifest_inspect:show",
    "split": f"{HERE}.manifest_edit:split",
    "stats": f"{HERE}.manifest_inspect:stats",
    "subset": f"{HERE}.manifest_edit:subset",
    "store-features": f"{HERE}.manifest_inspect:store_features",
    "to-shar": f"{HERE}.manifest_inspect:to_shar",
    "validate": f"{HERE}.manifest_inspect:validate",
}
PREPARE = {
    "ami": f"{HERE}.manifest_prepare:ami",
    "callhome-english": f"{HERE}.manifest_prepare:callhome_english",
    "commonvoice": f"{HERE}.manifest_prepare:commonvoice",
    "eval2000": f"{HERE}.manifest_prepare:eval2000",
    "librispeech": f"{HERE}.manifest_prepare:librispeech",
    "mls": f"{HERE}.manifest_prepare:mls",
    "voxpopuli": f"{HERE}.manifest_prepare:voxpopuli",
}


@click.group(cls=Group, lazy=MANIFEST_COMMANDS)
def manifest() -> None:
    """Labelled cuts: get them from corpora and tables, check, count, label, mix and split them."""


@manifest.group(cls=Group, lazy=PREPARE)
def prepare() -> None:
    """Turn a corpus into labelled cuts."""


COMMANDS = {
    "average": "tokenverse_pp.cli.model:average",
    "calibrate": "tokenverse_pp.cli.evaluate:calibrate",
    "compare": "tokenverse_pp.cli.evaluate:compare",
    "export": "tokenverse_pp.cli.model:export",
    "manifest": "tokenverse_pp.cli.main:manifest",
    "report": "tokenverse_pp.cli.evaluate:report",
    "score": "tokenverse_pp.cli.evaluate:score",
    "serve": "tokenverse_pp.cli.serve:serve",
    "stream": "tokenverse_pp.cli.serve:stream",
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

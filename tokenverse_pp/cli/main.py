"""`tokenverse-pp`: the top of the command line; each command is imported when it is called."""

from __future__ import annotations

import click

import tokenverse_pp
from tokenverse_pp.cli.groups import Group
from tokenverse_pp.cli.options import plugin_option

# The commands, and the files here that hold them.
MANIFEST_COMMANDS = {
    **dict.fromkeys(("conversations", "label", "mix", "shuffle", "split", "subset"), "manifest_edit"),
    **dict.fromkeys(("index", "show", "stats", "store-features", "to-shar", "validate"), "manifest_inspect"),
    "import": "manifest_import",
}
CORPORA = ("ami", "callhome-english", "commonvoice", "earnings22", "eval2000", "fleurs", "huggingface", "librispeech")
PREPARE = dict.fromkeys((*CORPORA, "mls", "slue-voxpopuli", "voxpopuli"), "manifest_prepare")
COMMANDS = {
    **dict.fromkeys(("calibrate", "compare", "report", "score"), "evaluate"),
    **dict.fromkeys(("doctor", "estimate"), "doctor"),
    **dict.fromkeys(("average", "export", "tokenizer"), "model"),
    **dict.fromkeys(("serve", "stream"), "serve"),
    **dict.fromkeys(("endpoints", "tune"), "tune"),
    "transcribe": "transcribe",
}


@click.group(cls=Group, lazy=MANIFEST_COMMANDS)
def manifest() -> None:
    """Make labelled cuts from corpora and tables; check, count, label, mix and split them."""


@manifest.group(cls=Group, lazy=PREPARE)
def prepare() -> None:
    """Convert a corpus to labelled cuts."""


@click.group(cls=Group, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tokenverse_pp.__version__, prog_name="tokenverse-pp")
@plugin_option
def cli() -> None:
    """Speech recognition with speaker changes, endpoints, entities and language in one transcript."""


cli.add_command(manifest)

if __name__ == "__main__":
    cli()

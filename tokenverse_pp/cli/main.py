"""`tokenverse-pp`: the top of the command line; each command is imported when it is called."""

from __future__ import annotations

import click

import tokenverse_pp
from tokenverse_pp.cli.groups import Group
from tokenverse_pp.cli.options import plugin_option

HERE = "tokenverse_pp.cli"
MANIFEST_COMMANDS = {
    "conversations": f"{HERE}.manifest_edit:conversations",
    "import": f"{HERE}.manifest_import:import_corpus",
    "index": f"{HERE}.manifest_inspect:index",
    "label": f"{HERE}.manifest_edit:label",
    "mix": f"{HERE}.manifest_edit:mix",
    "show": f"{HERE}.manifest_inspect:show",
    "shuffle": f"{HERE}.manifest_edit:shuffle",
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
    "earnings22": f"{HERE}.manifest_prepare:earnings22",
    "eval2000": f"{HERE}.manifest_prepare:eval2000",
    "fleurs": f"{HERE}.manifest_prepare:fleurs",
    "huggingface": f"{HERE}.manifest_prepare:huggingface",
    "librispeech": f"{HERE}.manifest_prepare:librispeech",
    "mls": f"{HERE}.manifest_prepare:mls",
    "slue-voxpopuli": f"{HERE}.manifest_prepare:slue_voxpopuli",
    "voxpopuli": f"{HERE}.manifest_prepare:voxpopuli",
}


@click.group(cls=Group, lazy=MANIFEST_COMMANDS)
def manifest() -> None:
    """Make labelled cuts from corpora and tables; check, count, label, mix and split them."""


@manifest.group(cls=Group, lazy=PREPARE)
def prepare() -> None:
    """Convert a corpus to labelled cuts."""


COMMANDS = {
    "average": f"{HERE}.model:average",
    "calibrate": f"{HERE}.evaluate:calibrate",
    "compare": f"{HERE}.evaluate:compare",
    "doctor": f"{HERE}.doctor:doctor",
    "endpoints": f"{HERE}.tune:endpoints",
    "estimate": f"{HERE}.doctor:estimate",
    "export": f"{HERE}.model:export",
    "manifest": f"{HERE}.main:manifest",
    "report": f"{HERE}.evaluate:report",
    "score": f"{HERE}.evaluate:score",
    "serve": f"{HERE}.serve:serve",
    "stream": f"{HERE}.serve:stream",
    "tokenizer": f"{HERE}.model:tokenizer",
    "transcribe": f"{HERE}.transcribe:transcribe",
    "tune": f"{HERE}.tune:tune",
}


@click.group(cls=Group, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tokenverse_pp.__version__, prog_name="tokenverse-pp")
@plugin_option
def cli() -> None:
    """Speech recognition with speaker changes, endpoints, entities and language in one transcript."""


if __name__ == "__main__":
    cli()

"""``tokenverse-pp manifest``: from corpora and tables to labelled cuts. One file a command in manifest_commands/."""

from __future__ import annotations

import click

from tokenverse_pp.cli.groups import Group

HERE = "tokenverse_pp.cli.manifest_commands"
COMMANDS = {
    "label": f"{HERE}.label:label",
    "stats": f"{HERE}.stats:stats",
    "store-features": f"{HERE}.store_features:store_features",
    "validate": f"{HERE}.validate:validate",
}
PREPARE = {
    "human-speech": f"{HERE}.prepare_human_speech:human_speech",
}


@click.group(cls=Group, lazy=COMMANDS)
def manifest() -> None:
    """Labelled cut manifests: prepare, validate, count, store features."""


@manifest.group(cls=Group, lazy=PREPARE)
def prepare() -> None:
    """Turn a corpus into labelled cuts."""

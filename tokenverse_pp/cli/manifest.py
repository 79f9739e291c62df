"""``tokenverse-pp manifest``: from corpora and tables to labelled cuts. One file a command in manifest_commands/."""

from __future__ import annotations

import click

from tokenverse_pp.cli.groups import Group

HERE = "tokenverse_pp.cli.manifest_commands"
COMMANDS = {
    "conversations": f"{HERE}.conversations:conversations",
    "import": f"{HERE}.import_corpus:import_corpus",
    "label": f"{HERE}.label:label",
    "mix": f"{HERE}.mix:mix",
    "show": f"{HERE}.show:show",
    "split": f"{HERE}.split:split",
    "stats": f"{HERE}.stats:stats",
    "subset": f"{HERE}.subset:subset",
    "store-features": f"{HERE}.store_features:store_features",
    "to-shar": f"{HERE}.to_shar:to_shar",
    "validate": f"{HERE}.validate:validate",
}
PREPARE = {
    "ami": f"{HERE}.prepare_ami:ami",
    "callhome-english": f"{HERE}.prepare_callhome_english:callhome_english",
    "commonvoice": f"{HERE}.prepare_commonvoice:commonvoice",
    "eval2000": f"{HERE}.prepare_eval2000:eval2000",
    "human-speech": f"{HERE}.prepare_human_speech:human_speech",
    "librispeech": f"{HERE}.prepare_librispeech:librispeech",
    "mls": f"{HERE}.prepare_mls:mls",
    "voxpopuli": f"{HERE}.prepare_voxpopuli:voxpopuli",
}


@click.group(cls=Group, lazy=COMMANDS)
def manifest() -> None:
    """Labelled cuts: get them from corpora and tables, check, count, label, mix and split them."""


@manifest.group(cls=Group, lazy=PREPARE)
def prepare() -> None:
    """Turn a corpus into labelled cuts."""

"""`tokenverse-pp manifest to-shar`."""

from __future__ import annotations

from pathlib import Path

import click

from tokenverse_pp.cli.options import source_options


@click.command("to-shar")
@click.argument("cuts", type=click.Path(dir_okay=False))
@click.argument("output_dir", type=click.Path(path_type=Path))
@click.option("--shard-size", type=click.IntRange(min=1), default=1000, show_default=True, help="Cuts in a shard.")
@click.option(
    "--audio",
    type=click.Choice(["flac", "wav", "opus", "mp3", "original", "none"]),
    default="flac",
    show_default=True,
    help="Format of the audio; none stores features only.",
)
@source_options
def to_shar(cuts: str, output_dir: Path, shard_size: int, audio: str) -> None:
    """Write CUTS with their audio (and stored features) to OUTPUT_DIR as lhotse Shar, for large runs.

    \b
      manifest to-shar cuts_train.jsonl.gz shar/train --shard-size 2000

    Shards are read from start to end, which disks and network file systems are good at. The cuts stand in them in
    the order of CUTS: shuffle before (`manifest mix`), or let the training shuffle. data.train takes the folder in
    place of a manifest. Labels stay as they are: lhotse's CutSet.from_shar(in_dir=OUTPUT_DIR) gives them back.
    """
    from tokenverse_pp.manifests.progress import reading_bar
    from tokenverse_pp.manifests.shar import write_shar

    with reading_bar([cuts], "to-shar") as bar:
        report = write_shar(cuts, output_dir, shard_size, audio, bar)
    size = report["bytes"] / 1e6
    click.echo(f"{report['cuts']} cuts in {report['shards']} shards, {size:.1f} MB: {output_dir}")

"""Prepare human speech in seven languages from Debian packages.

python recipes/human_speech/prepare.py --output-dir data/human_speech
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click
from corpus.prepare import prepare_human_speech

from tokenverse_pp.cli.groups import report_errors


@click.command()
@click.option("--output-dir", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to fill.")
@click.option(
    "--packages-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that holds the Debian packages; without it they are fetched by `apt-get download`.",
)
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Processes for audio.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the split and the compositions.")
@click.option(
    "--speed",
    type=click.FloatRange(0.0, 0.5, max_open=True),
    default=0.08,
    show_default=True,
    help="Second and later training compositions are played at 1 - SPEED to 1 + SPEED.",
)
@click.option(
    "--compositions",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Examples that each training line appears in.",
)
def main(output_dir: Path, packages_dir: Optional[Path], jobs: int, seed: int, speed: float, compositions: int) -> None:
    """Prepare human speech in seven languages from Debian packages (about 360 MB are fetched)."""
    prepare_human_speech(output_dir, packages_dir, jobs, seed, speed, compositions, say=click.echo)


if __name__ == "__main__":
    with report_errors():
        main()

"""Prepare acted English speech with its texts from two games in Debian packages.

python recipes/human_speech/prepare_english.py --output-dir data/human_speech_en --beside data/human_speech
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click
from corpus.english import BAD_PAIRS, prepare_english

from tokenverse_pp.cli.groups import report_errors


@click.command()
@click.option("--output-dir", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to fill.")
@click.option(
    "--beside",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that prepare.py filled: no sentence is then in one set here and in another one there.",
)
@click.option(
    "--packages-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that holds the Debian packages; without it they are fetched by `apt-get download`.",
)
@click.option(
    "--bad-pairs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with ids of recordings to leave out, one a line; without it the recipe's own list.",
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
def main(
    output_dir: Path,
    beside: Optional[Path],
    packages_dir: Optional[Path],
    bad_pairs: Optional[Path],
    jobs: int,
    seed: int,
    speed: float,
    compositions: int,
) -> None:
    """Prepare six hours of acted English speech from two Debian packages (about 100 MB are fetched)."""
    prepare_english(
        output_dir, packages_dir, beside, bad_pairs or BAD_PAIRS, jobs, seed, speed, compositions, say=click.echo
    )


if __name__ == "__main__":
    with report_errors():
        main()

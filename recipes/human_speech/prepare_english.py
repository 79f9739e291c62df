"""Prepare acted English speech with its texts from two games in Debian packages.

python recipes/human_speech/prepare_english.py --output-dir data/human_speech_en --beside data/human_speech
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import click
from corpus.english import BAD_PAIRS, prepare_english
from corpus.options import preparing

from tokenverse_pp.cli.groups import report_errors


@click.command()
@preparing
@click.option(
    "--beside",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that prepare.py filled: no sentence is then in one set here and in another one there.",
)
@click.option(
    "--bad-pairs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with ids of recordings to leave out, one a line; without it the recipe's own list.",
)
def main(beside: Optional[Path], bad_pairs: Optional[Path], **given: Any) -> None:
    """Prepare six hours of acted English speech from two Debian packages (about 100 MB are fetched)."""
    prepare_english(beside=beside, bad_pairs=bad_pairs or BAD_PAIRS, **given, say=click.echo)


if __name__ == "__main__":
    with report_errors():
        main()

"""Prepare human speech in seven languages from Debian packages.

python recipes/human_speech/prepare.py --output-dir data/human_speech
"""

from __future__ import annotations

from typing import Any

import click
from corpus.options import preparing
from corpus.prepare import prepare_human_speech

from tokenverse_pp.cli.groups import report_errors


@click.command()
@preparing
def main(**given: Any) -> None:
    """Prepare human speech in seven languages from Debian packages (about 360 MB are fetched)."""
    prepare_human_speech(**given, say=click.echo)


if __name__ == "__main__":
    with report_errors():
        main()

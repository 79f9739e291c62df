"""`tokenverse-pp manifest store-features`: run a frozen encoder once, and keep what it gave."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Optional, Tuple

import click
import torch

from tokenverse_pp.cli.options import source_options


@click.command("store-features")
@click.argument("cuts", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--config",
    "config_files",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Training configuration whose model.encoder (kind: frozen or split) makes the features; later ones win.",
)
@click.option(
    "--storage-dir",
    type=click.Path(path_type=Path),
    help="Folder of the arrays. [default: OUTPUT's name + .features]",
)
@click.option(
    "--speed",
    "speeds",
    multiple=True,
    type=float,
    default=(1.0,),
    show_default=True,
    help="Speed factor; give it several times (0.9, 1.0, 1.1) for speed perturbation.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Of the stored numbers.",
)
@click.option("--bf16", is_flag=True, help="Run the encoder in bfloat16: faster, less exact.")
@click.option("--max-duration", type=float, default=60.0, show_default=True, help="Seconds of audio encoded at once.")
@click.option("--chunk-ms", type=int, default=0, show_default=True, help="What streaming would give; 0: full context.")
@click.option("--left-chunks", type=int, default=-1, show_default=True, help="Chunks before its own; -1: all.")
@click.option("--sinks", type=int, default=0, show_default=True, help="First frames that stay visible.")
@click.option("--sample", type=int, help="Take N cuts at random (seed 0), not all.")
@click.option("--threads", type=int, default=0, help="CPU threads of torch; 0 = torch's choice.")
@source_options
def store_features(
    cuts: Path,
    output: Path,
    config_files: Tuple[Path, ...],
    storage_dir: Path,
    speeds: Tuple[float, ...],
    dtype: str,
    bf16: bool,
    max_duration: float,
    chunk_ms: int,
    left_chunks: int,
    sinks: int,
    sample: Optional[int],
    threads: int,
) -> None:
    """Store the frozen encoder's features of CUTS and write the cuts that point at them to OUTPUT.

    Training with data.stored_features=true then skips the encoder, whose cost is most of a step. Features of chunks
    are kept beside those that CUTS already have: run it once for each combination that model.streaming draws.
    """
    from lhotse import CutSet

    from tokenverse_pp.config import parse_config
    from tokenverse_pp.manifests.files import write_cuts
    from tokenverse_pp.manifests.stored_features import perturbed
    from tokenverse_pp.manifests.stored_features import store_features as run
    from tokenverse_pp.model.encoder import build_encoder
    from tokenverse_pp.model.masks import ChunkOptions
    from tokenverse_pp.training.data import load_cuts

    chunks = ChunkOptions(chunk_ms, left_chunks, sinks)
    if threads:
        torch.set_num_threads(threads)
    chosen = load_cuts([str(cuts)], "CUTS")
    config = parse_config([word for path in config_files for word in ("--config", str(path))]).model.encoder
    encoder = build_encoder(config).eval()
    if torch.cuda.is_available():
        encoder = encoder.cuda()
    wanted = list(chosen)
    if sample and sample < len(wanted):
        wanted = random.Random(0).sample(wanted, sample)
    folder = storage_dir or output.with_name(output.name.split(".")[0] + ".features")
    every = perturbed(CutSet.from_cuts(wanted), speeds)
    stored = run(every, encoder, config, folder, dtype, max_duration, bf16, chunks)
    write_cuts(stored, output)
    click.echo(f"{len(stored)} cuts with features of {encoder.feature_dim} channels: {output}")

"""`tokenverse-pp manifest validate`, `stats`, `show`, `index`, `to-shar` and `store-features`."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any, Optional, Tuple

import click
import torch
from lhotse import CutSet
from tqdm import tqdm

from tokenverse_pp.base.config import ChunkOptions
from tokenverse_pp.base.engine import Parts, current_engine
from tokenverse_pp.base.errors import UserError, printable
from tokenverse_pp.base.files import url_of, write_json
from tokenverse_pp.base.options import tasks_named
from tokenverse_pp.cli.groups import EXIT_CODE
from tokenverse_pp.cli.options import (
    FILE,
    PATH,
    engine_options,
    jobs_option,
    options_from,
    overwrite_option,
    read_config,
    refuse_existing,
    source_options,
    threads_option,
)
from tokenverse_pp.data.editing.shar import write_shar
from tokenverse_pp.data.editing.stats import (
    count_manifests,
    find_cut,
    first_problems,
    plot_stats,
    shares_table,
    show_cut,
    stats_table,
)
from tokenverse_pp.data.lines import index_path
from tokenverse_pp.data.manifests import reading_bar, write_cuts
from tokenverse_pp.data.samplers import open_source


@click.command()
@click.argument("cuts", nargs=-1, required=True, type=click.Path())
@click.option("--audio", is_flag=True, help="Also decode all audio, to find missing and truncated files.")
@click.option("--all", "list_all", is_flag=True, help="List every problem, not only the first of each manifest.")
@click.option("--first", type=click.IntRange(min=1), help="List the first N problems of each manifest. [default: 1]")
@source_options
def validate(cuts: Tuple[str, ...], audio: bool, list_all: bool, first: Optional[int]) -> None:
    """Check manifests CUTS against the label schema; exit code 2 if anything is wrong.

    Problems are written to stderr, one per line, with the file, the line and the cut. Each manifest is read completely,
    so that the last line can say how many more there are.
    """
    valid = True
    with reading_bar(cuts, "validate") as bar:
        for path in cuts:
            whole = True
            for problem in first_problems(path, sys.maxsize if list_all else first or 1, audio, bar):
                whole = valid = False
                with tqdm.external_write_mode(file=sys.stderr):
                    click.echo(f"error: {printable(problem)}", err=True)
            if whole:
                with tqdm.external_write_mode():
                    click.echo(f"{path}: valid")
    if not valid:
        raise click.exceptions.Exit(EXIT_CODE)


@click.command()
@click.argument("cuts", nargs=-1, required=True, type=click.Path())
@click.option("--json", "json_path", type=FILE, help="Write the counts to this file, which is replaced.")
@click.option("--plot", type=FILE, help="Draw hours by task and language to this file (.png), which is replaced.")
def stats(cuts: Tuple[str, ...], json_path: Optional[str], plot: Optional[str]) -> None:
    """Count hours, turns, words and task tokens of CUTS, by task and language, labelled and not labelled.

    "machine h" is the part of the labelled hours that was labelled by a machine (`manifest label`). With several
    manifests, or several corpora (custom field corpus of the cuts), it also shows the hours of each for each task.
    """
    with reading_bar(cuts, "stats") as bar:
        counts = count_manifests(cuts, bar)
    if json_path is not None:
        write_json(json_path, counts)
    if plot is not None:
        plot_stats(counts, plot)
    click.echo(stats_table(counts["languages"]))
    if len(counts["corpora"]) > 1:
        click.echo("\n" + stats_table(counts["corpora"], "corpus"))
        click.echo("\n" + shares_table(counts["corpora"]))


@click.command()
@click.argument("cut_id", metavar="ID")
@click.option("--cuts", required=True, type=click.Path(), help="Manifest of the cuts.")
@click.option("--tasks", help="Show only the tokens of these tasks, e.g. asr,ner. Default: all tasks of the cut.")
def show(cut_id: str, cuts: str, tasks: Optional[str]) -> None:
    """Print the cut ID as text with task tokens, its turns with times, and the tasks that it is not labelled for."""
    click.echo(show_cut(find_cut(cuts, cut_id), tasks_named(tasks, "--tasks")))


@click.command()
@click.argument("cuts", nargs=-1, required=True, type=click.Path(exists=True))
def index(cuts: Tuple[str, ...]) -> None:
    """Write an index for each of CUTS (manifests or Shar folders): a file beside it with .index appended to its name.

    \b
      manifest index cuts_train.jsonl shar/train

    With an index, training need not read a whole manifest to count its cuts, to compare it with that of a checkpoint,
    or to find where to resume. A .jsonl.gz must still be unpacked up to that place. Write the index again when CUTS
    change: an index that does not match is refused.
    """
    for path in cuts:
        index_path(path).unlink(missing_ok=True)
        source = open_source(path, "cuts")
        made = source.write_index()
        click.echo(f"{index_path(path)}: {sum(made.counts)} cuts, {sum(made.bytes) / 1e6:.1f} MB, sha256 {made.sha256}")


@click.command("to-shar")
@click.argument("cuts", type=FILE)
@click.argument("output_dir", type=PATH)
@click.option("--shard-size", type=click.IntRange(min=1), default=1000, show_default=True, help="Cuts in a shard.")
@click.option(
    "--audio",
    type=click.Choice(["flac", "wav", "opus", "mp3", "original", "none"]),
    default="flac",
    show_default=True,
    help="Format of the audio; none stores features only.",
)
@jobs_option
@source_options
def to_shar(cuts: str, output_dir: Path, shard_size: int, audio: str, jobs: int) -> None:
    """Write CUTS with their audio (and stored features) to OUTPUT_DIR as lhotse Shar, for large runs.

    \b
      manifest to-shar cuts_train.jsonl.gz shar/train --shard-size 2000 --num-jobs 16
      manifest to-shar cuts_train.jsonl.gz s3://bucket/shar/train

    Shards are read from start to end, which is fast on disks and network file systems. They keep the order of CUTS, so
    shuffle before (`manifest shuffle`). data.train takes the folder instead of a manifest. Labels are kept: lhotse's
    CutSet.from_shar(in_dir=OUTPUT_DIR) returns them.
    """
    with reading_bar([cuts], "to-shar") as bar:
        report = write_shar(cuts, output_dir, shard_size, audio, bar, jobs)
    size = report["bytes"] / 1e6
    click.echo(f"{report['cuts']} cuts in {report['shards']} shards, {size:.1f} MB: {url_of(output_dir) or output_dir}")


@click.command("store-features")
@click.argument("cuts", type=PATH)
@click.argument("output", type=PATH)
@click.option(
    "--config",
    "config_files",
    required=True,
    multiple=True,
    type=PATH,
    help="Training configuration with the model.encoder (kind: frozen or split); later files override.",
)
@click.option("--storage-dir", type=PATH, help="Folder of the arrays. [default: OUTPUT's name + .features]")
@click.option(
    "--speed",
    "speeds",
    multiple=True,
    type=float,
    default=(1.0,),
    show_default=True,
    help="Speed factor; may be given again (0.9, 1.0, 1.1), for speed perturbation.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Type of the stored numbers.",
)
@click.option("--bf16", is_flag=True, help="Run the encoder in bfloat16, which is faster and less exact.")
@click.option("--max-duration", type=float, default=60.0, show_default=True, help="Seconds of audio encoded at once.")
@options_from(
    ChunkOptions, "chunk_ms", "left_chunks", "sinks", "strict", chunk_ms={"default": 0}, left_chunks={"default": -1}
)
@click.option("--sample", type=int, help="Use only N random cuts (seed 0).")
@overwrite_option
@jobs_option
@threads_option
@source_options
@engine_options
def store_features(
    cuts: Path,
    output: Path,
    config_files: Tuple[Path, ...],
    storage_dir: Path,
    speeds: Tuple[float, ...],
    dtype: str,
    bf16: bool,
    max_duration: float,
    sample: Optional[int],
    overwrite: bool,
    jobs: int,
    threads: int,
    **given: Any,
) -> None:
    """Store the frozen encoder's features of CUTS, and write cuts that refer to them to OUTPUT.

    Training with data.stored_features=true then skips the encoder, which takes most of a step. Features of chunks are
    added to those that CUTS already have: run the command once for each combination that model.streaming draws, into a
    new file or with OUTPUT = CUTS and --overwrite. With --num-jobs the processes share the GPUs, or the cores if there
    are no GPUs. With --engine ray, the same command resumes a stopped run.
    """
    from tokenverse_pp.api.folders import locate_encoder
    from tokenverse_pp.data.distributed import set_threads
    from tokenverse_pp.data.samplers import load_cuts
    from tokenverse_pp.models.encoders import build_encoder
    from tokenverse_pp.models.stored_features import perturbed
    from tokenverse_pp.models.stored_features import store_features as run

    chunks = ChunkOptions(**given)
    folder = storage_dir or output.with_name(output.name.split(".")[0] + ".features")
    if url_of(folder) is not None:
        raise UserError("--storage-dir: expected a local folder for the arrays, also if OUTPUT is a URL")
    refuse_existing([output], overwrite)
    chosen = load_cuts([str(cuts)], "CUTS")
    config = read_config(config_files, ()).model.encoder
    config.name = locate_encoder(config.name, Path())
    encoder = build_encoder(config).eval()
    click.echo(set_threads(threads, encoder), err=True)
    by_cluster = current_engine().is_cluster
    if torch.cuda.is_available() and not by_cluster:
        encoder = encoder.cuda()
    wanted = list(chosen)
    if sample and sample < len(wanted):
        wanted = random.Random(0).sample(wanted, sample)
    every = perturbed(CutSet.from_cuts(wanted), speeds)
    parts = Parts(folder / "parts")
    stored = run(every, encoder, config, folder, dtype, max_duration, bf16, chunks, jobs, parts)
    write_cuts(stored, output)
    parts.remove()
    click.echo(f"{len(stored)} cuts with features of {encoder.feature_dim} channels: {output}")

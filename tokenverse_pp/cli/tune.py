"""`tokenverse-pp tune`: blank penalty and token biases from held-out speech; `endpoints`: cut-offs and latency."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, List, Optional, Tuple

import click

from tokenverse_pp.base.config import IN_CHUNKS, ChunkOptions
from tokenverse_pp.base.errors import UserError, needing
from tokenverse_pp.base.options import DecodeOptions, SearchOptions, tasks_named
from tokenverse_pp.cli.options import (
    PATH,
    chosen,
    device_option,
    model_options,
    options_from,
    plugin_options,
    source_options,
    threads_option,
)


@click.command()
@model_options
@click.option("--cuts", required=True, type=PATH, help="Labelled cuts that are not in the training data.")
@click.option(
    "--token",
    "tokens",
    multiple=True,
    help="Task token whose bias is fitted, e.g. [SCD]; may be given again. [default: all with labels]",
)
@options_from(DecodeOptions, "tasks", tasks={"type": str})
@options_from(SearchOptions, "method", "beam", "lm", "lm_scale", "lm_bonus", lm={"type": click.Path()})
@options_from(DecodeOptions, "stored_features", "precision", "max_duration", "window")
@click.option("--first", type=click.IntRange(min=1), help="Use only the first N cuts.")
@click.option(
    "--output-dir",
    type=PATH,
    help="Save the model with the biases in its joiner. The blank penalty remains an option of decoding.",
)
@device_option
@threads_option
@plugin_options
@source_options
def tune(cuts: Path, tokens: Tuple[str, ...], first: Optional[int], output_dir: Optional[Path], **given: Any) -> None:
    """Fit --blank-penalty and --token-bias of the search to held-out speech, and print the options to decode with.

    \b
      tokenverse-pp tune --model exp/my --cuts cuts_dev.jsonl.gz
      tokenverse-pp tune --model exp/my --cuts cuts_dev.jsonl.gz --token '[SCD]' --beam 16 --lm words/
      tokenverse-pp tune --model exp/my --cuts cuts_dev.jsonl.gz --output-dir exp/my_tuned

    The encoder runs once, the search once for each of 13 values of each option (-1 to 2 nats, and up to 5 while the
    scores rise): first the blank penalty, chosen by word error rate, then the bias of each token, chosen by the F1 of
    its task. Use the method, beam and language model that you decode with, and confirm the result on a test set.
    Confidences change too: fit the calibration afterwards.
    """
    # lhotse and torch take seconds to import; `--help` does not need them.
    from tqdm import tqdm

    from tokenverse_pp.api.folders import DEFAULT, save_with_biases
    from tokenverse_pp.api.model import TokenVerse
    from tokenverse_pp.data.distributed import set_threads
    from tokenverse_pp.data.labels import validate_cuts
    from tokenverse_pp.data.manifests import read_cuts
    from tokenverse_pp.evaluation.tuning import HeldOut, Tried, table_of
    from tokenverse_pp.evaluation.tuning import tune as fit

    tasks = tasks_named(given["tasks"], "--tasks") or ()
    options = chosen(DecodeOptions, given, search=chosen(SearchOptions, given), tasks=tasks)
    model, trust = given["model"] or DEFAULT, given["trust_plugins"]
    loaded = TokenVerse.from_pretrained(model, given["encoder"], given["device"], trust_plugins=trust).loaded
    click.echo(set_threads(given["threads"], loaded.model))
    validate_cuts(str(cuts), unlabelled=True)
    held_out = HeldOut(loaded, list(read_cuts(cuts))[:first], options)
    tried: List[Tried] = []
    with tqdm(unit=" searches", desc="searching", disable=None, leave=False) as bar:

        def tell(one: Tried) -> None:
            tried.append(one)
            bar.update()

        found = fit(held_out, options.search, tokens, tell)
    click.echo(table_of(tried, held_out.scores(found)))
    words = [f"--blank-penalty {found.blank_penalty:g}"] if found.blank_penalty else []
    words += [f"--token-bias '{token}={number:g}'" for token, number in found.token_bias]
    click.echo(f"\noptions: {' '.join(words) or 'none improves the scores'}")
    if output_dir is not None:
        save_with_biases(loaded, output_dir, found)
        penalty = f"; decode it with {words[0]}" if found.blank_penalty else ""
        click.echo(f"model: {output_dir}, with these biases in its joiner{penalty}")


@click.command()
@model_options
@click.option("--cuts", required=True, type=PATH, help="Cut manifest labelled for endp.")
@options_from(
    ChunkOptions,
    *IN_CHUNKS,
    chunk_ms={"default": 320, "help": "Decode as a stream in chunks of so many milliseconds; 0: in full context."},
    left_chunks={"default": 8},
)
@options_from(SearchOptions, "method", "beam", method={"default": "greedy"})
@click.option("--first", type=click.IntRange(min=1), help="Use only the first N cuts.")
@click.option("--store", is_flag=True, help="Fit thresholds to these cuts, and write them to the model's calibration.")
@click.option("--output", type=PATH, help="Also write the scores as JSON.")
@click.option("--plot", type=PATH, help="Draw the curves (.png, .svg, .pdf).")
@threads_option
@plugin_options
@source_options
def endpoints(cuts: Path, first: Optional[int], store: bool, **given: Any) -> None:
    """Measure false cut-offs against latency of the model's endpoint probabilities at the ends of turns.

    \b
      tokenverse-pp endpoints --model exp/my --cuts cuts_dev.jsonl.gz --store
      tokenverse-pp endpoints --model exp/my --cuts cuts_test.jsonl.gz --plot endpoints.png

    Each complete turn is followed by two seconds of silence. For each median latency in milliseconds, the table shows
    how many pauses inside turns are taken for the end (%): by a threshold on the probability alone, by a threshold and
    a length of silence, and by the length of silence alone, which silero-vad detects. The best policy for each latency
    is chosen on these cuts; thresholds that were stored before are measured below the table.

    Decoding in full context (--chunk-ms 0) sees later audio, so it does not measure a live system.
    """
    # lhotse and torch take seconds to import; `--help` does not need them.
    from tokenverse_pp.api.folders import place_of
    from tokenverse_pp.api.model import load_named
    from tokenverse_pp.base.files import url_of, write_json
    from tokenverse_pp.base.options import StreamingOptions
    from tokenverse_pp.data.distributed import set_threads
    from tokenverse_pp.data.labels import validate_cuts
    from tokenverse_pp.data.manifests import read_cuts
    from tokenverse_pp.decoding.hypothesis import CALIBRATION, Calibration, read_calibration
    from tokenverse_pp.evaluation import endpoints as measuring
    from tokenverse_pp.metrics.endpoints import fit_thresholds

    loaded, _ = load_named(given["model"], given["encoder"], given["trust_plugins"])
    if "endp" not in loaded.tasks:
        raise UserError(f"{given['model']}: the model does not know the task 'endp'")
    click.echo(set_threads(given["threads"], loaded.model))
    validate_cuts(str(cuts), unlabelled=True)
    turns = measuring.turns_of(list(read_cuts(cuts))[:first])
    chunks, search = chosen(ChunkOptions, given), chosen(SearchOptions, given)
    if chunks.full:
        tracks = measuring.batch_tracks(loaded, turns, DecodeOptions(search))
    else:
        tracks = measuring.stream_tracks(loaded, turns, StreamingOptions(chunks, search=search))
    scores = measuring.endpoint_scores(measuring.scored_pauses(turns, tracks))
    click.echo(measuring.endpoint_table(scores))

    before = read_calibration(loaded.folder) or Calibration()
    if store:
        if loaded.folder is None:
            raise UserError(f"--store: {given['model']} is no model folder")
        fitted = fit_thresholds(scores.alone)
        file = place_of(given["model"], loaded.folder) / CALIBRATION
        replace(before, endpoints=fitted, endpoint_chunk_ms=chunks.chunk_ms).update(loaded.folder / CALIBRATION, file)
        click.echo(f"thresholds: {url_of(file) or file}")
    elif before.endpoints and before.endpoint_chunk_ms == chunks.chunk_ms:
        click.echo(f"\nstored thresholds:\n{measuring.fitted_table(before.endpoints, scores, turns, tracks)}")
    if given["output"]:
        write_json(given["output"], {**scores.as_dict(), "chunk_ms": chunks.chunk_ms, "cuts": cuts.name})
    if given["plot"]:
        draw(given["plot"], scores)


def draw(path: Path, scores: Any) -> None:
    """Draw the curves (raises UserError if matplotlib is missing, or does not support the file's format)."""
    from tokenverse_pp.metrics.endpoints import frontier

    with needing("--plot needs matplotlib", "plots"):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(6, 4))
    curves = {"probability": scores.alone, "probability and silence": scores.gated, "silence alone": scores.silence}
    for label, points in curves.items():
        best = [point for point in frontier(points) if point.median_latency <= 1.0]
        latencies, rates = ([1000 * p.median_latency for p in best], [100 * p.false_cutoffs for p in best])
        axes.step(latencies, rates, where="post", label=label)
    axes.set(xlabel="median latency (ms)", ylabel="false cut-offs (%)", xlim=(0, 1000), ylim=(0, 100))
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise UserError(f"--plot {path}: {error}") from None
    finally:
        pyplot.close(figure)

"""`tokenverse-pp tune`: blank penalty and token biases from held-out speech."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Optional, Tuple

import click

from tokenverse_pp.base.options import DecodeOptions
from tokenverse_pp.base.search_options import SearchOptions
from tokenverse_pp.cli.options import (
    chosen,
    device_option,
    model_options,
    names_of,
    options_from,
    plugin_options,
    source_options,
    threads_option,
)


@click.command()
@model_options
@click.option("--cuts", required=True, type=click.Path(path_type=Path), help="Labelled cuts that were not trained on.")
@click.option(
    "--token",
    "tokens",
    multiple=True,
    help="Task token whose bias is fitted, e.g. [SCD]; may be given again. [default: all with labels]",
)
@options_from(DecodeOptions, "tasks", tasks={"type": str, "default": ""})
@options_from(SearchOptions, "method", "beam", "lm", "lm_scale", "lm_bonus", lm={"type": click.Path()})
@options_from(DecodeOptions, "stored_features", "precision", "max_duration", "window")
@click.option("--first", type=click.IntRange(min=1), help="The first N cuts only.")
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    help="Save the model with the biases found in its joiner; the blank penalty stays an option.",
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

    options = chosen(DecodeOptions, given, search=chosen(SearchOptions, given), tasks=names_of(given["tasks"]))
    model, trust = given["model"] or DEFAULT, given["trust_plugins"]
    loaded = TokenVerse.from_pretrained(model, given["encoder"], given["device"], trust_plugins=trust).loaded
    click.echo(set_threads(given["threads"], loaded.model))
    validate_cuts(str(cuts))
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
    click.echo(f"\noptions: {' '.join(words) or 'none helps'}")
    if output_dir is not None:
        save_with_biases(loaded, output_dir, found)
        penalty = f"; decode it with {words[0]}" if found.blank_penalty else ""
        click.echo(f"model: {output_dir}, with these biases in its joiner{penalty}")

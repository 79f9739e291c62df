"""`tokenverse-pp manifest mix`."""

from __future__ import annotations

from typing import List, Optional, Tuple

import click


@click.command()
@click.argument("cuts", nargs=-1, required=True, type=click.Path(dir_okay=False))
@click.argument("output", type=click.Path(dir_okay=False))
@click.option("--weights", help="Relative numbers of cuts to draw from each manifest, e.g. 2,1,1.")
@click.option(
    "--by",
    type=click.Choice(["hours", "language"]),
    help="Without --weights: balance the hours of the manifests, or of the languages in them. [default: hours]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, 1),
    default=None,
    help="Share of each ~ hours^T: 1 draws all hours alike, 0 gives each the same share. [default: 1]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order in an interleaved manifest.")
@click.option("--prefix", is_flag=True, help="Put the manifest's name before ids (interleaved manifest only).")
def mix(
    cuts: Tuple[str, ...],
    output: str,
    weights: Optional[str],
    by: Optional[str],
    temperature: Optional[float],
    seed: int,
    prefix: bool,
) -> None:
    """Mix manifests CUTS for training: weights for the training configuration, or one interleaved manifest OUTPUT.

    \b
      manifest mix ami.jsonl.gz cv.jsonl.gz mix.yaml --temperature 0.5
      manifest mix ami.jsonl.gz cv.jsonl.gz mix.yaml --weights 2,1
      manifest mix ami.jsonl.gz cv.jsonl.gz mixed.jsonl.gz --prefix

    OUTPUT .yaml: a further configuration for training, which draws from each manifest for ever by its weight:
    recipes/train.py --config my.yaml --config mix.yaml. OUTPUT .jsonl or .jsonl.gz: every cut once, in an order drawn
    by the weights and the seed.

    Prints what share of the hours, and of each task's labels, to expect from each manifest.
    """
    from tokenverse_pp.errors import UserError
    from tokenverse_pp.files import write_text
    from tokenverse_pp.manifests import mix as mixing
    from tokenverse_pp.manifests.progress import reading_bar
    from tokenverse_pp.manifests.rows import writing_rows
    from tokenverse_pp.manifests.stats import corpus_names

    to_yaml = output.endswith((".yaml", ".yml"))
    if not to_yaml and not output.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(f"{output}: expected a name that ends in .yaml, .jsonl or .jsonl.gz")
    if weights is not None and (by is not None or temperature is not None):
        raise UserError("--weights: cannot be given together with --by or --temperature")
    if to_yaml and prefix:
        raise UserError("--prefix: changes ids, so it needs an OUTPUT of cuts (.jsonl or .jsonl.gz)")
    chosen = _numbers(weights, len(cuts)) if weights is not None else None
    with reading_bar(cuts, "count") as bar:
        counts = mixing.count_each(cuts, bar)
    if chosen is None:
        shares = mixing.shares_by_language if by == "language" else mixing.shares_by_hours
        chosen = mixing.weights_for(shares(counts, 1.0 if temperature is None else temperature), counts)
    if to_yaml:
        write_text(output, mixing.training_yaml(cuts, chosen))
    else:
        with writing_rows(output) as writer, reading_bar(cuts, "mix") as bar:
            for row in mixing.mixed_rows(cuts, chosen, seed, prefix, bar):
                writer.write(row)
        click.echo(f"{writer.count} cuts: {output}\n")
    click.echo(mixing.mix_table(corpus_names(cuts), chosen, counts))
    click.echo("\n" + mixing.languages_table(chosen, counts))


def _numbers(text: str, expected: int) -> List[float]:
    """``2,1,1`` as positive numbers, one a manifest."""
    import math

    from tokenverse_pp.errors import UserError

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--weights {text}: expected numbers separated by commas") from None
    if len(numbers) != expected:
        raise UserError(f"--weights {text}: expected one for each of the {expected} manifests, got {len(numbers)}")
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise UserError(f"--weights {text}: expected positive numbers")
    return numbers

"""`tokenverse-pp manifest split`."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Tuple

import click


@click.command()
@click.argument("cuts", type=click.Path(dir_okay=False))
@click.argument("output_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--shares",
    default="train=0.9,dev=0.05,test=0.05",
    show_default=True,
    help="Names of the sets and their shares of the hours.",
)
@click.option(
    "--by",
    multiple=True,
    default=("speaker",),
    show_default=True,
    help="What no two sets may share: speaker, text, recording, or a custom field of the cuts. May be given again.",
)
@click.option(
    "--text-words",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Texts of fewer words may be in several sets (everybody says yes).",
)
@click.option(
    "--allow-missing", is_flag=True, help="Let cuts without a speaker (text, ..) through: they share nothing."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which groups go where.")
def split(
    cuts: str,
    output_dir: Path,
    shares: str,
    by: Tuple[str, ...],
    text_words: int,
    allow_missing: bool,
    seed: int,
) -> None:
    """Split CUTS into OUTPUT_DIR/cuts_train.jsonl.gz, cuts_dev.jsonl.gz and so on, without leaks.

    \b
      manifest split cuts.jsonl.gz data --by speaker
      manifest split cuts.jsonl.gz data --by speaker --by text --text-words 4
      manifest split cuts.jsonl.gz data --by recording --shares train=0.98,dev=0.02

    Cuts that share a speaker (text, ..) go to one set, and so do those that hang together by others: with several
    --by the groups are connected components. Every cut is checked for leaks once more when it is written.
    """
    from tokenverse_pp.manifests.progress import reading_bar
    from tokenverse_pp.manifests.split import KeyRule, split_manifest
    from tokenverse_pp.tables import aligned

    wanted = parse_shares(shares)
    outputs = {name: output_dir / f"cuts_{name}.jsonl.gz" for name in wanted}
    rule = KeyRule(tuple(dict.fromkeys(by)), text_words, allow_missing)
    with reading_bar([cuts], "split", passes=2) as bar:
        counts = split_manifest(cuts, outputs, wanted, rule, seed, bar)
    hours = sum(count["hours"] for count in counts.values())
    rows = [["set", "cuts", "groups", "hours", "share %", "wanted %"]]
    for name, count in counts.items():
        numbers = [f"{count['cuts']}", f"{count['groups']}", f"{count['hours']:.2f}"]
        got, asked = count["hours"] / hours, wanted[name] / sum(wanted.values())
        rows.append([name, *numbers, f"{100 * got:.1f}", f"{100 * asked:.1f}"])
    click.echo(aligned(rows))


def parse_shares(text: str) -> Dict[str, float]:
    """``train=0.9,dev=0.1`` as a mapping (raises UserError)."""
    import math
    import re

    from tokenverse_pp.errors import UserError

    shares: Dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        name = name.strip()
        if not re.fullmatch(r"[\w-]+", name) or name in shares or not 0 < share < math.inf:
            raise UserError(f"--shares {text}: expected different names with shares > 0, e.g. train=0.9,dev=0.1")
        shares[name] = share
    if len(shares) < 2 or len(shares) > 100:
        raise UserError(f"--shares {text}: expected 2 to 100 sets")
    return shares

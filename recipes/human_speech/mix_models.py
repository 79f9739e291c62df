#!/usr/bin/env python3
"""Average a model and one that was trained on from it (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903).

\b
python recipes/human_speech/mix_models.py tokenverse_pp/pretrained/human_speech exp/human_speech/punct_whole/model \\
  --share 0.5 --output-dir exp/human_speech/mixed

The result has the configuration, tasks and vocabulary of BEFORE. Tasks and tokens that AFTER gained are left out, as if
these tasks were switched off. Both models must have the same shapes otherwise, and AFTER must come from BEFORE
(training.init_from): weights of unrelated models cannot be averaged. Fit the calibration of the result afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import click
from torch import Tensor

from tokenverse_pp.base.config import Config
from tokenverse_pp.base.config_files import load_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import replacing_folder
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.models import checkpoint
from tokenverse_pp.training.transfer import TABLES, VOCABULARY_ROWS


def without_new_tasks(table: Tensor, config: Config, tasks: int) -> Tensor:
    """The vectors (K + 1, C) of the first ``tasks`` tasks that give the same sums as all with the others inactive."""
    kept = table[:tasks].clone()
    if config.model.vectors.code == "centred":  # an inactive task subtracts its vector
        kept[0] -= table[tasks:].sum(0)
    return kept


def mix(before: Path, after: Path, share: float) -> Dict[str, Tensor]:
    """Return ``(1 - share) * before + share * after``, in the number types of ``before``.

    Args:
        before: model folder.
        after: model folder of a training from ``before``; it may have more tasks and tokens, after the old ones.
        share: 0 to 1.

    Raises:
        UserError: the tasks, tokens or weights of ``after`` do not continue those of ``before``.
    """
    configs = [load_config(folder / checkpoint.CONFIG) for folder in (before, after)]
    old, new = ([*config.tasks.names] for config in configs)
    tokenizer, longer = (Tokenizer.load(folder / checkpoint.TOKENIZER) for folder in (before, after))
    if new[: len(old)] != old or not longer.extends(tokenizer):
        raise UserError(f"{after}: expected the tasks and tokens of {before} first, then new ones")
    vectors = [config.model.vectors for config in configs]
    if vectors[0] != vectors[1] or vectors[0].strategy != "sum":
        raise UserError(f"{after}: expected the options model.vectors of {before}, and strategy sum")
    weights, others = (checkpoint.read_tensors(folder / checkpoint.WEIGHTS) for folder in (before, after))
    if weights.keys() != others.keys():
        raise UserError(f"{after}: has other weights than {before}")
    mixed = {}
    for name, tensor in weights.items():
        other = others[name]
        if name in VOCABULARY_ROWS:
            other = other[: tokenizer.vocab_size]
        elif name.endswith(".table") and name.startswith(TABLES):
            other = without_new_tasks(other.float(), configs[1], len(old))
        elif not tensor.is_floating_point():
            other = tensor  # which vectors were trained
        if other.shape != tensor.shape:
            raise UserError(f"{after}: {name} has the shape {tuple(other.shape)}, in {before} {tuple(tensor.shape)}")
        is_number = tensor.is_floating_point()
        mixed[name] = ((1 - share) * tensor.float() + share * other.float()).to(tensor.dtype) if is_number else tensor
    return mixed


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@click.argument("before", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--share", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Weight of AFTER.")
@click.option("--output-dir", type=click.Path(path_type=Path), required=True, help="New or empty folder.")
def main(before: Path, after: Path, share: float, output_dir: Path) -> None:
    """See the module's docstring."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"{output_dir}: expected a new or empty folder")
    texts = {name: (before / name).read_bytes() for name in (checkpoint.CONFIG, checkpoint.TOKENIZER)}
    with replacing_folder(output_dir) as new:
        checkpoint.write_folder(new, {checkpoint.WEIGHTS: mix(before, after, share)}, texts)
    click.echo(f"model: {output_dir}")


if __name__ == "__main__":
    with report_errors():
        main(standalone_mode=True)

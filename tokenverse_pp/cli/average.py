"""`tokenverse-pp average`: the last checkpoints of a run as one model folder."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("average")
@click.argument("exp_dir", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--last", type=click.IntRange(min=1), default=1, show_default=True, help="How many checkpoints.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Of the stored weights; float16 halves the folder, and is turned back into float32 when it is loaded.",
)
@click.option(
    "--running",
    is_flag=True,
    help="The mean over all the steps from the first to the last of them, not of these few: needs the running average "
    "of a run with training.average_period, and --last 2 or more.",
)
def average(exp_dir: Path, output: Path, last: int, dtype: str, running: bool) -> None:
    """Average the last checkpoints in EXP_DIR into the model folder OUTPUT."""
    import torch

    from tokenverse_pp.errors import UserError
    from tokenverse_pp.training import checkpoint
    from tokenverse_pp.training.averaging import average as mean_of
    from tokenverse_pp.training.averaging import average_between

    found = checkpoint.list_checkpoints(exp_dir)
    if len(found) < last:
        raise UserError(f"{exp_dir}: --last {last} checkpoints wanted, {len(found)} found")
    chosen = found[-last:]
    if running and last < 2:
        raise UserError("--running: needs --last 2 or more, to have a first and a last checkpoint")
    mean = average_between(chosen[0], chosen[-1]) if running else mean_of(chosen)
    kind = getattr(torch, dtype)
    weights = {k: v.to(kind) if v.is_floating_point() else v for k, v in mean.items()}
    texts = {name: (chosen[-1] / name).read_bytes() for name in (checkpoint.CONFIG, checkpoint.TOKENIZER)}
    checkpoint.write_folder(output, {checkpoint.WEIGHTS: weights}, texts)
    size = (output / checkpoint.WEIGHTS).stat().st_size / 1e6
    click.echo(f"average of {chosen[0].name} .. {chosen[-1].name}, {size:.1f} MB: {output}")

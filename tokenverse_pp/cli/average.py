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
def average(exp_dir: Path, output: Path, last: int, dtype: str) -> None:
    """Average the last checkpoints in EXP_DIR into the model folder OUTPUT."""
    import torch

    from tokenverse_pp.errors import UserError
    from tokenverse_pp.training import checkpoint

    found = checkpoint.list_checkpoints(exp_dir)
    if len(found) < last:
        raise UserError(f"{exp_dir}: --last {last} checkpoints wanted, {len(found)} found")
    chosen = found[-last:]
    kind = getattr(torch, dtype)
    weights = {k: v.to(kind) if v.is_floating_point() else v for k, v in checkpoint.average(chosen).items()}
    texts = {name: (chosen[-1] / name).read_bytes() for name in (checkpoint.CONFIG, checkpoint.TOKENIZER)}
    checkpoint.write_folder(output, {checkpoint.WEIGHTS: weights}, texts)
    size = (output / checkpoint.WEIGHTS).stat().st_size / 1e6
    click.echo(f"average of {chosen[0].name} .. {chosen[-1].name}, {size:.1f} MB: {output}")

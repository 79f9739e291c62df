"""Take tasks out of a model. `make demo` teaches the packaged model those that it has lost.

    python recipes/human_speech/without_tasks.py tokenverse_pp/pretrained/human_speech exp/demo/start --keep asr,lid

Left out are the tokens of the other tasks, in the vocabulary and in each matrix with a row a token, and their vectors,
which are added for good. All other weights stay: the encoder still hears what it heard with these tasks switched on, so
that they come back far sooner than a task comes that it was never trained for.
"""

from __future__ import annotations

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, List, Sequence, Set

import click
import yaml

from tokenverse_pp.base.config_files import load_config
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.cli.groups import report_errors
from tokenverse_pp.cli.options import names_of
from tokenverse_pp.data.tokenizer import Tokenizer
from tokenverse_pp.models import checkpoint
from tokenverse_pp.models.bundle import find_model, tasks_of
from tokenverse_pp.training.transfer import TABLES, VOCABULARY_ROWS


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("output_dir", type=click.Path(path_type=Path))
@click.option("--keep", default="asr", show_default=True, help="Tasks that stay, asr among them.")
def main(model: Path, output_dir: Path, keep: str) -> None:
    """See the module's docstring."""
    with report_errors():
        removed = write_without_tasks(model, output_dir, names_of(keep))
    click.echo(f"{output_dir}: {find_model(model)} without {', '.join(removed)}")


def write_without_tasks(model: Path, output_dir: Path, keep: Sequence[str]) -> List[str]:
    """Write a model folder with only some of a model's tasks -> the names of those that were taken out.

    Args:
        model: a model or experiment folder.
        output_dir: replaced if it exists.
        keep: names of tasks.

    Raises:
        UserError: there is no such model, nothing to take out, or a vector for each combination of tasks.
    """
    folder = find_model(model)
    config = load_config(folder / checkpoint.CONFIG)
    names = config.tasks.names
    removed = [name for name in names if name not in keep]
    if not removed or "asr" not in keep or not set(keep) <= set(names):
        raise UserError(f"--keep={','.join(keep)}: expected asr and some of the tasks of {folder}: {', '.join(names)}")
    if config.model.vectors.strategy != "sum":
        raise UserError(f"{folder}: expected a model with --model.vectors.strategy=sum")
    gone = {symbol for task in tasks_of(config.tasks).tasks if task.name in removed for symbol in task.symbols}
    tokenizer = Tokenizer.load(folder / checkpoint.TOKENIZER)
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    kept = [number for number, piece in enumerate(pieces) if piece not in gone]
    state = checkpoint.read_tensors(folder / checkpoint.WEIGHTS)
    for name in VOCABULARY_ROWS:
        if name in state:
            state[name] = state[name][kept]
    rows = [number for number, name in enumerate(names) if name not in removed]
    for table in (name for name in TABLES if f"{name}.table" in state):
        vectors, trained = state[f"{table}.table"], state[f"{table}.trained"]
        # As with these tasks switched on, in either code: the encoder finds what it found, and nothing says so.
        vectors[0] += sum(vectors[number] for number in range(len(names)) if number not in rows)
        state[f"{table}.table"], state[f"{table}.trained"] = vectors[rows], trained[rows]
    config.tasks.names = [names[number] for number in rows]
    texts = {
        checkpoint.CONFIG: yaml.safe_dump(asdict(config), sort_keys=False).encode(),
        checkpoint.TOKENIZER: without_pieces(tokenizer.model, gone),
    }
    checkpoint.write_folder(output_dir, {checkpoint.WEIGHTS: state}, texts)
    return removed


def without_pieces(model: bytes, gone: Set[str]) -> bytes:
    """A SentencePiece model without some of its user-defined symbols; the other pieces keep their order."""
    schema: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    proto = schema.ModelProto.FromString(model)
    pieces = [piece for piece in proto.pieces if piece.piece not in gone]
    symbols = [symbol for symbol in proto.trainer_spec.user_defined_symbols if symbol not in gone]
    for field, left in ((proto.pieces, pieces), (proto.trainer_spec.user_defined_symbols, symbols)):
        del field[:]
        field.extend(left)
    proto.trainer_spec.vocab_size = len(pieces)
    return bytes(proto.SerializeToString())


if __name__ == "__main__":
    main()

"""The files of model folders and checkpoints (safetensors and text), written under a temporary name and renamed.

A checkpoint is a model folder (weights, configuration, tokenizer) with the optimiser's state and the SHA-256 sums of
its files. Nothing in it is unpickled. `tokenverse_pp.models.bundle` loads model folders.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.base.files import checksum, damage_of
from tokenverse_pp.data.distributed import sharded_like

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
AVERAGE = "average.safetensors"  # running mean of the weights, with training.average_period
STATE = "state.json"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer.model"
CHECKSUMS = "checksums.json"  # {file: {"bytes": .., "sha256": ..}}
TEMPORARY, OLD = ".tmp", ".old"  # ends of the names of a folder that is written, and of the one that it replaces
COMPLETE = (WEIGHTS, OPTIMIZER, STATE, CONFIG, TOKENIZER)  # what a run needs to resume


def checkpoint_dir(exp_dir: Path, step: int) -> Path:
    """The folder of the checkpoint after ``step`` steps."""
    return exp_dir / "checkpoints" / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(folder.name.split("-")[1])


def list_checkpoints(exp_dir: Path) -> List[Path]:
    """Complete checkpoints, oldest first."""
    found = (exp_dir / "checkpoints").glob("step-" + "[0-9]" * 8)
    return sorted(p for p in found if (p / STATE).is_file())


def write_folder(folder: Path, tensors: Dict[str, Dict[str, Tensor]], texts: Dict[str, bytes]) -> None:
    """Write files and their checksums into a folder, atomically.

    Args:
        folder: replaced if it exists. If the process is killed between the two renames of that, `recover` finds both.
        tensors: file name -> tensors.
        texts: file name -> content.

    Raises:
        UserError: the folder cannot be written (disk full, no permission); an existing one is kept.
    """
    temporary, old = (folder.with_name(folder.name + end) for end in (TEMPORARY, OLD))
    try:
        recover(folder)
        for path in (temporary, old):
            shutil.rmtree(path, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, state in tensors.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, temporary / name)
        for name, content in texts.items():
            (temporary / name).write_bytes(content)
        write_checksums(temporary)
        for path in [*temporary.iterdir(), temporary]:
            _flush(path)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        _flush(folder.parent)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{folder}: cannot be written: {reason}") from None
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Complete a replacement by `write_folder` that was killed: take the new folder if it is whole, else the old one.

    Only for the process that writes the folder, as it renames.
    """
    temporary, old = (folder.with_name(folder.name + end) for end in (TEMPORARY, OLD))
    if old.is_dir() and not folder.exists():
        for path in (temporary, old):  # an old one may also be left of a deletion, and lack files
            if path.is_dir() and damage(path, needed=()) is None:
                os.replace(path, folder)
                return


def _flush(path: Path) -> None:
    """Flush a file or folder to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_checksums(folder: Path) -> None:
    """Write the checksums of a folder's files into it."""
    sums = {path.name: checksum(path) for path in sorted(folder.iterdir()) if path.name != CHECKSUMS}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")


def damage(folder: Path, needed: Sequence[str] = COMPLETE) -> Optional[str]:
    """Describe in one line what is damaged or missing in a checkpoint; None if all files have their checksums.

    ``needed``: the files that it must have.
    """
    try:
        text = (folder / CHECKSUMS).read_text(encoding="utf-8")
        sums = json.loads(text)
        if text != json.dumps(sums, indent=1):
            raise ValueError("not as it was written")
        expected = {
            str(name): {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} for name, entry in sums.items()
        }
    except FileNotFoundError:
        return f"{folder / CHECKSUMS}: no such file"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{folder / CHECKSUMS}: damaged"
    for name in [*(name for name in needed if name not in expected), *expected]:
        path = folder / name
        if name not in expected:
            return f"{path}: not among its checksums"
        problem = damage_of(path, expected[name]) if Path(name).name == name else f"{path}: no such file"
        if problem:
            return problem
    return None


def check_model(folder: Path, names: Iterable[str] = (WEIGHTS, TOKENIZER)) -> None:
    """Verify the checksums, if any, of a model folder's weights and tokenizer, or other files (raises UserError).

    The configuration is not verified, as it may have been edited.
    """
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        there = [name for name in names if (folder / name).is_file()]
        wrong = [name for name in there if damage_of(folder / name, sums[name])]
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{folder / CHECKSUMS}: damaged") from None
    if wrong:
        raise UserError(f"{folder / wrong[0]}: damaged: it differs from its sum in {CHECKSUMS}")


def read_tensors(path: Path) -> Dict[str, Tensor]:
    """The tensors of a safetensors file (raises UserError)."""
    with _reading(path):
        return load_file(path)


def read_names(path: Path) -> List[str]:
    """The names of the tensors in a safetensors file (raises UserError)."""
    with _reading(path), safe_open(path, framework="pt") as file:
        return list(file.keys())


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is its folder a model or checkpoint?") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged or not safetensors: {one_line(error)}") from None


def read_state(folder: Path) -> Dict[str, Any]:
    """The JSON state of a checkpoint (raises UserError)."""
    path = folder / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    counts = [state.get(key) if isinstance(state, dict) else None for key in ("step", "epoch", "batch", "world_size")]
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise UserError(f"{path}: not the state of a run: expected numbers for step, epoch, batch and world_size")
    skipped = state.get("skipped_steps", 0)
    if not (isinstance(skipped, int) and 0 <= skipped <= state["step"]):
        raise UserError(f"{path}: 'skipped_steps': expected a number up to {state['step']}, found {skipped!r}")
    return state


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Dict[str, Tensor]:
    """The optimiser's state as flat tensors: ``<parameter>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, values in state.items() for k, v in values.items()}


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Dict[str, Tensor],
    path: Path = Path(OPTIMIZER),
    had_unread: bool = False,
    order: Optional[Sequence[Tensor]] = None,
) -> None:
    """Load the result of `optimizer_tensors`; parameter groups stay as configured.

    Args:
        path: the file of the tensors, for messages.
        had_unread: the saved optimiser also had unused parameters (`Transducer.unread`). These have no state, as they
            never had a gradient; the others are renumbered.
        order: the parameters in the order of the tensors' numbers; None: the optimiser's order.

    Raises:
        UserError: the tensors do not match the optimiser's parameters.
    """
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parameters, number_of = own if order is None else order, {id(parameter): i for i, parameter in enumerate(own)}
    if had_unread:
        tensors = _numbered_anew(tensors, len(parameters), path)
    whole = optimizer.state_dict()
    advice = "where other parameters were trained, start a new run with --training.init_from"
    state: Dict[int, Dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        if not (index.isdecimal() and int(index) < len(parameters) and name):
            raise UserError(f"{path}: tensor {key} belongs to no parameter of the model; {advice}")
        parameter = parameters[int(index)]
        if value.ndim and value.shape != parameter.shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(parameter.shape)}"
            raise UserError(f"{path}: tensor {key} has shape {shapes}; {advice}")
        entry = state.setdefault(number_of[id(parameter)], {})
        entry[name] = sharded_like(value, parameter) if value.ndim else value
    names = {frozenset(entry) for entry in state.values()}
    if len(names) > 1:
        raise UserError(f"{path}: not the state of one optimiser: some parameters have other tensors than the rest")
    whole["state"] = state
    optimizer.load_state_dict(whole)


def _numbered_anew(tensors: Dict[str, Tensor], count: int, path: Path) -> Dict[str, Tensor]:
    """Renumber the state of an optimiser that had unused parameters; ``count``: parameters with a state."""
    numbers = sorted({int(key.partition(".")[0]) for key in tensors if key.partition(".")[0].isdecimal()})
    if len(numbers) not in (0, count):
        raise UserError(
            f"{path}: of an older version, which had layers in the optimiser that nothing reads, and others that were "
            "not trained yet: start a new run from its weights with --training.init_from"
        )
    new = {str(old): str(number) for number, old in enumerate(numbers)}
    split = {key: key.partition(".") for key in tensors}
    return {f"{new.get(split[key][0], split[key][0])}.{split[key][2]}": value for key, value in tensors.items()}

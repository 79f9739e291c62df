"""Checkpoints: folders of tensors (safetensors) and text, written under a temporary name and renamed.

A checkpoint is a whole model folder (weights, configuration, tokenizer) with the optimiser's state beside it. Nothing
in it is ever unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenverse_pp.errors import UserError

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer.model"


def checkpoint_dir(exp_dir: Path, step: int) -> Path:
    """The folder of the checkpoint after ``step`` steps."""
    return exp_dir / "checkpoints" / f"step-{step:08d}"


def list_checkpoints(exp_dir: Path) -> List[Path]:
    """Finished checkpoints, oldest first (a folder with a temporary name is none)."""
    return sorted(p for p in (exp_dir / "checkpoints").glob("step-????????") if (p / STATE).is_file())


def write_folder(folder: Path, tensors: Dict[str, Dict[str, Tensor]], texts: Dict[str, bytes]) -> None:
    """Write files into a folder that appears whole or not at all.

    Args:
        folder: the final name; one that is there already is replaced.
        tensors: file name -> tensors.
        texts: file name -> content.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, state in tensors.items():
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, temporary / name)
    for name, content in texts.items():
        (temporary / name).write_bytes(content)
    for path in temporary.iterdir():
        _flush(path)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    _flush(folder.parent)


def _flush(path: Path) -> None:
    """Have the kernel write a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def keep_last(exp_dir: Path, count: int) -> None:
    """Delete all but the last ``count`` checkpoints."""
    for path in list_checkpoints(exp_dir)[:-count]:
        shutil.rmtree(path)


def read_tensors(path: Path) -> Dict[str, Tensor]:
    """Tensors of a safetensors file (raises UserError where it is missing or damaged)."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is its folder a model or checkpoint?") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged or not safetensors: {error}") from None


def read_state(folder: Path) -> Dict[str, Any]:
    """The JSON state of a checkpoint."""
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / STATE}: cannot be read: {error}") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Dict[str, Tensor]:
    """The optimiser's state as flat tensors: ``<parameter>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, values in state.items() for k, v in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; the groups stay those of the configuration."""
    whole = optimizer.state_dict()
    state: Dict[int, Dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    whole["state"] = state
    optimizer.load_state_dict(whole)


def average(folders: Sequence[Path]) -> Dict[str, Tensor]:
    """The mean of the weights of several checkpoints (float64 inside); what is not floating point is the last's."""
    total: Optional[Dict[str, Tensor]] = None
    last: Dict[str, Tensor] = {}
    for folder in folders:
        last = read_tensors(folder / WEIGHTS)
        if total is None:
            total = {k: torch.zeros_like(v, dtype=torch.float64) for k, v in last.items() if v.is_floating_point()}
        for key, value in total.items():
            value += last[key]
    assert total is not None, "no checkpoint to average"
    return {k: (total[k] / len(folders)).to(v.dtype) if k in total else v for k, v in last.items()}

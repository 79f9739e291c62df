"""Which checkpoint a run goes on from, and what has changed since."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from tokenverse_pp.config import Config, load_config
from tokenverse_pp.errors import UserError
from tokenverse_pp.training import checkpoint
from tokenverse_pp.training.provenance import changed_corpus

# Options that say where and how long, not what is computed.
UNIMPORTANT = ("training.exp_dir", "training.resume", "training.max_steps", "training.epochs", "training.threads")


def find_start(config: Config, say: Callable[[str], None]) -> Optional[Path]:
    """The checkpoint that `training.resume` asks for, its files verified; None: start anew.

    Args:
        config: ``auto``: the newest whole checkpoint, if there is any; damaged ones are passed over. ``true``: the
            newest, which must be there and whole. ``false``: none may be there. Else the folder of a checkpoint.
        say: called with a line for each damaged one that is passed over.

    Raises:
        UserError: where there is no such checkpoint.
    """
    exp_dir, wish = Path(config.training.exp_dir), str(config.training.resume)
    found = checkpoint.list_checkpoints(exp_dir)
    mode = wish.lower()
    if mode == "false":
        if found:
            raise UserError(f"{exp_dir} holds checkpoints: pass --training.resume auto, or another exp_dir")
        return None
    if mode == "auto":
        return _newest_whole(exp_dir, found, say)
    if mode == "true" and not found:
        raise UserError(f"--training.resume=true: {exp_dir} holds no checkpoint")
    folder = found[-1] if mode == "true" else Path(wish)
    problem = checkpoint.damage(folder) if folder.is_dir() else f"{folder}: no such folder"
    if problem:
        raise UserError(f"--training.resume={wish}: {problem}")
    return folder


def _newest_whole(exp_dir: Path, found: Sequence[Path], say: Callable[[str], None]) -> Optional[Path]:
    for folder in reversed(found):
        problem = checkpoint.damage(folder)
        if problem is None:
            return folder
        say(f"{problem}; passing over {folder.name}")
    if found:
        raise UserError(f"{exp_dir}: none of its {len(found)} checkpoints is whole; move them away to start anew")
    return None


def set_later_aside(exp_dir: Path, step: int) -> List[Path]:
    """Rename checkpoints after ``step`` to ``.aside``, which the run will write again; drop half-written ones."""
    aside = []
    for folder in checkpoint.list_checkpoints(exp_dir):
        if checkpoint.step_of(folder) > step:
            target = folder.with_name(folder.name + ".aside")
            number = 2
            while target.exists():
                target = folder.with_name(f"{folder.name}.aside{number}")
                number += 1
            folder.rename(target)
            aside.append(target)
    return aside


def check_unchanged(folder: Path, state: Dict[str, Any], corpora: Sequence[Dict[str, Any]], config: Config) -> None:
    """See that tasks and corpora are those of the checkpoint.

    Raises:
        UserError: naming what has changed; changed corpora are accepted with ``training.allow_changed_data``.
    """
    names = list(config.tasks.names)
    if state.get("tasks", names) != names:
        raise UserError(f"{folder}: its tasks are {', '.join(state['tasks'])}, not {', '.join(names)}")
    changed = changed_corpus(state.get("corpora", corpora), corpora)
    if changed and not config.training.allow_changed_data:
        raise UserError(f"{folder}: --data.train: {changed}; pass --training.allow_changed_data true to go on with it")


def changed_options(folder: Path, config: Config) -> List[str]:
    """``name: old -> new`` of each option that was another one at the checkpoint."""
    old, new = (dict(_flat(dataclasses.asdict(c))) for c in (load_config(folder / checkpoint.CONFIG), config))
    return [
        f"{name}: {old[name]} -> {value}"
        for name, value in new.items()
        if old[name] != value and name not in UNIMPORTANT
    ]


def _flat(options: Dict[str, Any], prefix: str = "") -> Iterator[Tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

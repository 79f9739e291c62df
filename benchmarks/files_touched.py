"""Which files of the package a training step, a drawn batch and a decoded batch go through.

    python benchmarks/files_touched.py            # prints JSON: the files, and how many
    python benchmarks/files_touched.py --markdown # prints lists

The toy corpus is made in a temporary folder. Only functions that run between the start of a step (or batch) and its
end are counted, in this process; no data-loading worker is used.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Set

import click

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = str(ROOT / "tokenverse_pp") + os.sep
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(ROOT / "recipes" / "toy"))


class Trace:
    """Collects the files of the package whose functions are called while it is on."""

    def __init__(self) -> None:
        self.files: Set[str] = set()

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        """A profile function (`sys.setprofile`)."""
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE):
            self.files.add(name[len(PACKAGE) :])

    def during(self, function: Callable[..., Any], at: int) -> Callable[..., Any]:
        """``function``, traced in its call number ``at`` (from 1)."""
        calls = 0

        def traced(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls != at:
                return function(*args, **kwargs)
            sys.setprofile(self)
            threading.setprofile(self)
            try:
                return function(*args, **kwargs)
            finally:
                sys.setprofile(None)
                threading.setprofile(None)  # type: ignore[arg-type]

        return traced

    def in_item(self, function: Callable[..., Any], at: int) -> Callable[..., Any]:
        """A generator function, traced while it makes its item number ``at`` (from 1)."""

        def traced(*args: Any, **kwargs: Any) -> Any:
            advance = self.during(functools.partial(next, function(*args, **kwargs), None), at)
            return iter(advance, None)

        return traced


def load(path: Path) -> Any:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def training_step(folder: Path) -> Dict[str, List[str]]:
    """The files of a training step, of drawing a batch, of writing a log record, and of all three.

    `Trainer.train_step` is given the batch: the step is moving it to the device, forward, backward and the update.
    """
    from tokenverse_pp.training.trainer import Trainer

    step, draw, log = Trace(), Trace(), Trace()
    originals = {name: getattr(Trainer, name) for name in ("train_step", "draw", "log")}
    Trainer.train_step = step.during(Trainer.train_step, at=2)
    Trainer.draw = draw.in_item(Trainer.draw, at=1)  # later ones find cuts that lhotse has read ahead
    Trainer.log = log.during(Trainer.log, at=2)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            load(ROOT / "recipes" / "train.py").main(
                f"--config {ROOT}/recipes/toy/conf/toy.yaml --data.train [{folder}/cuts_train.jsonl.gz] "
                f"--data.valid [{folder}/cuts_dev.jsonl.gz] --model.encoder.name {folder}/encoder --data.num_buckets 1 "
                f"--training.exp_dir {folder}/exp --training.max_steps 3 --training.log_every 1".split()
            )
    finally:
        for name, original in originals.items():
            setattr(Trainer, name, original)
    found = {"training_step": step.files, "drawn_batch": draw.files, "log_record": log.files}
    return {
        **{what: sorted(files) for what, files in found.items()},
        "all_of_training": sorted(set().union(*found.values())),
    }


def decoded_batch(folder: Path) -> List[str]:
    """The files of a decoded batch, from cuts to the records of hyps.jsonl."""
    from tokenverse_pp.decoding.recognizer import Recognizer

    trace = Trace()
    original, Recognizer.__call__ = Recognizer.__call__, trace.during(Recognizer.__call__, at=1)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            load(ROOT / "recipes" / "decode.py").main(
                f"--model {folder}/exp --cuts {folder}/cuts_test.jsonl.gz --output-dir {folder}/decode".split(),
                standalone_mode=False,
            )
    finally:
        Recognizer.__call__ = original
    return sorted(trace.files)


@click.command()
@click.option("--markdown", is_flag=True, help="Print lists in place of JSON.")
def main(markdown: bool) -> None:
    """Count the files of a training step and of a decoded batch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        load(ROOT / "recipes" / "toy" / "prepare.py").prepare_toy(folder, {"train": 16, "dev": 4, "test": 4})
        found = {**training_step(folder), "decoded_batch": decoded_batch(folder)}
    if markdown:
        for what, files in found.items():
            click.echo(f"{what.replace('_', ' ')}: {len(files)} files")
            for file in files:
                click.echo(f"- {file}")
    else:
        click.echo(json.dumps({**found, "counts": {what: len(files) for what, files in found.items()}}, indent=1))


if __name__ == "__main__":
    main()

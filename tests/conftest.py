"""What all tests share: one thread, no network, the same random examples in CI, and a tiny corpus."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Iterator

# Modules of the recipe that tests import by name: `corpus`, `grid`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "recipes" / "human_speech"))

# Before anything imports torch or transformers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not Path("/dev/nvidiactl").exists():  # Triton's kernels run in its interpreter, which is chosen at its first import
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from hypothesis import settings
from scripts import ROOT, load_script
from shared_folders import shared_folder

from tokenverse_pp.tasks import REGISTRY, TaskSet, build_tasks

torch.set_num_threads(1)
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Handlers are after a test what they were: a process that is started inherits a signal that is ignored."""
    numbers = (signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM))  # Windows has no SIGUSR1
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler and handler is not None:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in this process draws no curves.png, which takes longer than its steps; test_log.py tests that."""
    trainer = sys.modules.get("tokenverse_pp.training.trainer")
    if trainer is not None:
        monkeypatch.setattr(trainer, "plot_curves", lambda exp_dir: None)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """The file that hostile code would write."""
    return tmp_path / "canary"


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No task from outside is known, neither before nor after the test."""
    list(REGISTRY)  # entry points are read before
    monkeypatch.setattr(REGISTRY, "_outside", {})


@pytest.fixture(scope="session")
def toy_prepare() -> ModuleType:
    """The script ``recipes/toy/prepare.py`` as a module."""
    return load_script(ROOT / "recipes" / "toy" / "prepare.py", "toy_prepare")


@pytest.fixture(scope="session")
def toy_tasks() -> TaskSet:
    """All five tasks, with the toy's languages."""
    return build_tasks(["asr", "scd", "endp", "ner", "lid"], {"lid": {"languages": ["qaa", "qab"]}})


@pytest.fixture(scope="session")
def tiny_corpus(toy_prepare: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a toy corpus: cuts_train (16, all labelled), cuts_dev (4), cuts_test (4), audio/, encoder/."""

    def make(folder: Path) -> None:
        toy_prepare.prepare_toy(folder, {"train": 16, "dev": 4, "test": 4})

    with shared_folder(tmp_path_factory, "toy", make) as folder:
        yield folder


@pytest.fixture(scope="session")
def train_script() -> ModuleType:
    """The script ``recipes/train.py`` as a module."""
    return load_script(ROOT / "recipes" / "train.py", "train_script")


@pytest.fixture(scope="session")
def decode_script() -> ModuleType:
    """The script ``recipes/decode.py`` as a module."""
    return load_script(ROOT / "recipes" / "decode.py", "decode_script")


@pytest.fixture(scope="session")
def finished_run(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Experiment folder of ten training steps on the tiny corpus, through the real command line."""
    from toy_runs import finish, start, toy_options

    def make(folder: Path) -> None:
        done = finish(start("train.py", *toy_options(tiny_corpus, folder)))
        assert done.code == 0, done.stderr

    with shared_folder(tmp_path_factory, "finished", make) as folder:
        yield folder

"""Doing the runs of a grid one after another: train.py, then decode.py for each decoding, each resumed where it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from tokenverse_pp.errors import UserError
from tokenverse_pp.experiments.folders import Place, RunFolder, read_json
from tokenverse_pp.experiments.grid import Decoding, Run
from tokenverse_pp.training.log import read_log
from tokenverse_pp.training.provenance import git_commit

POLL = 2.0  # seconds between looks at a child
SAY_EVERY = 60.0  # seconds between lines of progress
GUESS = {"step": 0.7, "decoding": 40.0}  # seconds, until a run has shown what they take


class Failed(Exception):
    """A command of a run ended with an error; the message says where its output is."""


@dataclass
class Runner:
    """Does runs.

    Args:
        recipes: the folder of train.py and decode.py.
        threads: of torch, in each of them.
        say: takes the lines of progress.
    """

    place: Place
    recipes: Path
    threads: int
    say: Callable[[str], None]
    seconds: Dict[str, float] = field(default_factory=dict)  # of a step and of a decoding, as far as seen

    def run_all(self, runs: Sequence[Run], seeds: Sequence[int]) -> None:
        """Do every run for every seed: the first seed of all of them first, so that a stopped grid is whole for it.

        A run that another process does is passed over. One that fails is told and passed over, with those that need
        it.

        Raises:
            UserError: at the end, where any failed.
        """
        todo = [
            self.place.folder(run, seed)
            for seed in sorted({seed for run in runs for seed in run.seeds})
            for run in runs
            if seed in run.seeds and (not seeds or seed in seeds)
        ]
        self._learn(todo)
        failed: List[str] = []
        for number, folder in enumerate(todo):
            name = f"{folder.run.name} seed {folder.seed}"
            if folder.finished:
                self.say(f"{name}: finished before")
                continue
            self.say(f"{name}: about {_minutes(self._expected(todo[number:]))} left for this and all that follow")
            try:
                self._run(folder, name)
            except Failed as error:
                failed.append(name)
                self.say(f"{name}: failed: {error}")
        if failed:
            raise UserError(f"{len(failed)} of {len(todo)} runs failed: {', '.join(failed)}")

    def _run(self, folder: RunFolder, name: str) -> None:
        with folder.locked() as lock:
            if lock is None:
                self.say(f"{name}: another process is at it")
                return
            if folder.trained is None:
                if folder.run.of:
                    raise Failed(f"run {folder.run.of} is not trained")
                self._train(folder, name, lock)
            for decoding in folder.left():
                self._decode(folder, decoding, name, lock)

    def _train(self, folder: RunFolder, name: str, lock: IO[str]) -> None:
        if folder.run.init_from and self.place.folder(*self.place.before(folder.run, folder.seed)).trained is None:
            raise Failed(f"run {folder.run.init_from}, from whose model it starts, is not trained")
        config = folder.write_config()
        steps = int(folder.run.settings["training.max_steps"])
        command = [self.recipes / "train.py", "--config", config, "--training.threads", self.threads]

        def progress() -> Tuple[str, float]:
            step = last_step(folder.model / "log.jsonl")
            return f"step {step} of {steps}", step

        seconds = self._watch(command, folder, "train", f"{name}: training", lock, progress, steps)
        self.seconds["step"] = seconds / steps
        folder.note(
            "trained.json",
            {"digest": folder.trained_digest, "steps": steps, "seconds": round(seconds, 1), "commit": git_commit()},
        )
        shutil.rmtree(folder.model / "checkpoints", ignore_errors=True)  # optimiser states; the model stays

    def _decode(self, folder: RunFolder, decoding: Decoding, name: str, lock: IO[str]) -> None:
        output = folder.output(decoding)
        if (output / "decoded.json").exists():
            shutil.rmtree(output)  # of other options
        command: List[Any] = [self.recipes / "decode.py", "--model", folder.model, "--cuts", self.place.corpus("test")]
        command += ["--output-dir", output, "--no-report", "--threads", self.threads, *as_options(decoding.options)]
        title = f"{name}: decoding {decoding.name}"
        seconds = self._watch(command, folder, output.name, title, lock, lambda: ("", 0.0), 0)
        self.seconds["decoding"] = seconds
        record = {"digest": folder.decoding_digest(decoding), "seconds": round(seconds, 1), "commit": git_commit()}
        write = folder.output(decoding).relative_to(folder.path) / "decoded.json"
        folder.note(str(write), {**record, "options": dict(decoding.options)})

    def _watch(
        self,
        command: Sequence[Any],
        folder: RunFolder,
        part: str,
        title: str,
        lock: IO[str],
        progress: Callable[[], Tuple[str, float]],
        total: float,
    ) -> float:
        """Run a command to its end, telling how far it is; returns its seconds, those of stopped attempts included."""
        clock = folder.path / f"{part}.seconds.json"
        earlier = (read_json(clock) or {"seconds": 0.0})["seconds"]
        started = said = time.monotonic()
        done_before = progress()[1]
        output = folder.path / f"{part}.log"
        words = [sys.executable, *map(str, command)]
        with output.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(words)}\n")
            log.flush()
            child = subprocess.Popen(words, stdout=log, stderr=log, pass_fds=[lock.fileno()], env=self._environment())
            try:
                while child.poll() is None:
                    _wait(child)
                    now = time.monotonic()
                    folder.note(clock.name, {"seconds": round(earlier + now - started, 1)})
                    if now - said >= SAY_EVERY:
                        said = now
                        text, done = progress()
                        left = (now - started) / max(done - done_before, 1e-9) * (total - done)
                        rest = f", about {_minutes(left)} left" if done > done_before else ""
                        self.say(f"{title} {text}{rest}")
            except BaseException:
                child.send_signal(signal.SIGTERM)
                child.wait()
                raise
        if child.returncode:
            raise Failed(f"exit code {child.returncode}: {last_line(output)} ({output})")
        seconds = earlier + time.monotonic() - started
        self.say(f"{title}: done in {_minutes(seconds)}")
        return seconds

    def _environment(self) -> Dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": str(self.threads)}

    def _learn(self, folders: Sequence[RunFolder]) -> None:
        """How long a step and a decoding took in the runs that are finished."""
        records = [folder.trained for folder in folders]
        steps = [record["seconds"] / record["steps"] for record in records if record]
        if steps:
            self.seconds["step"] = sum(steps) / len(steps)

    def _expected(self, folders: Sequence[RunFolder]) -> float:
        """Seconds that unfinished runs are likely to take."""
        seconds = {**GUESS, **self.seconds}
        total = 0.0
        for folder in folders:
            if folder.trained is None and not folder.run.of:
                total += seconds["step"] * float(folder.run.settings.get("training.max_steps", 0))
            total += seconds["decoding"] * len(folder.left())
        return total


def as_options(options: Mapping[str, Any]) -> List[str]:
    """Options of a click command; True and False are ``--name`` and ``--no-name``, an empty text is left out.

    >>> as_options({"beam": 4, "stored-features": True, "force-language": False, "tasks": ""})
    ['--beam', '4', '--stored-features', '--no-force-language']
    """
    words: List[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value != "":
            words += [f"--{name}", str(value)]
    return words


def last_step(log: Path) -> int:
    """The newest step that train.py has written down, 0 before the first."""
    return max((record["step"] for record in read_log(log)), default=0)


def last_line(path: Path) -> str:
    """The last line of a command's output that says something."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _wait(child: subprocess.Popen[bytes]) -> Optional[int]:
    try:
        return child.wait(POLL)
    except subprocess.TimeoutExpired:
        return None


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

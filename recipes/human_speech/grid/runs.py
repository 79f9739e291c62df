"""Where the files of a run are, by a digest of what defines it, and whether it is finished.

Doing the runs of a grid one after another: train.py, then decode.py for each decoding, each resumed where it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from grid.grid import Decoding, Grid, Run, Settings, derive, digest, nested
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import replacing, write_json, write_text
from tokenverse_pp.data.manifests import read_cuts
from tokenverse_pp.data.samplers import open_source
from tokenverse_pp.data.tokenizer import train_tokenizer
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.tasks.transcript import turns_of
from tokenverse_pp.training.checkpoints import git_commit
from tokenverse_pp.training.log import read_log

# Settings that do not change what comes out.
NEUTRAL = ("training.exp_dir", "training.threads", "training.log_every", "training.save_every", "training.keep_last",
           "training.valid_every", "data.num_workers", "data.validate", "data.train", "data.valid", "tokenizer.model",
           "training.init_from", "training.seed", "training.peer_timeout")  # fmt: skip
SHORT = 8  # characters of a digest in a folder's name


@dataclass
class Place:
    """The folder of all results, and the data they rest on.

    Args:
        exp_dir: of all runs.
        data: folder with the files that `Grid.corpora` names.
    """

    grid: Grid
    exp_dir: Path
    data: Path

    def __post_init__(self) -> None:
        self._sha256: Dict[str, str] = {}

    def corpus(self, part: str) -> Path:
        """The manifest of ``train``, ``dev`` or ``test`` (raises UserError where it is missing)."""
        path = self.data / self.grid.corpora[part]
        if not path.is_file():
            raise UserError(f"{path}: no such file; --data names the folder with the prepared cuts")
        return path

    def sha256(self, part: str) -> str:
        """Of the manifest of a part, read once."""
        if part not in self._sha256:
            self._sha256[part] = open_source(str(self.corpus(part))).fingerprint()["sha256"]
        return self._sha256[part]

    def tokenizer(self) -> Path:
        """The tokenizer that all runs share, trained on all texts where it is not there yet."""
        spec = dict(self.grid.tokenizer)
        path = self.exp_dir / f"tokenizer-{digest([spec, self.sha256('train')])[:SHORT]}.model"
        if not path.is_file():
            tasks = build_tasks(spec["tasks"], {"lid": {"languages": spec.get("languages", [])}})
            texts = (turn.text for cut in read_cuts(self.corpus("train")) for turn in turns_of(cut))
            tokenizer = train_tokenizer(texts, tasks, spec.get("vocab_size", 500))
            with replacing(path) as temporary:
                tokenizer.save(temporary)
        return path

    def manifest(self, name: str, seed: int) -> Path:
        """A derived training manifest, made where it is not there yet."""
        how = self.grid.manifests[name].as_dict(seed)
        if not how:
            return self.corpus("train")
        path = self.exp_dir / "manifests" / f"{name}-{digest([how, self.sha256('train')])[:SHORT]}.jsonl.gz"
        if not path.is_file():
            derive(self.corpus("train"), path, self.grid.manifests[name], seed)
        return path

    def training_digest(self, run: Run, seed: int) -> str:
        """Of all that decides the model of a run and seed, but for the code."""
        if run.of:
            seed, run = self.grid.seed_of(run.of, seed), self.grid.runs[run.of]
        settings = {key: value for key, value in run.settings.items() if key not in NEUTRAL}
        derivation = self.grid.manifests[run.train].as_dict(seed)
        before = run.init_from and self.training_digest(*self.before(run, seed))
        corpora = [self.sha256("train"), dict(self.grid.tokenizer)]
        return digest([settings, derivation, corpora, seed, before])

    def before(self, run: Run, seed: int) -> Tuple[Run, int]:
        """The run and seed from whose model a run starts."""
        name = str(run.init_from)
        return self.grid.runs[name], self.grid.seed_of(name, seed)

    def folder(self, run: Run, seed: int) -> RunFolder:
        """Where the files of a run and seed are."""
        name = run.of or run.name
        trained = self.training_digest(run, seed)
        path = self.exp_dir / name / f"seed{self.grid.seed_of(name, seed)}-{trained[:SHORT]}"
        return RunFolder(self, run, seed, trained, path)


@dataclass
class RunFolder:
    """The files of one run and seed. A run that decodes another's model shares its folder."""

    place: Place
    run: Run
    seed: int
    trained_digest: str
    path: Path

    @property
    def model(self) -> Path:
        """The experiment folder of train.py."""
        return self.path / "train"

    @property
    def trained(self) -> Optional[Dict[str, Any]]:
        """What `run` wrote down after the training: seconds, steps, commit; None where it is not finished."""
        return read_json(self.path / "trained.json")

    def output(self, decoding: Decoding) -> Path:
        """The output folder of decode.py."""
        return self.path / "decode" / f"{self.run.name} {decoding.name}".replace(" ", "_").replace("/", "_")

    def decoded(self, decoding: Decoding) -> Optional[Dict[str, Any]]:
        """What `run` wrote down after decoding; None where it is not finished, or was done with other options."""
        record = read_json(self.output(decoding) / "decoded.json")
        return record if record and record["digest"] == self.decoding_digest(decoding) else None

    def decoding_digest(self, decoding: Decoding) -> str:
        """Of all that decides the hypotheses, but for the code."""
        return digest([self.trained_digest, dict(decoding.options), self.place.sha256("test")])

    @property
    def finished(self) -> bool:
        """Trained, and every decoding done."""
        return self.trained is not None and not self.left()

    def left(self) -> List[Decoding]:
        """The decodings that are still to be done."""
        wanted = [*self.run.decodings, *([self.run.switching] if self.run.switching else ())]
        return [decoding for decoding in wanted if self.decoded(decoding) is None]

    def write_config(self) -> Path:
        """The configuration file for train.py, with all that the grid says."""
        place, run = self.place, self.run
        settings: Settings = {
            **run.settings,
            "data.train": [str(place.manifest(run.train, self.seed))],
            "data.valid": [str(place.corpus("dev"))] if "dev" in place.grid.corpora else [],
            "tokenizer.model": str(place.tokenizer()),
            "training.exp_dir": str(self.model),
            "training.seed": self.seed,
        }
        if run.init_from:
            settings["training.init_from"] = str(place.folder(*place.before(run, self.seed)).model)
        import yaml

        write_text(self.path / "run.yaml", yaml.safe_dump(nested(settings), sort_keys=False, allow_unicode=True))
        return self.path / "run.yaml"

    @contextlib.contextmanager
    def locked(self) -> Iterator[Optional[IO[str]]]:
        """The lock file, held; None where another process has it.

        The lock goes with the open file: a child that inherits it holds it too, so that a training whose parent was
        killed is not started a second time beside itself.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / "lock", "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield None
                return
            yield file

    def note(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a record of the run."""
        write_json(self.path / name, record)


def read_json(path: Path) -> Optional[Dict[str, Any]]:
    """A JSON object, or None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


POLL = 2.0  # seconds between looks at a child
SAY_EVERY = 60.0  # seconds between lines of progress
# Until a run has shown what they are: seconds of speech that are trained on in a second, seconds of a decoding.
GUESS = {"rate": 150.0, "decoding": 40.0}


class Failed(Exception):
    """A command of a run ended with an error; the message says where its output is."""


@dataclass
class Runner:
    """Does runs.

    Args:
        recipes: the folder of train.py and decode.py.
        threads: of torch, in each of them.
        say: takes the lines of progress.
        hours: no run is started that would probably not be finished so many hours after the first.
    """

    place: Place
    recipes: Path
    threads: int
    say: Callable[[str], None]
    hours: Optional[float] = None
    seen: Dict[str, float] = field(default_factory=dict)  # what `GUESS` guesses, as far as runs have shown it

    def todo(self, parts: Sequence[Sequence[Run]], seeds: Sequence[int]) -> List[RunFolder]:
        """Every run of every seed, part by part; in a part the first seed of all runs first, so that a part that is
        stopped is whole for it."""
        folders = [
            self.place.folder(run, seed)
            for part in parts
            for seed in sorted({seed for run in part for seed in run.seeds})
            for run in part
            if seed in run.seeds and (not seeds or seed in seeds)
        ]
        self._learn(folders)
        return folders

    def forecast(self, folders: Sequence[RunFolder]) -> List[List[str]]:
        """A table of what would be run: for each run its state, its minutes, and the hours until it is finished."""
        rows = [["run", "seed", "state", "training, min", "decoding, min", "finished after, h"]]
        total = 0.0
        for folder in folders:
            training, decoding = self._seconds(folder)
            total += training + decoding
            state = "finished" if folder.finished else "trained" if folder.trained else "not started"
            if state == "not started" and (step := last_step(folder.model / "log.jsonl")):
                state = f"step {step}"
            if self.hours is not None and total > 3600 * self.hours:
                rows.append(
                    [f"not within {self.hours:g} h: {folder.run.name} seed {folder.seed} and what follows", *[""] * 5]
                )
                break
            numbers = [f"{training / 60:.1f}", f"{decoding / 60:.1f}", f"{total / 3600:.2f}"]
            rows.append([folder.run.name, str(folder.seed), state, *numbers])
        return rows

    def run_all(self, folders: Sequence[RunFolder]) -> None:
        """Do the runs in this order.

        A run that another process does is passed over. One that fails is told and passed over, with those that need
        it.

        Raises:
            UserError: at the end, where any failed.
        """
        started = time.monotonic()
        failed: List[str] = []
        for number, folder in enumerate(folders):
            name = f"{folder.run.name} seed {folder.seed}"
            if folder.finished:
                self.say(f"{name}: finished before")
                continue
            expected = time.monotonic() - started + sum(self._seconds(folder))
            if self.hours is not None and expected > 3600 * self.hours:
                self.say(f"{name}: would not be finished within {self.hours:g} h; the same command goes on from here")
                break
            left = sum(sum(self._seconds(each)) for each in folders[number:])
            self.say(f"{name}: about {_minutes(left)} left for this and all that follow")
            try:
                self._run(folder, name)
            except Failed as error:
                failed.append(name)
                self.say(f"{name}: failed: {error}")
        if failed:
            raise UserError(f"{len(failed)} of {len(folders)} runs failed: {', '.join(failed)}")

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
        self.seen["rate"] = _speech(folder.run, steps) / seconds
        folder.note(
            "trained.json",
            {"digest": folder.trained_digest, "steps": steps, "seconds": round(seconds, 1), "commit": git_commit()},
        )
        shutil.rmtree(folder.model / "checkpoints", ignore_errors=True)  # optimiser states; the model stays

    def _decode(self, folder: RunFolder, decoding: Decoding, name: str, lock: IO[str]) -> None:
        output = folder.output(decoding)
        if (output / "decoded.json").exists():
            shutil.rmtree(output)  # of other options
        script, more = ("decode.py", ["--no-report"])
        if decoding is folder.run.switching:
            script, more = ("human_speech/switching.py", [])
        command: List[Any] = [
            self.recipes / script,
            "--model",
            folder.model,
            "--cuts",
            self.place.corpus("test"),
            *more,
        ]
        command += ["--output-dir", output, "--threads", self.threads, *as_options(decoding.options)]
        title = f"{name}: decoding {decoding.name}"
        seconds = self._watch(command, folder, output.name, title, lock, lambda: ("", 0.0), 0)
        self.seen["decoding"] = seconds
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
        # Threads that spin while they wait for others slow each other down where two share a core.
        return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": str(self.threads)}

    def _learn(self, folders: Sequence[RunFolder]) -> None:
        """How fast training was in the runs that are finished."""
        trained = [(folder.run, record) for folder in folders if not folder.run.of and (record := folder.trained)]
        if trained:
            speech = sum(_speech(run, record["steps"]) for run, record in trained)
            self.seen["rate"] = speech / sum(record["seconds"] for _, record in trained)

    def _seconds(self, folder: RunFolder) -> Tuple[float, float]:
        """Seconds that the training of a run and its decodings are likely to take, as far as they are not done."""
        known = {**GUESS, **self.seen}
        training = 0.0
        if folder.trained is None and not folder.run.of:
            steps = int(folder.run.settings.get("training.max_steps", 0)) - last_step(folder.model / "log.jsonl")
            training = _speech(folder.run, max(steps, 0)) / known["rate"]
        return training, known["decoding"] * len(folder.left())


def _speech(run: Run, steps: int) -> float:
    """Seconds of speech in so many steps, if all batches were full."""
    return steps * float(run.settings.get("data.max_duration", 100.0))


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

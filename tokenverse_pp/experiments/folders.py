"""Where the files of a run are, by a digest of what defines it, and whether it is finished."""

from __future__ import annotations

import contextlib
import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, Mapping, Optional, Tuple

from tokenverse_pp.errors import UserError
from tokenverse_pp.experiments.derive import derive
from tokenverse_pp.experiments.grid import Decoding, Grid, Run, Settings, digest, nested
from tokenverse_pp.files import replacing, write_json, write_text
from tokenverse_pp.manifests.reading import read_cuts
from tokenverse_pp.tasks import build_tasks
from tokenverse_pp.tasks.turns import turns_of
from tokenverse_pp.tokenizer import train_tokenizer
from tokenverse_pp.training.sources import open_source

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
        return [decoding for decoding in self.run.decodings if self.decoded(decoding) is None]

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

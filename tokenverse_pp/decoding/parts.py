"""What was decoded so far, on disk: part files that a run goes on from when it was stopped.

A part file has one line of JSON a batch, written at once and flushed: a run that is killed leaves at most its last
line half-written, and that batch is decoded again. A batch goes by a key: a digest of model, options, cuts and audio
files. So nothing is taken over that another model, other options or other audio gave.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import IO, Any, Dict, List, Optional, Sequence

from lhotse.cut import Cut

import tokenverse_pp
from tokenverse_pp.dataset import audio_files
from tokenverse_pp.decoding.batches import Decoded
from tokenverse_pp.decoding.options import DecodeOptions
from tokenverse_pp.files import feed
from tokenverse_pp.search.language_model import lm_files
from tokenverse_pp.training.setup import Loaded

Line = Dict[str, Any]


def run_digest(loaded: Loaded, options: DecodeOptions) -> str:
    """A digest of everything but the cuts: program version, files of model and language model, encoder, options."""
    digest = hashlib.sha256(f"{tokenverse_pp.__version__} {loaded.config.model.encoder}".encode())
    for path in sorted(loaded.folder.iterdir()) if loaded.folder is not None else ():
        if path.is_file():
            digest.update(f"\n{path.name}\n".encode())
            feed(digest, path)
    for path in sorted(lm_files(Path(options.search.lm)).values()) if options.search.lm else ():
        feed(digest, path)
    digest.update(json.dumps(dataclasses.asdict(options), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def batch_digest(run: str, group: Sequence[Cut], stored_features: bool) -> str:
    """A digest of a batch: the run's, the cuts', and size and time of change of their audio files."""
    digest = hashlib.sha256(run.encode())
    for cut in group:
        digest.update(json.dumps(cut.to_dict(), sort_keys=True, default=str).encode())
        for path in () if stored_features else audio_files(cut):
            if path.is_file():
                stat = path.stat()
                digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


class Parts:
    """The part files of an output folder, one a process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: Optional[IO[str]] = None

    def read(self) -> Dict[str, Line]:
        """All whole lines of all part files by the key of their batch."""
        lines: Dict[str, Line] = {}
        for path in sorted(self.folder.glob("part-*.jsonl")):
            for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                line = _whole(text)
                if line is not None:
                    lines[line["key"]] = line
        return lines

    def append(self, rank: int, key: str, done: Decoded) -> None:
        """Add a batch to a process's part file, behind what is in it."""
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / f"part-{rank}.jsonl").open("a", encoding="utf-8")
            if self._file.tell() > 0:
                self._file.write("\n")  # the last line may be half-written
        line = {"key": key, "records": done.records, "failures": done.failures}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the part file that `append` opened."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _whole(text: str) -> Optional[Line]:
    """A line of a part file; None for one that is empty or half-written."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and {"key", "records", "failures"} <= set(line) else None


def collect(lines: Dict[str, Line], keys: Sequence[str]) -> Decoded:
    """The records and failures of the batches with these keys, in no particular order."""
    done = Decoded()
    wanted: List[Line] = [lines[key] for key in keys]
    for line in wanted:
        done.records.extend(line["records"])
        done.failures.extend(line["failures"])
    return done

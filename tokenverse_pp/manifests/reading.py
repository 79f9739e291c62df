"""Reading cuts from a manifest, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from pathlib import Path
from typing import Any, Iterator

from lhotse import CutSet, load_manifest
from lhotse.cut import Cut, MixedCut
from lhotse.serialization import deserialize_item

from tokenverse_pp.errors import UserError
from tokenverse_pp.files import PathLike, json_of
from tokenverse_pp.manifests.lines import BOM, CONTROL, text_lines

FORMATS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".yaml", ".yaml.gz")


def read_cuts(path: PathLike) -> Iterator[Cut]:
    """The cuts of a lhotse manifest, one at a time where the format allows it (JSON lines).

    Raises:
        UserError: where the file is missing or is no manifest of cuts, naming the line.
    """
    name = str(path)
    if not name.endswith(FORMATS):
        raise UserError(f"{name}: expected a cut manifest ({', '.join(FORMATS)})")
    if not Path(path).is_file():
        raise UserError(f"{name}: no such file; expected a cut manifest")
    return _read_lines(name) if name.endswith((".jsonl", ".jsonl.gz")) else _read_whole(name)


def _read_lines(name: str) -> Iterator[Cut]:
    for number, line in text_lines(name):
        if line.strip():
            yield cut_of_line(line, f"{name}, line {number}")


def cut_of_line(line: str, where: str) -> Cut:
    """The cut of a line of a manifest (raises UserError)."""
    data = json_of(line, where)
    try:
        cut = deserialize_item(data)
        if isinstance(cut, MixedCut):
            _ = cut.duration, cut.supervisions  # computed of its tracks, whatever these hold
    except Exception as error:
        # lhotse has no exceptions of its own for what a manifest may hold: any type can come out of it.
        raise UserError(f"{where}: not a lhotse cut: {type(error).__name__}: {reason_of(error)}") from error
    if not isinstance(cut, Cut):
        raise UserError(f"{where}: expected a cut, found a {type(cut).__name__}")
    return cut


def _read_whole(name: str) -> Iterator[Cut]:
    try:
        cuts = load_whole(name)
    except Exception as error:
        raise UserError(f"{name}: not a lhotse manifest: {reason_of(error)}") from error
    if not isinstance(cuts, CutSet):
        raise UserError(f"{name}: expected cuts, found a {type(cuts).__name__}")
    return iter(cuts)


def load_whole(name: str) -> Any:
    """`lhotse.load_manifest`, which reads no file with a byte order mark."""
    with gzip.open(name) if name.endswith(".gz") else open(name, "rb") as file:
        if file.read(len(BOM)) != BOM:
            return load_manifest(name)
        with tempfile.TemporaryDirectory(prefix="tokenverse_pp-") as folder:
            path = Path(folder) / Path(name).name
            with gzip.open(path, "wb") if name.endswith(".gz") else open(path, "wb") as copy:
                shutil.copyfileobj(file, copy)
            return load_manifest(path)


def reason_of(error: Exception) -> str:
    """The first line of what a library threw, not too long for a message."""
    return shortened((str(error).strip().splitlines() or [type(error).__name__])[0])


def shortened(text: str, limit: int = 600) -> str:
    """A text that can be printed on a line, without its middle if it is long: values in messages come from the data."""
    text = CONTROL.sub(lambda match: repr(match[0])[1:-1], text)
    return text if len(text) <= limit else f"{text[: limit // 2]} .. {text[-limit // 3 :]}"

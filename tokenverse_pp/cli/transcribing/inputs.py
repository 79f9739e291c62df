"""What the command line names -> recordings: files, folders, manifests of cuts, standard input."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, NamedTuple, Optional, Sequence, Union

from tokenverse_pp.errors import CONTROL, UserError

if TYPE_CHECKING:
    from tokenverse_pp.api.inputs import Heard, Refused

MANIFESTS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".yaml", ".yaml.gz")  # of cuts
STDIN = "-"


class Source(NamedTuple):
    """A recording: its name for the user, of its output files (without ending), and what was opened."""

    label: str
    output: str
    heard: Union[Heard, Refused]


def are_several(audio: Sequence[str]) -> bool:
    """Whether the command line may name more than one recording."""
    return len(audio) > 1 or any(os.path.isdir(name) or name.endswith(MANIFESTS) for name in audio)


def sources(audio: Sequence[str], recursive: bool, raw_rate: Optional[int]) -> Iterator[Source]:
    """The recordings, in order, each opened when it is asked for; a file that is named twice comes once.

    Args:
        audio: as the command line names them.
        recursive: whether folders of folders are looked into.
        raw_rate: of bare samples on standard input; None for a file there.
    """
    from tokenverse_pp.api.inputs import Refused, open_or_refuse

    seen = set()
    for name in audio:
        if name == STDIN:
            yield Source("stdin", "stdin", _stdin(raw_rate))
        elif os.path.isdir(name):
            found = _files_in(Path(name), recursive)
            if not found:
                deeper = "" if recursive else " (--recursive looks into its folders)"
                yield Source(name, name, Refused(name, f"{name}: no audio files in this folder{deeper}"))
            for path in found:
                if path.resolve() not in seen:
                    seen.add(path.resolve())
                    output = str(path.relative_to(name).with_suffix(""))
                    yield Source(str(path), output, _named(open_or_refuse(path), output))
        elif name.endswith(MANIFESTS):
            yield from _cuts(name)
        elif Path(name).resolve() not in seen:
            seen.add(Path(name).resolve())
            yield Source(name, Path(name).stem, open_or_refuse(name))


def _named(heard: Union[Heard, Refused], output: str) -> Union[Heard, Refused]:
    """A file with its path in the folder for a name: files in folders of the folder may have the same name."""
    from tokenverse_pp.api.inputs import Refused

    return heard if isinstance(heard, Refused) else dataclasses.replace(heard, name=output)


def _files_in(folder: Path, recursive: bool) -> list[Path]:
    from tokenverse_pp.audio import ENDINGS

    found = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(path for path in found if path.suffix.lower() in ENDINGS and path.is_file())


def _cuts(name: str) -> Iterator[Source]:
    """The cuts of a manifest; what is wrong with it ends it."""
    from tokenverse_pp.api.inputs import Refused, open_audio
    from tokenverse_pp.manifests.reading import read_cuts

    try:
        for cut in read_cuts(name):
            yield Source(cut.id, file_name(cut.id), open_audio(cut))
    except UserError as error:
        yield Source(name, name, Refused(name, str(error)))


def file_name(cut_id: str) -> str:
    """A cut's id as the name of a file: in one folder, and nothing that steers a terminal."""
    return re.sub(r"[/\\]|" + CONTROL.pattern, "-", cut_id)


def _stdin(raw_rate: Optional[int]) -> Union[Heard, Refused]:
    import numpy as np

    from tokenverse_pp.api.inputs import Refused, open_audio

    if sys.stdin.isatty():
        return Refused("stdin", "stdin: expected audio from a pipe or file, not a terminal")
    data = sys.stdin.buffer.read()
    try:
        if raw_rate is None:
            return open_audio(data, label="stdin")
        if len(data) % 2:
            raise UserError(f"stdin: --raw: expected samples of 2 bytes, got {len(data)} bytes")
        return open_audio((np.frombuffer(data, "<i2"), raw_rate), label="stdin")
    except UserError as error:
        return Refused("stdin", str(error))

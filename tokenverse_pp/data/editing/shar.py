"""Write manifests as lhotse Shar: shards of cuts with tar files of their audio, read sequentially from disk."""

from __future__ import annotations

import dataclasses
import os
import shutil
import warnings
from itertools import chain
from pathlib import Path
from typing import Any, Dict, Iterator, List

from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut, MixedCut
from lhotse.shar import SharWriter

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import PathLike
from tokenverse_pp.data.access import access_problems, check_files, undecodable
from tokenverse_pp.data.manifests import cut_of, read_rows


def write_shar(path: PathLike, folder: Path, shard_size: int, audio: str = "flac", bar: Any = None) -> Dict[str, int]:
    """Write the cuts of a manifest, their audio and their stored features to a new or empty folder, atomically.

    Each cut's audio is stored alone, from its start to its end; arrays in custom fields (stored features) and all other
    fields are unchanged, so `CutSet.from_shar` reads the same labels.

    Args:
        shard_size: cuts in a shard.
        audio: format, or ``none`` to store features only.

    Returns:
        ``cuts``, ``shards`` and ``bytes``.

    Raises:
        UserError: where the folder is not empty, or naming the cut that cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already; expected a new or empty folder")
    temporary = folder.with_name(f".{os.getpid()}.{folder.name}")
    try:
        temporary.mkdir(parents=True)
        count = _write_cuts(read_cuts_checked(path, bar), temporary, shard_size, audio, str(path))
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    files = list(folder.iterdir())
    shards = sum(file.name.startswith("cuts.") for file in files)
    return {"cuts": count, "shards": shards, "bytes": sum(file.stat().st_size for file in files)}


def read_cuts_checked(path: PathLike, bar: Any = None) -> Iterator[Cut]:
    """The cuts of a manifest, each checked to consist of one existing piece of audio."""
    for row in read_rows(path, bar):
        cut = cut_of(row.data, row.where)
        if isinstance(cut, MixedCut):
            raise UserError(f"{row.where}: cut {cut.id}: Shar holds no mixed cuts; store the mixed audio first")
        yield cut


def _write_cuts(cuts: Iterator[Cut], folder: Path, shard_size: int, audio: str, path: str) -> int:
    first = next(cuts, None)
    if first is None:
        raise UserError(f"{path}: expected cuts, found none")
    fields = {name: "numpy" for name in array_fields(first)}
    if audio != "none":
        fields["recording"] = audio
    if not fields:
        raise UserError(f"{path}: cut {first.id}: nothing to store: no audio (--audio none) and no features")
    count = 0
    with SharWriter(str(folder), fields=fields, shard_size=shard_size, warn_unused_fields=False) as writer:
        for cut in chain([first], cuts):
            if array_fields(cut) != array_fields(first):
                raise UserError(
                    f"{path}: cut {cut.id}: has arrays {array_fields(cut)}, the first cut {array_fields(first)}; "
                    "all cuts of a Shar hold the same"
                )
            _write_cut(writer, cut, audio, path)
            count += 1
    return count


def _write_cut(writer: SharWriter, cut: Cut, audio: str, path: str) -> None:
    problems = access_problems([(cut.custom or {})[name] for name in array_fields(cut)])
    problems += check_files(cut) if audio != "none" else []
    if problems:
        raise UserError(f"{path}: cut {cut.id}: {problems[0]}")
    if audio != "none" and any(source.type == "command" for source in cut.recording.sources):
        raise UserError(f"{path}: cut {cut.id}: Shar takes no output of commands; write it to files first")
    if audio == "none":
        cut = dataclasses.replace(cut, recording=None)  # lhotse would let it point at the wrong seconds
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            writer.write(cut)
    except Exception as error:  # audio and array backends raise errors of any type
        raise UserError(f"{path}: cut {cut.id}: {undecodable(cut, error)}") from error


def array_fields(cut: Cut) -> List[str]:
    """The custom fields of a cut that point at stored arrays."""
    return sorted(name for name, value in (cut.custom or {}).items() if isinstance(value, (Array, TemporalArray)))

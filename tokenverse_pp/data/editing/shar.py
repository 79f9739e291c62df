"""Write manifests as lhotse Shar: shards of cuts with tar files of their audio, read sequentially from disk."""

from __future__ import annotations

import dataclasses
import os
import shutil
import warnings
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Deque, Dict, List

import torch
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut, MixedCut
from lhotse.shar import SharWriter

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import PathLike
from tokenverse_pp.data.access import (
    SourceAccess,
    access_problems,
    allow_sources,
    check_files,
    current_access,
    undecodable,
)
from tokenverse_pp.data.manifests import ManifestRow, cut_of, read_rows


def write_shar(
    path: PathLike, folder: Path, shard_size: int, audio: str = "flac", bar: Any = None, jobs: int = 1
) -> Dict[str, int]:
    """Write the cuts of a manifest, their audio and their stored features to a new or empty folder, atomically.

    Each cut's audio is stored alone, from its start to its end; arrays in custom fields (stored features) and all other
    fields are unchanged, so `CutSet.from_shar` reads the same labels.

    Args:
        shard_size: cuts in a shard.
        audio: format, or ``none`` to store features only.
        jobs: processes, each of which writes shards; the files are the same for any number.

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
        count = _write_shards(path, temporary, shard_size, audio, bar, jobs)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    files = list(folder.iterdir())
    shards = sum(file.name.startswith("cuts.") for file in files)
    return {"cuts": count, "shards": shards, "bytes": sum(file.stat().st_size for file in files)}


def _write_shards(path: PathLike, folder: Path, shard_size: int, audio: str, bar: Any, jobs: int) -> int:
    """Write all shards; return the number of cuts. A few shards' rows are in memory."""
    rows = read_rows(path, bar)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: expected cuts, found none")
    cut = cut_of(first.data, first.where)
    arrays = [] if isinstance(cut, MixedCut) else array_fields(cut)
    if audio == "none" and not arrays:
        raise UserError(f"{path}: cut {cut.id}: nothing to store: no audio (--audio none) and no features")
    rows = chain([first], rows)
    shards = iter(lambda: list(islice(rows, shard_size)), [])
    write = partial(_write_shard, folder=folder, arrays=arrays, audio=audio, path=str(path), access=current_access())
    count = 0
    if jobs == 1:
        for number, shard in enumerate(shards):
            count += write(number, shard)
        return count
    with ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: Deque[Any] = deque()
        try:
            for number, shard in enumerate(shards):
                waiting.append(pool.submit(write, number, shard))
                if len(waiting) > 2 * jobs:
                    count += waiting.popleft().result()
            count += sum(future.result() for future in waiting)
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
    return count


def _write_shard(
    number: int, rows: List[ManifestRow], folder: Path, arrays: List[str], audio: str, path: str, access: SourceAccess
) -> int:
    """Write the shard of a number with these cuts, in this process or another; return the number of cuts."""
    fields = {name: "numpy" for name in arrays}
    if audio != "none":
        fields["recording"] = audio
    options: Any = {"fields": fields, "shard_size": len(rows), "shard_offset": number, "warn_unused_fields": False}
    with allow_sources(access.commands, access.urls), SharWriter(str(folder), **options) as writer:
        for row in rows:
            cut = cut_of(row.data, row.where)
            if isinstance(cut, MixedCut):
                raise UserError(f"{row.where}: cut {cut.id}: Shar holds no mixed cuts; store the mixed audio first")
            if array_fields(cut) != arrays:
                raise UserError(
                    f"{path}: cut {cut.id}: has arrays {array_fields(cut)}, the first cut {arrays}; "
                    "all cuts of a Shar hold the same"
                )
            _write_cut(writer, cut, audio, path)
    return len(rows)


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

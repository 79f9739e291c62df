"""Manifests as lhotse Shar: shards of cuts with tar files of their audio, read sequentially, written and found.

A Shar may be in object storage. Its manifests (a hundredth of its size) are then fetched at once, and the tar files
shard by shard, the next ones while one is read. A Shar that is being written has the object `UNFINISHED`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tarfile
import tempfile
import uuid
import warnings
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Deque, Dict, Iterable, List, NamedTuple, Optional

import torch
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut, MixedCut
from lhotse.shar import SharWriter

from tokenverse_pp.base import storage
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.files import PathLike, cache_folder, replacing_folder, url_of
from tokenverse_pp.data.access import (
    SourceAccess,
    access_problems,
    allow_sources,
    check_files,
    current_access,
    undecodable,
)
from tokenverse_pp.data.lines import INDEX
from tokenverse_pp.data.manifests import FORMATS, ManifestRow, cut_of, read_rows

CUTS = re.compile(r"cuts\..*\.jsonl.*")  # manifest of a shard
SHARD = re.compile(r"[A-Za-z][\w-]*\.\d{6,}\.(tar|jsonl(\.gz)?)")  # a file that `write_shar` makes
FIELD = re.compile(r"[A-Za-z][\w-]*")
UNFINISHED = "unfinished.txt"  # in a Shar in object storage, as long as `write_shar` is at work
AHEAD = 2  # shards whose tar files are fetched before they are read


def is_shar(path: PathLike) -> bool:
    """Whether a path is a folder of shards and not a file of cuts; a URL is judged by its ending."""
    url = url_of(path)
    return Path(path).is_dir() if url is None else not url.endswith(FORMATS)


class SharFiles(NamedTuple):
    """The files of a Shar."""

    cuts: List[Path]
    """The manifests of the shards in order; local copies for a Shar in object storage."""
    fields: List[Dict[str, str]]
    """For each shard, the path or URL of each field's tar file."""
    is_remote: bool

    def open(self, number: int) -> Dict[str, List[str]]:
        """The files of a shard, as `CutSet.from_shar` takes them; the next shards are read ahead."""
        if self.is_remote:  # the last shard is followed by the first one, of the next epoch
            following = [(number + step) % len(self.cuts) for step in range(1, AHEAD + 1)]
            storage.read_ahead(url for other in following for url in self.fields[other].values())
        return {"cuts": [str(self.cuts[number])], **{name: [path] for name, path in self.fields[number].items()}}


def find_shar(path: PathLike) -> SharFiles:
    """The files of a Shar folder (raises UserError if there are none, or it is not finished)."""
    url = url_of(path)
    infos = {} if url is None else {name: info for name, info in storage.list_folder(url).items() if "/" not in name}
    # Absolute, so that no file name (``pipe:..``) is taken for a command or a URL in the working directory.
    folder = Path(path).absolute()
    names = sorted(infos if url is not None else (file.name for file in folder.iterdir()))
    if UNFINISHED in infos:
        raise UserError(f"{url}: not finished: {UNFINISHED} is in it; run `tokenverse-pp manifest to-shar` again")
    cuts = [name for name in names if CUTS.fullmatch(name) and not name.endswith(INDEX)]
    if not cuts:
        raise UserError(f"{url or path}: expected a file of cuts or a Shar folder with cuts.000000.jsonl.gz")
    if url is not None:
        folder = storage.fetch_folder(url, {name: infos[name] for name in cuts})
        storage.remember(url, {name: info for name, info in infos.items() if name not in cuts})
    fields: Dict[str, Dict[str, str]] = {}  # number of the shard -> field -> path
    for name in names:
        parts = name.split(".")
        if len(parts) > 2 and parts[1][:1].isdecimal() and parts[0] != "cuts":
            if not FIELD.fullmatch(parts[0]):
                raise UserError(f"{parts[0]!r} is not the name of a field: expected files such as recording.000000.tar")
            fields.setdefault(parts[1], {})[parts[0]] = f"{url or Path(path).absolute()}/{name}"
    return SharFiles(
        [folder / name for name in cuts], [fields.get(name.split(".")[1], {}) for name in cuts], url is not None
    )


def check_shards(files: SharFiles, numbers: Iterable[int]) -> None:
    """Check that shards of a local Shar have the fields that any has, and whole tar files (raises UserError if not)."""
    names = sorted({name for fields in files.fields for name in fields})
    for number in numbers:
        for name in names:
            path = files.fields[number].get(name)
            if path is None:
                raise UserError(f"{files.cuts[number]}: its shard lacks the file of {name!r} that other shards have")
            if path.endswith(".tar") and not _has_end(Path(path)):
                raise UserError(f"{path}: cut off: expected the end of a tar file")


def _has_end(path: Path) -> bool:
    """Whether a file ends as a tar file does, in two blocks of zeros."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
        return size % tarfile.BLOCKSIZE == 0 and file.read() == bytes(2 * tarfile.BLOCKSIZE)


def write_shar(
    path: PathLike, folder: Path, shard_size: int, audio: str = "flac", bar: Any = None, jobs: int = 1
) -> Dict[str, int]:
    """Write the cuts of a manifest, their audio and their stored features to a new or empty folder or URL, atomically.

    Each cut's audio is stored alone, from its start to its end; arrays in custom fields (stored features) and all other
    fields are unchanged, so `CutSet.from_shar` reads the same labels.

    Args:
        shard_size: cuts in a shard.
        audio: format, or ``none`` to store features only.
        jobs: number of processes that write shards; the files are the same for any number.

    Returns:
        ``cuts``, ``shards`` and ``bytes``.

    Raises:
        UserError: if the folder is not empty, or naming the cut that cannot be written.
    """
    url = url_of(folder)
    if url is not None:
        return _write_remote(path, url, shard_size, audio, bar, jobs)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already; expected a new or empty folder")
    with replacing_folder(folder) as new:
        new.mkdir()
        count = _write_shards(path, new, shard_size, audio, bar, jobs)
    return _report(count, {file.name: file.stat().st_size for file in folder.iterdir()})


def _write_remote(path: PathLike, url: str, shard_size: int, audio: str, bar: Any, jobs: int) -> Dict[str, int]:
    """`write_shar` to object storage: each process holds one shard on disk until it is uploaded.

    Files left by a stopped run are replaced. If there is anything else, nothing is touched.
    """
    there = storage.list_folder(url)
    if there and UNFINISHED not in there:
        raise UserError(f"{url}: exists already; expected a new or empty folder")
    shards = [name for name in there if name != UNFINISHED]
    foreign = next((name for name in shards if not SHARD.fullmatch(name)), None)
    if foreign is not None:
        raise UserError(f"{url}: {foreign} is in it, and is not a file of a shard: expected a new or empty folder")
    mark = f"tokenverse-pp manifest to-shar is at work here, or was stopped ({uuid.uuid4().hex})\n".encode()
    storage.upload(mark, f"{url}/{UNFINISHED}")
    storage.in_parallel(lambda name: storage.remove(f"{url}/{name}"), shards)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shar-", dir=cache_folder()) as temporary:
        count = _write_shards(path, Path(temporary), shard_size, audio, bar, jobs, url)
    if storage.read_bytes(f"{url}/{UNFINISHED}") != mark:
        raise UserError(f"{url}: another `tokenverse-pp manifest to-shar` was started there meanwhile: run one again")
    storage.remove(f"{url}/{UNFINISHED}")
    return _report(count, {name: info["size"] for name, info in storage.list_folder(url).items()})


def _report(count: int, sizes: Dict[str, int]) -> Dict[str, int]:
    """What `write_shar` returns."""
    shards = sum(name.startswith("cuts.") for name in sizes)
    return {"cuts": count, "shards": shards, "bytes": sum(sizes.values())}


def _write_shards(
    path: PathLike, folder: Path, shard_size: int, audio: str, bar: Any, jobs: int, url: Optional[str] = None
) -> int:
    """Write all shards, to ``url`` if there is one; return the number of cuts. A few shards' rows are in memory."""
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
    access = current_access()
    write = partial(_write_shard, folder=folder, arrays=arrays, audio=audio, path=str(path), access=access, url=url)
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
    number: int,
    rows: List[ManifestRow],
    folder: Path,
    arrays: List[str],
    audio: str,
    path: str,
    access: SourceAccess,
    url: Optional[str],
) -> int:
    """Write shard ``number`` with these cuts, in this process or another; return the number of cuts."""
    if url is not None:
        folder = folder / str(number)
        folder.mkdir()
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
    if url is not None:
        for file in sorted(folder.iterdir()):
            storage.upload(file, f"{url}/{file.name}")
        shutil.rmtree(folder)
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

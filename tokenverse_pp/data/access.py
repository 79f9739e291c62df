"""Access control for sources named in a manifest: files are always allowed, commands and URLs only by option.

A recording's source in a lhotse manifest may be a shell command or a URL, and a stored array may come from a pipe, a
URL or a pickle. lhotse opens all of these without asking. Code that loads audio or arrays of an untrusted manifest
calls `access_problems` or `check_access` first; see docs/security.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Iterator, List

from lhotse import AudioSource
from lhotse.cut import Cut, MixedCut

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.data.manifests import shortened

# lhotse's storage types for arrays that are plain data and thus safe to open.
PLAIN_STORAGE = {
    *("numpy_files", "numpy_hdf5", "lilcom_files", "lilcom_hdf5", "chunked_lilcom_hdf5", "lilcom_chunky", "lilcom_url"),
    *("memory_lilcom", "memory_npy", "shar"),
}
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # of two letters or more: C: is a drive
MOST = 200  # characters of a source in a message
PIPE = "pipe:"  # lhotse runs what follows
ALLOW_COMMANDS = "--allow-commands (training: data.allow_commands; Python: allow_sources)"
NOT_RUN = f"which is not run without {ALLOW_COMMANDS}"
NOT_READ = f"is not read without {ALLOW_COMMANDS}"
NOT_OPENED = "which is not opened without --allow-urls (training: data.allow_urls; Python: allow_sources)"
SHELL_SIGNS = re.compile(r"""[;&|<>()$`\\"'*?\[\]{}#~!%^\n\r]""")


@dataclass(frozen=True)
class SourceAccess:
    """The kinds of sources that may be opened in addition to files.

    Attributes:
        commands: run shell commands (sources of type ``command``, ``pipe:``, Kaldi archives) and read pickled arrays.
        urls: open URLs (http, s3, ..).
    """

    commands: bool = False
    urls: bool = False


FILES_ONLY = SourceAccess()
_ACCESS: ContextVar[SourceAccess] = ContextVar("source_access", default=FILES_ONLY)


def current_access() -> SourceAccess:
    """The access in effect: only files outside of `allow_sources`."""
    return _ACCESS.get()


@contextlib.contextmanager
def allow_sources(commands: bool = False, urls: bool = False) -> Iterator[None]:
    """Within the block, manifests may name shell commands or URLs, which are run or opened when audio is loaded.

    >>> with allow_sources(urls=True):
    ...     current_access()
    SourceAccess(commands=False, urls=True)

    It holds for this thread alone. `TransducerDataset` takes it along to its worker processes.

    Args:
        commands: see `SourceAccess`.
        urls: see `SourceAccess`.
    """
    token = _ACCESS.set(SourceAccess(commands, urls))
    try:
        yield
    finally:
        _ACCESS.reset(token)


def check_access(item: Any, name: str = "") -> None:
    """See that nothing is opened for an item that is not allowed.

    Args:
        item: a cut (its audio), a recording, or the manifest of an array.
        name: for the message; a cut has its id.

    Raises:
        UserError: naming the cut, the source and the option.
    """
    problems = access_problems(item)
    if problems:
        where = name or (f"cut {item.id}" if isinstance(item, Cut) else "")
        raise UserError(f"{where}: {problems[0]}" if where else problems[0])


def access_problems(item: Any) -> List[str]:
    """What would be opened for an item and is not allowed (`current_access`): one line each."""
    allowed = current_access()
    return [problem for thing in _opened_for(item) for problem in [_problem(thing, allowed)] if problem]


def file_problem(path: str) -> str:
    """Why a file must not be given to lhotse by its name, or nothing.

    lhotse puts the name of a SPHERE file into a shell command as it is (sph2pipe), and that of an Opus file with
    ``LHOTSE_LEGACY_OPUS_LOADING``.
    """
    name = path.lower()
    if name.endswith(".sph"):
        spaces = shutil.which("sph2pipe") is not None and any(sign.isspace() for sign in path)
        unsafe = spaces or SHELL_SIGNS.search(path) is not None
    else:
        unsafe = name.endswith(".opus") and "'" in path and os.environ.get("LHOTSE_LEGACY_OPUS_LOADING") == "1"
    return f"{shortened(path, MOST)}: the name has signs that a shell would act on; rename the file" if unsafe else ""


def _opened_for(item: Any) -> Iterator[Any]:
    """Whatever lhotse opens to load the audio of a cut or recording, or an array: `AudioSource`, or has storage."""
    if isinstance(item, MixedCut):
        for track in item.tracks:
            yield from _opened_for(track.cut)
        yield from _below(item.transforms)
    elif isinstance(item, Cut):
        yield from _below(getattr(item, "recording", None))
    else:
        yield from _below(item)


def _below(value: Any) -> Iterator[Any]:
    """Sources and stored arrays anywhere in a value: a room's impulse response in a transform is a recording too."""
    if isinstance(value, AudioSource) or hasattr(value, "storage_type"):
        yield value
    elif isinstance(value, dict):
        if {"type", "source"} <= value.keys():
            yield AudioSource(value["type"], [], value["source"])
        if "storage_type" in value:
            yield _Stored(value["storage_type"], value.get("storage_path"), value.get("storage_key"))
        for part in value.values():
            yield from _below(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _below(part)
    elif isinstance(value, Cut):
        yield from _opened_for(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _below(getattr(value, field.name, None))


@dataclass(frozen=True)
class _Stored:
    storage_type: Any
    storage_path: Any
    storage_key: Any


def _problem(thing: Any, allowed: SourceAccess) -> str:
    """Why a source or array must not be opened, or an empty string."""
    if isinstance(thing, AudioSource):
        source = thing.source if isinstance(thing.source, str) else ""
        what = f"field 'recording': {shortened(repr(source), MOST)}"
        if thing.type == "command" or source.startswith(PIPE):
            return "" if allowed.commands else f"{what} is a command, {NOT_RUN}"
        if thing.type == "url" or (thing.type == "file" and URL.match(source)):
            return "" if allowed.urls else f"{what} is a URL, {NOT_OPENED}"
        unsafe = file_problem(source) if thing.type == "file" else ""
        return f"field 'recording': {unsafe}" if unsafe else ""
    places = [str(x) for x in (thing.storage_path, thing.storage_key) if isinstance(x, (str, os.PathLike)) and str(x)]
    what = f"array {shortened(repr('/'.join(places)), MOST)}"
    if any(place.startswith(PIPE) for place in places):
        return "" if allowed.commands else f"{what} is the output of a command, {NOT_RUN}"
    if thing.storage_type not in PLAIN_STORAGE:
        kind = shortened(str(thing.storage_type), MOST)
        return "" if allowed.commands else f"{what} is stored as {kind}, which can run code and {NOT_READ}"
    if places and SCHEME.match(places[0]):
        return "" if allowed.urls else f"{what} is behind a URL, {NOT_OPENED}"
    return ""

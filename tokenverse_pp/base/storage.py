"""Object storage (``s3://``, ``gs://``, ``hf://``, ..) through fsspec: a local cache of what is read, and uploads.

Objects are read whole, never in part: they are downloaded into a cache, their length is compared with what the store
says, and what failed or came short is fetched again. From there on they are local files. Uploads are compared in the
same way. An object becomes visible whole or not at all, so one upload needs no second name; several that belong
together need an order, which is the business of those who write them (`tokenverse_pp.training.storage`).

Credentials, endpoints and timeouts are those of the library behind fsspec (s3fs, gcsfs, huggingface_hub). See
docs/object_storage.md.

The cache is `cache_folder`/objects. A folder in it holds the objects that one call asked for, under a digest of their
names and versions, so that an object that was replaced is fetched again. Where they exceed ``TOKENVERSE_PP_CACHE_GB``,
those that were not used for longest go first; never those that a process holds.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import posixpath
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterable, List, Mapping, Optional, Set, Tuple, TypeVar, Union

from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.base.files import PathLike, cache_folder, locked, url_of

LOG = logging.getLogger(__name__)
T = TypeVar("T")
Info = Mapping[str, Any]
SIZE, DEFAULT_SIZE = "TOKENVERSE_PP_CACHE_GB", 50.0
TRIES = 10
LONGEST_PAUSE = 20.0  # seconds between two tries; all pauses together are 33 to 65 s
READ_AHEAD = "read-ahead"  # name of threads
AT_ONCE = 8  # transfers of a process
# What tells an object from the one before, in the words of different stores; the first that there is.
DIGESTS = ("ETag", "etag", "md5Hash", "blob_id")
VERSION = (*DIGESTS, "mtime", "LastModified", "last_modified", "created")
# Errors that another try does not mend. Some are named, since their libraries need not be installed.
FINAL = (PermissionError, IsADirectoryError, NotADirectoryError, ImportError, TypeError)
FINAL_NAMES = {
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"),
    *("RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "DefaultCredentialsError"),
}
_held: Dict[Path, int] = {}  # folders of the cache that this process reads from, with the handles that lock them
_known: Dict[str, Info] = {}  # objects that this process has listed, and need not ask for again
_ahead: Set[str] = set()  # what threads of this process are reading ahead
_told: Set[str] = set()


def local_path(path: PathLike) -> Path:
    """The path itself, or for a URL a copy in the cache, which stays until this process ends (raises UserError)."""
    url = url_of(path)
    return Path(path) if url is None else fetch(url)


def fetch(url: str) -> Path:
    """A copy of an object in the cache, which stays there until this process ends (raises UserError)."""
    folder, name = posixpath.split(url)
    return fetch_folder(folder, {name: info_of(url)}) / name


def fetch_folder(url: str, names: Mapping[str, Info]) -> Path:
    """A folder of the cache with copies of objects, which stays there until this process ends.

    Args:
        url: of the folder.
        names: relative names, with what `list_folder` says of them.

    Raises:
        UserError: an object cannot be read.
    """
    while True:
        entry = _entry(url, names)
        if entry in _held:
            return entry
        handle = _lock(entry, shared=True)
        if handle is not None:
            _held[entry] = handle
            return entry


def open_cached(url: str) -> IO[bytes]:
    """Open an object for reading, by way of the cache (raises UserError). It may leave the cache while it is open."""
    folder, name = posixpath.split(url)
    names = {name: info_of(url)}
    while True:
        with contextlib.suppress(FileNotFoundError):  # it had to make room for others just now
            return open(_entry(folder, names) / name, "rb")


def read_ahead(urls: Iterable[str]) -> None:
    """Start to fetch objects that are about to be opened; whoever opens them waits for the rest, or for an error."""

    def fetched(url: str) -> None:
        with contextlib.suppress(Exception):  # told when it is opened
            open_cached(url).close()
        _ahead.discard(url)

    for url in urls:
        if url not in _ahead:
            _ahead.add(url)
            # Daemons: a process that ends does not wait for what it no longer needs.
            threading.Thread(target=fetched, args=(url,), name=READ_AHEAD, daemon=True).start()


def list_folder(url: str) -> Dict[str, Info]:
    """All objects below a URL, by relative name, with their size and version; none where there are none."""
    found = _patiently(url, lambda fs, path: fs.find(path, detail=True), missing={})
    _, path = _filesystem(url)
    prefix = path.rstrip("/") + "/"
    names = {name[len(prefix) :]: info for name, info in found.items() if name.startswith(prefix)}
    # A key may be anything: those that no file below a folder can have are left out.
    plain = [name for name in names if "\\" not in name and not {"", ".", ".."} & set(name.split("/"))]
    return {name: names[name] for name in sorted(plain)}


def info_of(url: str) -> Info:
    """Size and version of an object, as listed (`remember`) or asked for (raises UserError where there is none)."""
    if url in _known:
        return _known[url]
    info = _patiently(url, lambda fs, path: fs.info(path))
    if info.get("type") == "directory":
        raise UserError(f"{url}: a folder, expected a file")
    return info


def remember(url: str, names: Mapping[str, Info]) -> None:
    """Take what `list_folder` says of some objects for granted in this process: opening them takes no other request.

    One that is replaced after that is an error when it is fetched.
    """
    _known.update({f"{url}/{name}": info for name, info in names.items()})


def read_bytes(url: str) -> bytes:
    """The content of a small object (raises UserError)."""
    with open_cached(url) as file:
        return file.read()


def download(url: str, target: Path, info: Info) -> None:
    """Copy an object to a file, and compare its length and version (raises UserError)."""
    target.parent.mkdir(parents=True, exist_ok=True)

    def copy(fs: Any, path: str) -> None:
        fs.get_file(path, str(target))
        found = target.stat().st_size
        if found != info["size"]:
            raise OSError(f"{found} bytes of {info['size']} arrived")
        now = fs.info(path)
        if any(now.get(key) != info[key] for key in DIGESTS if info.get(key) and now.get(key)):
            raise UserError(f"{url}: was replaced while it was in use")

    _patiently(url, copy)


def upload(source: Union[Path, bytes], url: str) -> None:
    """Copy a file, or bytes, to an object, and compare its length (raises UserError)."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size

    def copy(fs: Any, path: str) -> None:
        if isinstance(source, bytes):
            fs.pipe_file(path, source)
        else:
            fs.put_file(str(source), path)
        found = fs.info(path)["size"]
        if found != size:
            raise OSError(f"{found} bytes of {size} were stored")

    _patiently(url, copy)


def remove(url: str) -> None:
    """Delete an object; nothing where there is none (raises UserError)."""
    _patiently(url, lambda fs, path: fs.rm_file(path), missing=None)


def in_parallel(function: Callable[[T], Any], items: Iterable[T]) -> None:
    """Call a function for each item, several at once, and raise the first error. One alone is done in this thread."""
    items = list(items)
    if len(items) == 1:  # the threads of a pool hold up the end of the process, which `read_ahead` must not
        function(items[0])
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for future in [pool.submit(function, item) for item in items]:
            future.result()


def working_folder(path: PathLike, purpose: str) -> Path:
    """A local folder for what is written bit by bit: the path itself, or for a URL one in the cache folder."""
    url = url_of(path)
    return Path(path) if url is None else cache_folder() / purpose / f"{posixpath.basename(url)}-{_digest(url)}"


def handles(url: str) -> bool:
    """Whether fsspec has what it takes to open a URL. Web pages and files are left to others."""
    scheme = url.split(":", 1)[0].lower()
    if scheme in ("http", "https", "file", "local"):
        return False
    try:
        import fsspec

        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError):
        return False
    return True


def _filesystem(url: str) -> Tuple[Any, str]:
    """fsspec's file system and path of a URL; file systems are kept by fsspec, one a process and thread."""
    try:
        import fsspec

        return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        hint = " (pip install 'tokenverse_pp[storage]')" if url.startswith("s3:") else ""
        raise UserError(f"{url}: {one_line(error)}{hint}") from None
    except ValueError as error:  # an unknown protocol
        raise UserError(f"{url}: {one_line(error)}") from None


MISSING: Any = object()


def _patiently(url: str, action: Callable[[Any, str], T], missing: Any = MISSING) -> T:
    """``action(file system, path)``, tried again after errors that may pass; the pauses double, and vary by a half.

    Args:
        missing: what to return where there is no such object.

    Raises:
        UserError: naming the URL, where it cannot work, or did not in `TRIES` tries.
    """
    for number in range(1, TRIES + 1):
        try:
            return action(*_filesystem(url))
        except UserError:
            raise
        except FileNotFoundError:
            if missing is not MISSING:
                return missing
            raise UserError(f"{url}: no such file, folder or bucket") from None
        except Exception as error:  # libraries raise errors of their own, and those of the HTTP client they use
            is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            if is_full or isinstance(error, FINAL) or type(error).__name__ in FINAL_NAMES:
                raise UserError(f"{url}: {one_line(error) or type(error).__name__}") from None
            reason = one_line(error) or type(error).__name__
            if number == TRIES:
                raise UserError(f"{url}: failed {TRIES} times, at last: {reason}") from None
            LOG.debug("%s: try %d: %s", url, number, reason)
            time.sleep(min(LONGEST_PAUSE, 0.2 * 2 ** (number - 1)) * random.uniform(0.5, 1))
    raise AssertionError


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _entry(url: str, names: Mapping[str, Info]) -> Path:
    """The folder of the cache with these objects, which are fetched if they are not there.

    Of several processes that want the same one fetches it, and the others wait. It may be removed at any time unless it
    is locked.
    """
    versions = [(name, info["size"], _version(info)) for name, info in names.items()]
    key = _digest(json.dumps([url, versions]))
    objects = cache_folder() / "objects"
    entry = objects / key
    if not _is_whole(entry, names):
        staging = objects / "staging" / key[:2]  # not one an object, as these are never removed
        staging.mkdir(parents=True, exist_ok=True)
        with locked(staging):
            if not _is_whole(entry, names):
                if entry.is_dir():
                    _drop(entry, objects)
                _make_room(objects, sum(info["size"] for info in names.values()))
                new = staging / "new"
                shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
                new.mkdir()
                in_parallel(lambda item: download(f"{url}/{item[0]}", new / item[0], item[1]), names.items())
                os.replace(new, entry)
    with contextlib.suppress(FileNotFoundError):
        os.utime(entry)
    return entry


def _is_whole(entry: Path, names: Mapping[str, Info]) -> bool:
    """Whether a folder of the cache is there, with files of the right size: a machine that lost power may cut them."""
    try:
        return all((entry / name).stat().st_size == info["size"] for name, info in names.items())
    except OSError:
        return False


def _drop(entry: Path, objects: Path) -> None:
    """Remove a folder of the cache, which no other process then takes for whole."""
    gone = objects / "staging" / f"gone-{os.getpid()}-{threading.get_ident()}"
    handle = _held.pop(entry, None)
    if handle is not None:
        os.close(handle)
    with contextlib.suppress(FileNotFoundError):
        os.replace(entry, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _version(info: Info) -> str:
    """What tells an object from others under its name."""
    return next((str(info[key]) for key in VERSION if info.get(key)), "")


def _lock(folder: Path, shared: bool) -> Optional[int]:
    """Lock a folder of the cache; returns the handle, None where it is gone or is locked by others.

    Where there are no such locks a shared one always succeeds, and one for removing it never does.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        import fcntl

        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except (ImportError, OSError):  # no such locks here, as in `files.locked`
        if not shared:
            os.close(handle)
            return None
    with contextlib.suppress(FileNotFoundError):
        if os.stat(folder).st_ino == os.fstat(handle).st_ino:
            return handle
    os.close(handle)
    return None


def cache_limit() -> float:
    """The bytes that the cache may hold (raises UserError)."""
    text = os.environ.get(SIZE, "")
    try:
        gigabytes = float(text) if text else DEFAULT_SIZE
    except ValueError:
        gigabytes = -1.0
    if not 0 < gigabytes < float("inf"):
        raise UserError(f"{SIZE}={text}: expected gigabytes above 0")
    return gigabytes * 1e9


def _make_room(objects: Path, needed: int) -> None:
    """Remove what was not used for longest, until ``needed`` bytes fit; what processes hold stays."""
    limit = cache_limit()
    with locked(objects):
        entries: List[Tuple[float, int, Path]] = []
        for entry in objects.iterdir():
            if len(entry.name) == 32:
                with contextlib.suppress(OSError):
                    size = sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
                    entries.append((entry.stat().st_mtime, size, entry))
        over = sum(size for _, size, _ in entries) + needed - limit
        for _, size, entry in sorted(entries):
            if over <= 0:
                return
            handle = None if entry in _held else _lock(entry, shared=False)
            if handle is not None:
                _drop(entry, objects)
                os.close(handle)
                over -= size
    if over > 0 and "full" not in _told:
        _told.add("full")
        held = "all of it in use, or not to be locked"
        LOG.warning(f"{objects}: {over / 1e9:.1f} GB over the limit of {limit / 1e9:g} GB ({SIZE}), {held}")

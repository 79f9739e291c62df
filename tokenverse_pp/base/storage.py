"""Object storage (``s3://``, ``gs://``, ``hf://``, ..) through fsspec: a local cache for reading, and uploads.

Objects are always read as a whole: they are downloaded into a cache, their length is compared with the store's, and
failed or incomplete downloads are repeated. After that they are local files. Uploads are checked in the same way. An
object becomes visible completely or not at all, so one upload needs no temporary name; several that belong together
need an order, which the caller ensures (`tokenverse_pp.training.storage`).

Credentials, endpoints and timeouts are those of the library that fsspec uses (s3fs, gcsfs, huggingface_hub). See
docs/object_storage.md.

The cache is `cache_folder`/objects. Each folder in it holds the objects of one call, under a digest of their names and
versions, so that a replaced object is fetched again. If they exceed ``TOKENVERSE_PP_CACHE_GB``, the least recently used
ones are removed, but never those that a process holds.
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
# Fields of different stores that identify the version of an object; the first one present counts.
DIGESTS = ("ETag", "etag", "md5Hash", "blob_id")
VERSION = (*DIGESTS, "mtime", "LastModified", "last_modified", "created")
# Errors that another try does not fix. Some are given by name, since their libraries may not be installed.
FINAL = (PermissionError, IsADirectoryError, NotADirectoryError, ImportError, TypeError)
FINAL_NAMES = {
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"),
    *("RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "DefaultCredentialsError"),
}
_held: Dict[Path, int] = {}  # folders of the cache that this process reads from, with the handles that lock them
_known: Dict[str, Info] = {}  # objects that this process has listed, and need not look up again
_ahead: Set[str] = set()  # URLs that threads of this process read ahead
_told: Set[str] = set()


def local_path(path: PathLike) -> Path:
    """Return the path, or for a URL a copy in the cache, kept until this process ends (raises UserError)."""
    url = url_of(path)
    return Path(path) if url is None else fetch(url)


def fetch(url: str) -> Path:
    """Return a copy of an object in the cache, kept until this process ends (raises UserError)."""
    folder, name = posixpath.split(url)
    return fetch_folder(folder, {name: info_of(url)}) / name


def fetch_folder(url: str, names: Mapping[str, Info]) -> Path:
    """Return a folder of the cache with copies of objects, kept until this process ends.

    Args:
        names: relative names, with their information from `list_folder`.

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
    """Open an object for reading, through the cache (raises UserError). The cache may drop it while it is open."""
    folder, name = posixpath.split(url)
    names = {name: info_of(url)}
    while True:
        with contextlib.suppress(FileNotFoundError):  # it was just removed to make room
            return open(_entry(folder, names) / name, "rb")


def read_ahead(urls: Iterable[str]) -> None:
    """Start to fetch objects that will be opened soon; opening them waits for the rest, or raises the error."""

    def fetched(url: str) -> None:
        with contextlib.suppress(Exception):  # raised when it is opened
            open_cached(url).close()
        _ahead.discard(url)

    for url in urls:
        if url not in _ahead:
            _ahead.add(url)
            # Daemons: a process that ends does not wait for what it no longer needs.
            threading.Thread(target=fetched, args=(url,), name=READ_AHEAD, daemon=True).start()


def list_folder(url: str) -> Dict[str, Info]:
    """Return all objects below a URL, by relative name, with size and version; empty if there are none."""
    found = _patiently(url, lambda fs, path: fs.find(path, detail=True), missing={})
    _, path = _filesystem(url)
    prefix = path.rstrip("/") + "/"
    names = {name[len(prefix) :]: info for name, info in found.items() if name.startswith(prefix)}
    # A key may be anything: those that cannot be file names below a folder are left out.
    plain = [name for name in names if "\\" not in name and not {"", ".", ".."} & set(name.split("/"))]
    return {name: names[name] for name in sorted(plain)}


def info_of(url: str) -> Info:
    """Return size and version of an object, remembered (`remember`) or looked up (raises UserError if missing)."""
    if url in _known:
        return _known[url]
    info = _patiently(url, lambda fs, path: fs.info(path))
    if info.get("type") == "directory":
        raise UserError(f"{url}: a folder, expected a file")
    return info


def exists(url: str) -> bool:
    """Whether there is such an object now (raises UserError if that cannot be told)."""
    info = _patiently(url, lambda fs, path: fs.info(path), missing=None)
    return info is not None and info.get("type") != "directory"


def remember(url: str, names: Mapping[str, Info]) -> None:
    """Keep what `list_folder` returned for some objects in this process: opening them needs no other request.

    Fetching an object that was replaced after that is an error.
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
    """Delete an object if it exists (raises UserError)."""
    _patiently(url, lambda fs, path: fs.rm_file(path), missing=None)


def in_parallel(function: Callable[[T], Any], items: Iterable[T]) -> None:
    """Call a function for each item, several at once, and raise the first error. A single one runs in this thread."""
    items = list(items)
    if len(items) == 1:  # threads of a pool delay the end of the process, which `read_ahead` must not
        function(items[0])
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for future in [pool.submit(function, item) for item in items]:
            future.result()


def working_folder(path: PathLike, purpose: str) -> Path:
    """Return a local folder for files written in pieces: the path, or for a URL one in the cache folder."""
    url = url_of(path)
    return Path(path) if url is None else cache_folder() / purpose / f"{posixpath.basename(url)}-{_digest(url)}"


def handles(url: str) -> bool:
    """Whether fsspec can open a URL. Web pages and local files are left to others."""
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
    """Return fsspec's file system and path of a URL; fsspec keeps one file system per process and thread."""
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
    """Call ``action(file system, path)``, again after transient errors; the pauses double, and vary by a half.

    Args:
        missing: what to return if there is no such object.

    Raises:
        UserError: naming the URL, if the error is permanent or `TRIES` tries failed.
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
        except Exception as error:  # libraries raise their own errors, and those of the HTTP client they use
            is_full, reason = isinstance(error, OSError) and error.errno == errno.ENOSPC, one_line(error)
            if is_full or isinstance(error, FINAL) or type(error).__name__ in FINAL_NAMES:
                raise UserError(f"{url}: {reason}") from None
            if number == TRIES:
                raise UserError(f"{url}: failed {TRIES} times, at last: {reason}") from None
            LOG.debug("%s: try %d: %s", url, number, reason)
            time.sleep(min(LONGEST_PAUSE, 0.2 * 2 ** (number - 1)) * random.uniform(0.5, 1))
    raise AssertionError


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _entry(url: str, names: Mapping[str, Info]) -> Path:
    """Return the folder of the cache with these objects, which are fetched if they are missing.

    If several processes want the same folder, one fetches it and the others wait. It may be removed at any time unless
    it is locked.
    """
    versions = [(name, info["size"], _version(info)) for name, info in names.items()]
    key = _digest(json.dumps([url, versions]))
    objects = cache_folder() / "objects"
    entry = objects / key
    if not _is_whole(entry, names):
        staging = objects / "staging" / key[:2]  # not one per object, as these are never removed
        staging.mkdir(parents=True, exist_ok=True)
        with locked(staging):
            if not _is_whole(entry, names):
                if entry.is_dir():
                    _drop(entry, objects)
                _make_room(objects, sum(info["size"] for info in names.values()))
                new = staging / "new"
                shutil.rmtree(new, ignore_errors=True)  # left by a killed process
                new.mkdir()
                in_parallel(lambda item: download(f"{url}/{item[0]}", new / item[0], item[1]), names.items())
                os.replace(new, entry)
    with contextlib.suppress(FileNotFoundError):
        os.utime(entry)
    return entry


def _is_whole(entry: Path, names: Mapping[str, Info]) -> bool:
    """Whether a folder of the cache has files of the right size: a loss of power may truncate them."""
    try:
        return all((entry / name).stat().st_size == info["size"] for name, info in names.items())
    except OSError:
        return False


def _drop(entry: Path, objects: Path) -> None:
    """Remove a folder of the cache so that no other process takes it for complete."""
    gone = objects / "staging" / f"gone-{os.getpid()}-{threading.get_ident()}"
    handle = _held.pop(entry, None)
    if handle is not None:
        os.close(handle)
    with contextlib.suppress(FileNotFoundError):
        os.replace(entry, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _version(info: Info) -> str:
    """Return the version that identifies an object among those of its name."""
    return next((str(info[key]) for key in VERSION if info.get(key)), "")


def _lock(folder: Path, shared: bool) -> Optional[int]:
    """Lock a folder of the cache; return the handle, or None if it is gone or locked by others.

    Without support for such locks, a shared one always succeeds and an exclusive one never does.
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
    """Return the largest size of the cache in bytes (raises UserError)."""
    text = os.environ.get(SIZE, "")
    try:
        gigabytes = float(text) if text else DEFAULT_SIZE
    except ValueError:
        gigabytes = -1.0
    if not 0 < gigabytes < float("inf"):
        raise UserError(f"{SIZE}={text}: expected gigabytes above 0")
    return gigabytes * 1e9


def _make_room(objects: Path, needed: int) -> None:
    """Remove the least recently used folders until ``needed`` bytes fit; those that processes hold stay."""
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

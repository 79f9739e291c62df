"""Write files atomically, read JSON and YAML from untrusted sources, and lay out plain-text tables."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, Dict, Iterable, Iterator, Mapping, Optional, Sequence, Set, Union

from tokenverse_pp.base.errors import UserError, printable

BLOCK = 1 << 20  # bytes read at once
MOST_VALUES = 100_000  # most values in a YAML text
PathLike = Union[str, "os.PathLike[str]"]
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)([^/].*)", re.DOTALL)  # two letters at least: C:/ is a drive


def url_of(path: PathLike) -> Optional[str]:
    """Return the URL that a path represents, or None for a path of the file system.

    A `Path` keeps only one slash of ``s3://``: the other is restored, so that options may be paths.

    >>> url_of("s3://bucket/cuts.jsonl.gz"), url_of(Path("s3://bucket") / "exp"), url_of("data/cuts.jsonl.gz")
    ('s3://bucket/cuts.jsonl.gz', 's3://bucket/exp', None)
    """
    match = _URL.fullmatch(str(path))
    if match is None or not (match[2] or isinstance(path, os.PathLike)):
        return None
    return f"{match[1]}://{match[3]}".rstrip("/")


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; it is renamed to ``path`` if the block ends without an error.

    It keeps the endings (``.jsonl.gz``), since libraries depend on them. Parent folders are created. After an error it
    is removed, and ``path`` is not changed. For a URL, the file is uploaded when the block ends; to a device or pipe
    (``/dev/null``, ``/dev/stdout``) its content is written.

    Raises:
        IsADirectoryError: ``path`` is a folder, or names no file.
    """
    url = url_of(path)
    if url is not None:
        from tokenverse_pp.base.storage import upload  # here, as it imports this module

        with tempfile.TemporaryDirectory(prefix="tokenverse_pp-") as folder:
            temporary = Path(folder) / url.rsplit("/", 1)[1]
            yield temporary
            upload(temporary, url)
        return
    target = Path(path)
    if not target.name or target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "expected a file to write, found a folder", str(path) or repr(""))
    if _is_special(target):  # root would replace the device by a file
        with tempfile.TemporaryDirectory(prefix="tokenverse_pp-") as folder:
            temporary = Path(folder) / target.name
            yield temporary
            with open(temporary, "rb") as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    """Whether a path is a device or a pipe, or a link to an open file such as ``/dev/stdout``."""
    is_open_file = path.is_symlink() and path.parent.resolve().parts[1:2] in (("dev",), ("proc",))
    return is_open_file or (path.exists() and not path.is_file())


@contextlib.contextmanager
def locked(folder: PathLike) -> Iterator[None]:
    """Hold the lock of a folder, its file ``.lock``; wait until no other process holds it.

    If there are no such locks (Windows, some network file systems), it does not wait.
    """
    with open(Path(folder) / ".lock", "ab") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        yield


def claimed(path: PathLike) -> IO[bytes]:
    """Lock a file for this process, until the result is closed or the process ends; write into it who holds it.

    If there are no such locks (as for `locked`), the file is only written.

    Raises:
        UserError: another process holds the lock.
    """
    file = open(path, "a+b", buffering=0)
    try:
        import fcntl

        # Not flock: its locks are inherited, so workers of a killed process might hold them for a while.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        with file:
            file.seek(0)
            holder = file.read().decode("utf-8", "replace")
        raise UserError(f"{path}: held by {printable(holder) or 'another process'}") from None
    except (ImportError, OSError):
        pass
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file


def temporary_folder(path: PathLike) -> Path:
    """Create an empty folder beside ``path``, so that finished files can be renamed to it (raises UserError)."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except FileExistsError:
        raise UserError(f"{target}: cannot be written: {target.parent} is not a folder") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def replacing_folder(path: PathLike) -> Iterator[Path]:
    """Yield the path of a new folder to create and fill; it is renamed to ``path`` if the block ends without an error.

    A folder that exists is replaced; the caller checks that it may be. After an error it is kept as it was.

    Raises:
        UserError: it cannot be written (also for an OSError in the block), or is the current folder or one above it.
    """
    target = Path(os.path.abspath(path))
    here = Path.cwd()
    if target == here or target in here.parents:
        raise UserError(f"{path}: the current folder lies there, so it cannot be replaced; expected another folder")
    stage = temporary_folder(target)
    old = stage / "old"
    try:
        yield stage / "new"
        if target.exists():
            os.replace(target, old)
        os.replace(stage / "new", target)
    except OSError as error:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def cache_folder() -> Path:
    """The cache folder: ``TOKENVERSE_PP_CACHE``, else a folder in the user's cache."""
    own = os.environ.get("TOKENVERSE_PP_CACHE")
    if own:
        return Path(own).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tokenverse_pp"


def write_text(path: PathLike, text: str) -> None:
    """Write UTF-8 text with `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: PathLike, data: Any) -> None:
    """Write indented JSON with `write_text`; NaN and infinities, which JSON does not have, raise ValueError."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_links(paths: Iterable[Path]) -> None:
    """Check that no file of a model's folder links to a file outside of it, which would be copied along.

    Links inside the folder are allowed, and those of the hub's cache (``snapshots/../blobs``).

    Raises:
        UserError: naming the link.
    """
    for path in sorted(paths):
        whole = path.parent.resolve()
        holder = next((parent for parent in whole.parents if parent.name.startswith("models--")), whole)
        if path.is_symlink() and holder not in path.resolve().parents:
            raise UserError(f"{path}: a link to {path.resolve()}, which is not in its folder, so it is not copied")


def json_of(text: str, where: str) -> Any:
    """Return the value of a JSON text (raises UserError if it is none, or nested too deeply for Python)."""
    try:
        return json.loads(text)
    except ValueError as error:  # also a number of thousands of digits
        raise UserError(f"{where}: not JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{where}: JSON nested too deeply") from None


def yaml_of(text: str) -> Any:
    """Return the value of a YAML text: plain data of at most `MOST_VALUES` values.

    Raises:
        UserError: it is not YAML, has a key twice in a mapping, names objects of Python, or is nested too deeply or too
            large: an alias (``*a``) within an alias multiplies the content of a few lines.
    """
    import yaml  # the ONNX runtime does not need it

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _check_keys(node, set())
        data = None if node is None else loader.construct_document(node)
        _count(data, 0)
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise UserError(f"not YAML: {error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise UserError(f"not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UserError("YAML nested too deeply") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # PyYAML does not catch the errors of a wrong value after a tag (``!!bool x``), or of a date such as 32 May.
        raise UserError(f"not YAML: {(str(error).splitlines() or [type(error).__name__])[0]}") from None
    return data


def _check_keys(node: Any, seen: Set[int]) -> None:
    """Check that no mapping of a YAML tree has a key twice, of which PyYAML silently takes the last one."""
    if id(node) in seen or not isinstance(getattr(node, "value", None), list):
        return
    seen.add(id(node))
    lines: Dict[str, int] = {}
    for item in node.value:
        key, value = item if isinstance(item, tuple) else (None, item)
        if isinstance(key and key.value, str) and key.value != "<<":
            line = key.start_mark.line + 1
            if key.value in lines:
                raise UserError(f"key {key.value!r} in line {lines[key.value]} and again in line {line}: join them")
            lines[key.value] = line
        _check_keys(value, seen)


def _count(data: Any, count: int) -> int:
    """Return ``count`` plus the number of values in data (raises UserError if it is too large)."""
    if count > MOST_VALUES:
        raise UserError(f"YAML of more than {MOST_VALUES} values")
    parts: Iterable[Any] = ()
    if isinstance(data, dict):
        parts = [*data.keys(), *data.values()]
    elif isinstance(data, (list, tuple, set)):
        parts = data
    for part in parts:
        count = _count(part, count + 1)
    return count


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number that fits a float: not a bool, and no integer of hundreds of digits."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def check_shared(paths: Iterable[PathLike]) -> None:
    """Check that files written by workers of a cluster exist here too (raises UserError naming the folder)."""
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(
                f"{path.parent}: a worker has written {path.name}, which is not there on this machine: the folder must "
                "be on a file system that all machines share (or was the file deleted? then delete parts in it)"
            )


def feed(digest: Any, path: PathLike) -> int:
    """Update a `hashlib` digest with the bytes of a file, block by block; return their number."""
    size = 0
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            digest.update(block)
            size += len(block)
    return size


def checksum(path: PathLike) -> Dict[str, Any]:
    """Bytes and SHA-256 of a file."""
    digest = hashlib.sha256()
    return {"bytes": feed(digest, path), "sha256": digest.hexdigest()}


def damage_of(path: Path, expected: Mapping[str, Any]) -> Optional[str]:
    """Describe in one line how a file differs from the one with the `checksum` ``expected``; None if it does not."""
    if not path.is_file():
        return f"{path}: no such file"
    if path.stat().st_size != expected["bytes"]:
        return f"{path}: has {path.stat().st_size} bytes, {expected['bytes']} were written"
    return f"{path}: damaged, its checksum differs" if checksum(path)["sha256"] != expected["sha256"] else None


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Format rows of equal length with aligned columns: the first ``left`` to the left, the others to the right.

    >>> print(aligned([["language", "cuts"], ["fr", "12"]]))
    language  cuts
    fr          12

    Not with `tabulate`: it strips the spaces that pad a cell (`manifest show` has such cells) unless a global setting
    is changed, and its widths depend on whether wcwidth is installed.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)

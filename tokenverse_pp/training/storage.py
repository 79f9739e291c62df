"""Experiment folders of several machines, shared or local (``training.storage``), and in object storage.

With ``local`` each machine has its own folder. `share_checkpoints` makes these equal at the start of a run: a machine
may be new, or may have been absent while the others trained.

A run whose ``training.exp_dir`` is a URL works in a local folder, which `RemoteRun` uploads. An object exists
completely or not at all, and the checksums of a checkpoint are uploaded last: a checkpoint without them is incomplete
and is skipped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from tokenverse_pp.base import storage
from tokenverse_pp.base.config import Config
from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.base.files import BLOCK, cache_folder, url_of, write_json
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.models import checkpoint
from tokenverse_pp.training.checkpoints import set_aside
from tokenverse_pp.training.log import LOG_FILE

LOG = logging.getLogger(__name__)
SEEN_WITHIN = 10.0  # seconds until a new file must be visible on another machine: NFS caches folders
RUN = "run.json"  # of an experiment in object storage: the id of its run
UPLOADED = ".uploaded.json"  # in the local folder of such a run: files uploaded or downloaded
# Files that a resumed run needs. Others at its URL (hypotheses, tensorboard) are written anew, or are not its own.
RESUMED = {LOG_FILE, checkpoint.CONFIG, checkpoint.TOKENIZER}
RUNS = "runs"  # folder in the cache folder where runs with a URL work
STEP = re.compile(r"checkpoints/(step-\d{8})/(.+)")
Offer = Dict[str, Any]  # name of a checkpoint -> checksums of its tensors


def check_storage(exp_dir: Path, world: DistributedContext) -> None:
    """Check that the machines share the experiment folder, or that none does, as ``training.storage`` says.

    Raises UserError on all processes, naming two machines.
    """
    hosts = dict(world.gather((world.machine, socket.gethostname())))
    if len(hosts) < 2:
        return
    token = world.from_first(lambda: uuid.uuid4().hex)
    marks = [exp_dir / f".machine-{number}-{token}" for number in sorted(hosts)]
    with world.failing_together():
        if world.leads:
            try:
                exp_dir.mkdir(parents=True, exist_ok=True)
                marks[world.machine].touch()
            except OSError as error:
                raise UserError(f"--training.exp_dir: {exp_dir}: cannot be written: {error.strerror}") from None
    seen = _seen(marks, world) if world.leads else set()
    found = world.gather((world.machine, seen))
    if world.leads:
        marks[world.machine].unlink(missing_ok=True)
    for machine, numbers in found:
        if numbers and world.shared and 0 not in numbers:
            raise UserError(
                f"--training.exp_dir: {exp_dir} of {hosts[machine]} is not that of {hosts[0]}: name a folder that all "
                "machines share, or pass --training.storage local"
            )
        for other in sorted(numbers - {machine}) if not world.shared else ():
            advice = "name a local folder, or pass --training.storage shared"
            if cache_folder() / RUNS in exp_dir.parents:  # of a URL
                advice = "set TOKENVERSE_PP_CACHE to a folder on a local disk"
            both = f"{hosts[machine]} and {hosts[other]}"
            raise UserError(f"--training.storage=local: {exp_dir} is the same folder on {both}: {advice}")


def _seen(marks: List[Path], world: DistributedContext) -> Set[int]:
    """Return the numbers of the machines whose mark this one sees; with a shared folder, wait for machine 0's."""
    until = time.monotonic() + (SEEN_WITHIN if world.shared else 0)
    while True:
        seen = {number for number, mark in enumerate(marks) if mark.exists()}
        if 0 in seen or time.monotonic() > until:
            return seen
        time.sleep(0.2)


def share_checkpoints(exp_dir: Path, world: DistributedContext) -> None:
    """Give all machines the checkpoints and the log of the one that has the latest intact checkpoint.

    A machine that receives checkpoints deletes its own older ones (the others have deleted these long before), and
    renames those that were not offered to ``.aside``.

    Raises:
        UserError: on all processes, if a machine cannot write them.
    """
    offers = world.gather(_offer(exp_dir) if world.writes else None)
    source = max(range(world.size), key=lambda rank: (max(offers[rank] or {"": 0}), -rank))
    offered, mine = offers[source] or {}, offers[world.rank]
    receives = mine is not None and mine != offered
    for folder in checkpoint.list_checkpoints(exp_dir) if receives and offered else ():
        if folder.name < min(offered):  # first, as the disk may not hold both
            shutil.rmtree(folder, ignore_errors=True)
    for name, sums in offered.items():
        lacking = [rank for rank, offer in enumerate(offers) if offer is not None and offer.get(name) != sums]
        if lacking:
            folder = exp_dir / "checkpoints" / name
            _send_folder(folder, source, world.rank in lacking, world, needed=name == max(offered))
    if any(offer is not None and offer != offered for offer in offers):
        problem = _send_file(exp_dir / LOG_FILE, source, exp_dir / LOG_FILE if receives else None, world)
        with world.failing_together():
            if problem:
                raise UserError(problem)
        for folder in checkpoint.list_checkpoints(exp_dir) if receives else ():
            if folder.name not in offered:
                LOG.warning(f"set aside: {set_aside(folder)}")


def _offer(exp_dir: Path) -> Offer:
    """Return this machine's checkpoints up to the latest intact one, with the checksums of their tensors."""
    found = checkpoint.list_checkpoints(exp_dir)
    while found and checkpoint.damage(found[-1]):
        found.pop()
    offer = {}
    for folder in found:
        try:
            sums = json.loads((folder / checkpoint.CHECKSUMS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            sums = {}
        # Configurations may name different folders or versions: only the tensors must be the same.
        offer[folder.name] = [sums.get(name) for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER)]
    return offer


def _send_folder(folder: Path, source: int, receives: bool, world: DistributedContext, needed: bool) -> None:
    """Copy a checkpoint from one process to those that receive it, and check it there.

    A damaged one that is not ``needed`` is skipped with a warning: the source may be damaged as well.
    """
    files = world.gather(sorted(path.name for path in folder.iterdir()) if world.rank == source else [])[source]
    temporary = folder.with_name(folder.name + ".tmp")
    if receives:
        shutil.rmtree(temporary, ignore_errors=True)
    problems = [_send_file(folder / name, source, temporary / name if receives else None, world) for name in files]
    with world.failing_together():
        if not receives:
            return
        unwritten = next(filter(None, problems), None)
        problem = unwritten or checkpoint.damage(temporary)
        if problem:
            shutil.rmtree(temporary, ignore_errors=True)
            if unwritten or needed:
                raise UserError(problem)
            LOG.warning(f"{socket.gethostname()}: {folder.name} of rank {source} is left out: {problem}")
            return
        if folder.exists():
            LOG.warning(f"set aside: {set_aside(folder)}")
        temporary.rename(folder)
        LOG.warning(f"{socket.gethostname()}: {folder.name} received from rank {source}")


def _send_file(path: Path, source: int, target: Optional[Path], world: DistributedContext) -> Optional[str]:
    """Copy a file (empty if missing) from one process to those that give a target; return their problem."""
    problem = None
    received = world.send_from(source, _blocks(path) if world.rank == source else ())
    if target is not None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                file.writelines(received)
        except OSError as error:
            problem = f"{target}: cannot be written: {error.strerror}"
    for _ in received:  # all processes take part to the end, even if writing fails
        pass
    return problem


def _blocks(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as file:
            yield from iter(lambda: file.read(BLOCK * 16), b"")


def open_remote(config: Config, world: DistributedContext) -> Optional[RemoteRun]:
    """If ``training.exp_dir`` is a URL, set it to a local copy of that folder, which the first rank uploads.

    The copy belongs to a run, not to a URL: if the objects were deleted, nothing of the earlier run comes back.

    Raises:
        UserError: on all ranks, if the storage cannot be read or written.
    """
    url = url_of(config.training.exp_dir)
    if url is None:
        return None
    name = world.from_first(lambda: _run_id(url))
    folder = storage.working_folder(url, RUNS) / name
    config.training.exp_dir, config.training.storage = str(folder), "local"
    run = RemoteRun(url, folder)
    with world.failing_together():
        if world.is_first:
            LOG.info(f"{url}: the run works in {folder}")
            run.fetch()
    deleted = world.from_first(lambda: run.deleted)
    if world.leads and not world.is_first:
        for name in deleted:  # otherwise this machine would offer them to the first
            shutil.rmtree(folder / "checkpoints" / name, ignore_errors=True)
    return run if world.is_first else None


def _run_id(url: str) -> str:
    """Return the id of the run at a URL; write one if there is none."""
    if RUN not in storage.list_folder(url):
        storage.upload(json.dumps({"id": uuid.uuid4().hex[:12]}).encode(), f"{url}/{RUN}")
    try:
        return str(json.loads(storage.read_bytes(f"{url}/{RUN}"))["id"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{url}/{RUN}: damaged: expected the id of a run") from None


class RemoteRun:
    """An experiment folder in object storage, and the local folder that a run works in."""

    def __init__(self, url: str, folder: Path):
        self.url = url
        self.folder = folder
        self.deleted: List[str] = []  # local checkpoints that `fetch` found deleted at the URL
        self._uploaded: Dict[str, Tuple[int, int]] = {}  # relative name -> size and time of change
        self._thread: Optional[threading.Thread] = None
        self._problem: Optional[UserError] = None

    def fetch(self) -> None:
        """Download the checkpoints at the URL and, unless later ones exist here, the files in `RESUMED`.

        Later ones exist here if the run was killed before it uploaded them. A local checkpoint that is missing at the
        URL, but was uploaded or is older than the newest one there, was deleted there and is deleted here.

        Raises:
            UserError: the storage cannot be read, or the disk cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        there = storage.list_folder(self.url)
        steps = sorted({m[1] for m in map(STEP.fullmatch, there) if m and m[2] == checkpoint.CHECKSUMS})
        newest = steps[-1] if steps else ""
        here = [path.name for path in checkpoint.list_checkpoints(self.folder)]
        self._read_uploaded()
        whole = {name for name in here if f"checkpoints/{name}/{checkpoint.CHECKSUMS}" in self._uploaded}
        self.deleted = [name for name in here if name not in steps and (name < newest or name in whole)]
        for name in self.deleted:
            LOG.warning(f"{name} was deleted at {self.url}, and is deleted here")
            shutil.rmtree(self.folder / "checkpoints" / name, ignore_errors=True)
        later = [name for name in here if name > newest and name not in self.deleted]
        for name in steps:
            self._fetch_checkpoint(name, {n: info for n, info in there.items() if n.startswith(f"checkpoints/{name}/")})
        if later:
            LOG.warning(f"{later[-1]} of this machine was not uploaded, and is later than those of {self.url}")
        kept = RESUMED if later else set()
        for name in self._uploaded.keys() - there.keys() - kept:
            if not STEP.fullmatch(name):  # one that is incomplete there is complete here
                (self.folder / name).unlink(missing_ok=True)
        if not later:
            others = sorted(RESUMED & there.keys())
            storage.in_parallel(lambda n: storage.download(f"{self.url}/{n}", self.folder / n, there[n]), others)
            self._uploaded.update((n, _state(self.folder / n)) for n in others)
        self._uploaded = {name: state for name, state in self._uploaded.items() if name in there}
        self._write_uploaded()

    def _read_uploaded(self) -> None:
        """Read what earlier processes have uploaded; a damaged file counts as empty."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            found = json.loads((self.folder / UPLOADED).read_text(encoding="utf-8"))
            self._uploaded = {str(name): (int(size), int(time)) for name, (size, time) in found.items()}

    def _write_uploaded(self) -> None:
        write_json(self.folder / UPLOADED, dict(self._uploaded))

    def _fetch_checkpoint(self, name: str, objects: Dict[str, Any]) -> None:
        """Download a checkpoint unless it is here already; skip a damaged one with a warning."""
        target = self.folder / "checkpoints" / name
        sums = storage.read_bytes(f"{self.url}/checkpoints/{name}/{checkpoint.CHECKSUMS}")
        with contextlib.suppress(OSError):
            if (target / checkpoint.CHECKSUMS).read_bytes() == sums and not checkpoint.damage(target):
                self._uploaded.update((n, _state(self.folder / n)) for n in objects if (self.folder / n).is_file())
                return
        temporary = target.with_name(name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        storage.in_parallel(
            lambda n: storage.download(f"{self.url}/{n}", temporary / n.split("/", 2)[2], objects[n]), objects
        )
        problem = checkpoint.damage(temporary)
        if problem:
            LOG.warning(f"{self.url}/checkpoints/{name} is left out: {problem}")
            shutil.rmtree(temporary, ignore_errors=True)
            return
        if target.exists():
            LOG.warning(f"set aside: {set_aside(target)}")
        temporary.rename(target)
        self._uploaded.update((n, _state(self.folder / n)) for n in objects)

    def upload(self) -> None:
        """Upload changed files of the local folder in the background, after the previous upload has ended."""
        self.wait()
        # Listed before the thread starts: the caller may write the next checkpoint meanwhile.
        paths = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        hidden = re.compile(r"(\A|/)\.|\.(tmp|old)/")
        names = sorted(path for path in paths if not hidden.search(path))
        self._thread = threading.Thread(target=self._upload, args=(names,), daemon=True)
        self._thread.start()

    def wait(self, needed: bool = False) -> None:
        """Wait for the upload. A failure is logged, and the next upload tries again; UserError if it is ``needed``."""
        if self._thread is not None:
            self._thread.join()
        self._thread, problem, self._problem = None, self._problem, None
        if problem and needed:
            raise UserError(f"{problem}; the rest is in {self.folder}: run the same command again to upload it")
        if problem:
            LOG.warning(f"not uploaded yet: {problem}")

    def _upload(self, names: List[str]) -> None:
        try:
            try:
                self._upload_changed(names)
            finally:
                self._write_uploaded()
        except UserError as error:
            self._problem = error
        except OSError as error:
            self._problem = UserError(f"{self.folder}: cannot be read: {error}")
        except Exception as error:  # otherwise nobody would see what a library raises in this thread
            self._problem = UserError(f"{self.url}: {one_line(error)}")

    def _upload_changed(self, names: List[str]) -> None:
        """Upload changed files, a folder's checksums last; then delete remote checkpoints that are no longer here."""
        changed = {name for name in names if self._uploaded.get(name) != _state(self.folder / name)}
        there = storage.list_folder(self.url)
        last = {name for name in names if name.endswith(f"/{checkpoint.CHECKSUMS}")}
        # First noted as not uploaded: if this process is killed here, they do not count as deleted.
        kept = set(names) - (last & changed)
        self._uploaded = {name: state for name, state in self._uploaded.items() if name in kept}
        self._write_uploaded()
        for folder in {name.rpartition("/")[0] for name in last & changed}:
            # The remote folder of this name is about to be replaced, object by object.
            if f"{folder}/{checkpoint.CHECKSUMS}" in there:
                storage.remove(f"{self.url}/{folder}/{checkpoint.CHECKSUMS}")
        storage.in_parallel(self._upload_file, sorted(changed - last))
        storage.in_parallel(self._upload_file, sorted(changed & last))
        gone = [name for name in there if STEP.fullmatch(name) and name not in names]
        for name in sorted(gone, key=lambda name: not name.endswith(f"/{checkpoint.CHECKSUMS}")):
            storage.remove(f"{self.url}/{name}")

    def _upload_file(self, name: str) -> None:
        path = self.folder / name
        state = _state(path)
        # Logs grow meanwhile, so their present content is read. Checkpoints and models do not.
        written = name.startswith(("checkpoints/", "model/"))
        storage.upload(path if written else path.read_bytes(), f"{self.url}/{name}")
        self._uploaded[name] = state


def _state(path: Path) -> Tuple[int, int]:
    """Return size and modification time of a file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns

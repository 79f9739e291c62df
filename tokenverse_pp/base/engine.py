"""Corpus jobs in shards: computed in this process, or by workers of a Ray cluster; results come in order.

A command opens its engine (`opened`), library code gets it (`current_engine`) and passes it shards:

>>> list(current_engine().run(lambda: str.upper, [("first", "a"), ("second", "b")]))
['A', 'B']

Ray is the extra ``ray``, and is imported only if it is selected. It places workers on machines and GPUs, and requests
more machines. This module returns results in order, keeps few shards in flight, recomputes shards of workers that died,
and stores results in `Parts`, so that a stopped run can be continued.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import socket
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Callable, Deque, Dict, Iterable, Iterator, List, Literal, Optional, Sequence, Tuple

from tokenverse_pp.base.errors import UserError, needing, one_line

Line = Dict[str, Any]
Compute = Callable[[Any], Any]
Shards = Iterable[Tuple[str, Any]]  # key, shard
LOG = logging.getLogger(__name__)
AHEAD = 4  # shards per worker taken from the input before the oldest result is fetched
TRIES = 5  # workers that may die while computing a shard
LOCAL = "local"  # Ray's address of a cluster that is started for the command
PATIENCE = 60.0  # seconds without a worker until the user is warned
RUN = "run"  # key of the line of `Parts.keep_of`
STORE = 80 * 2**20  # bytes of shared memory of Ray's object store, if a cluster is started here


@dataclass(frozen=True)
class EngineOptions:
    """Where the shards of a corpus job are computed (raises UserError if a value is out of range)."""

    engine: Literal["process", "ray"] = "process"
    """process: run on this machine. ray: run on the workers of a Ray cluster (docs/cluster.md); needs pip install
    'tokenverse_pp[ray]'."""
    ray_address: Optional[str] = None
    """Address of the Ray cluster. Default: RAY_ADDRESS, else a cluster is started on this machine for the command."""
    num_workers: int = 0
    """Maximum number of Ray workers; 0: as many as fit into the cluster at the start."""
    worker_cpus: float = 0
    """Ray CPUs per worker; 0: one for a worker with a GPU, else its number of threads, at most the CPUs of the largest
    machine."""
    worker_gpus: Optional[float] = None
    """Ray GPUs per worker; 0.5: two share one. Default: 1 for a job with a model if the cluster has GPUs, else 0."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "worker_cpus", "worker_gpus"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"--{name.replace('_', '-')}: expected 0 or more, got {getattr(self, name):g}")


class Parts:
    """Results of a run in part files of a folder: one file per process, one line of JSON per shard, flushed at once.

    A run that is killed leaves at most its last line incomplete, and that shard is computed again.
    """

    def __init__(self, folder: Path, rank: int = 0):
        self.folder = folder
        self.rank = rank
        self._file: Optional[IO[str]] = None

    def read(self) -> Dict[str, Line]:
        """Return all complete lines of all part files by their keys."""
        return {line["key"]: line for _, _, line in self._lines()}

    def places(self) -> Dict[str, Tuple[Path, int]]:
        """Return file and byte of the lines of `read`. Use with `line` if not all fit into memory."""
        return {line["key"]: (path, at) for path, at, line in self._lines()}

    def line(self, place: Tuple[Path, int]) -> Line:
        """The line at a place of `places`."""
        with place[0].open("rb") as file:
            file.seek(place[1])
            return json.loads(file.readline())

    def _lines(self) -> Iterator[Tuple[Path, int, Line]]:
        for path in sorted(self.folder.glob("part-*.jsonl")):
            at = 0
            with path.open("rb") as file:
                for text in file:
                    with contextlib.suppress(ValueError):
                        line = json.loads(text)
                        if isinstance(line, dict) and isinstance(line.get("key"), str):
                            yield path, at, line
                    at += len(text)

    def keep_of(self, run: str) -> None:
        """Delete the part files unless this run has written them; for lines that refer to files shared by runs."""
        places = self.places()
        if RUN not in places or self.line(places[RUN]).get("run") != run:
            self.remove()
            self.append(RUN, {"run": run})

    def append(self, key: str, result: Line) -> None:
        """Append a shard's result to this process's part file."""
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / f"part-{self.rank}.jsonl").open("a", encoding="utf-8")
            if self._file.tell() > 0:
                self._file.write("\n")  # the last line may be incomplete
        self._file.write(json.dumps({"key": key, **result}, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the part file that `append` opened."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Delete the part files, and the folder if it holds nothing else."""
        self.close()
        with contextlib.suppress(OSError):  # several processes may do so at once
            for path in self.folder.glob("part-*.jsonl"):
                path.unlink()
            self.folder.rmdir()


class ShardEngine:
    """Computes shards in this process, one after another."""

    is_cluster = False

    def run(
        self,
        start: Callable[[], Compute],
        shards: Shards,
        parts: Optional[Parts] = None,
        threads: int = 1,
        uses_gpu: bool = False,
    ) -> Iterator[Any]:
        """Yield the results of shards, in order.

        Args:
            start: called once in each worker, before its first shard; loads what is needed (a model), and returns the
                function that computes a shard. With a cluster it is pickled, as are shards and results.
            shards: (key, shard), taken from the iterable as they are needed. The key names the shard in messages and in
                ``parts``: a digest of all that the result depends on.
            parts: stores results, which then must be mappings of plain JSON. A shard whose key is stored is not
                computed.
            uses_gpu: whether a worker can use a GPU.

        Raises:
            UserError: naming the shard, if `TRIES` workers died while computing it. Errors of ``start`` and of the
                function are raised unchanged, as soon as they are known, without another try.
        """
        done = parts.places() if parts is not None else {}
        compute: Optional[Compute] = None
        for key, shard in shards:
            if parts is not None and key in done:
                yield parts.line(done[key])
                continue
            compute = compute or start()
            result = compute(shard)
            if parts is not None:
                parts.append(key, result)
            yield result

    def map(
        self, work: Compute, items: Sequence[Any], jobs: int = 1, chunk: int = 1, prepare: Compute = bool
    ) -> Iterator[Any]:
        """Yield ``work`` of each item, in order, by ``jobs`` processes; a cluster has its own number of workers.

        Args:
            work: pickled if it is called in another process.
            chunk: items that are passed to a process at once.
            prepare: called with 1 in each process that is started: it sets the number of threads.
        """
        if jobs == 1:
            yield from map(work, items)
            return
        with ProcessPoolExecutor(jobs, initializer=prepare, initargs=(1,)) as pool:
            yield from pool.map(work, items, chunksize=chunk)

    def close(self) -> None:
        """Release what the engine holds."""


@dataclass
class _Task:
    """A shard, its place in the order, and how many workers died while computing it."""

    number: int
    key: str
    shard: Any
    deaths: int = 0


class RayEngine(ShardEngine):
    """Computes shards by actors of a Ray cluster, joined or started at the first one (raises UserError without Ray)."""

    is_cluster = True

    def __init__(self, options: EngineOptions):
        self.options = options
        self.address = options.ray_address or os.environ.get("RAY_ADDRESS") or LOCAL
        self.ray = _import_ray(self.address)
        self._joined = False
        self._pools: List[_Pool] = []

    def run(
        self,
        start: Callable[[], Compute],
        shards: Shards,
        parts: Optional[Parts] = None,
        threads: int = 1,
        uses_gpu: bool = False,
    ) -> Iterator[Any]:
        """See `ShardEngine.run`. At most `AHEAD` shards per worker are in flight, including unfetched results."""
        done = parts.places() if parts is not None else {}
        numbered = iter(enumerate(shards))
        self._join()
        pool = _Pool(self.ray, start, *self._room(threads, uses_gpu))
        self._pools.append(pool)
        results: Dict[int, Any] = {}
        taken, given, is_end = 0, 0, False
        try:
            while True:
                while given in results:
                    given += 1
                    yield results.pop(given - 1)
                while not is_end and taken - given < AHEAD * pool.size:
                    number, (key, shard) = next(numbered, (0, (None, None)))
                    if key is None:
                        is_end = True
                    elif parts is not None and key in done:
                        results[number] = parts.line(done[key])
                        taken += 1
                    else:
                        pool.waiting.append(_Task(number, key, shard))
                        taken += 1
                if given in results:
                    continue
                if is_end and given == taken:
                    return
                for task, result in pool.step():
                    if parts is not None:
                        parts.append(task.key, result)
                    results[task.number] = result
        finally:
            pool.close()
            self._pools.remove(pool)

    def map(
        self, work: Compute, items: Sequence[Any], jobs: int = 1, chunk: int = 1, prepare: Compute = bool
    ) -> Iterator[Any]:
        """See `ShardEngine.map`."""
        rest = iter(items)
        chunks = iter(lambda: list(itertools.islice(rest, chunk)), [])
        shards = ((f"items {chunk * n + 1} to {chunk * n + len(part)}", part) for n, part in enumerate(chunks))
        for results in self.run(partial(_work_on_each, work, prepare), shards):
            yield from results

    def close(self) -> None:
        """Leave the cluster; end it if it was started here."""
        for pool in self._pools:  # of a `run` whose results were not all fetched, because of an error
            pool.close()
        if self._joined:
            self.ray.shutdown()
            self._joined = False

    def _join(self) -> None:
        """Join the cluster, or start one on this machine (raises UserError)."""
        if self.ray.is_initialized():  # by the caller, who will leave it
            return
        started = {"include_dashboard": False, "object_store_memory": STORE} if self.address == LOCAL else {}
        try:
            # Workers' prints are dropped, as they would mix with the command's output. Messages come with the results.
            self.ray.init(self.address, log_to_driver=False, logging_level=logging.WARNING, **started)
        except (self.ray.exceptions.RayError, ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise UserError(
                f"--ray-address {self.address}: no cluster of Ray that can be joined: {one_line(error)}"
            ) from None
        self._joined = True

    def _room(self, threads: int, uses_gpu: bool) -> Tuple[Dict[str, float], int]:
        """Return what a worker needs, and how many workers the cluster has room for.

        Raises:
            UserError: a worker needs more than a cluster started here has; other clusters may still grow.
        """
        o, there = self.options, self.ray.cluster_resources()
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        largest = {name: max([0.0, *(node.get(name, 0.0) for node in nodes)]) for name in ("CPU", "GPU")}
        gpus = o.worker_gpus if o.worker_gpus is not None else float(uses_gpu and there.get("GPU", 0) > 0)
        # No more than a node has, or no worker would ever start; a head node of no CPUs waits for others.
        cpus = float(1 if gpus else min(threads, largest["CPU"] or threads))
        wanted = {"CPU": o.worker_cpus or cpus, "GPU": gpus}
        for name, number in wanted.items():
            if self._joined and self.address == LOCAL and number > largest[name]:
                raise UserError(f"--worker-{name.lower()}s: this machine has {largest[name]:g}, got {number:g}")
        room = min(int(there.get(name, 0) / number) for name, number in wanted.items() if number)
        return wanted, o.num_workers or max(1, room)


class _Pool:
    """Workers of a cluster: at most ``size``, and no more than there are shards.

    A worker gets a shard only after it has started, so a worker without room (yet) does not delay others.
    """

    def __init__(self, ray: Any, start: Callable[[], Compute], wanted: Dict[str, float], size: int):
        self.ray, self.start, self.wanted, self.size = ray, start, wanted, size
        self.waiting: Deque[_Task] = deque()
        self._idle: List[Any] = []
        self._busy: Dict[Any, Tuple[Any, Optional[_Task]]] = {}  # call -> worker and its shard; None: it is starting
        self._failed_starts = 0
        self._is_told = False
        self._worker = ray.remote(_Worker)

    def step(self) -> List[Tuple[_Task, Any]]:
        """Hand out shards, start workers for the rest, wait for a call to end; return the finished shards.

        Raises:
            UserError: too many workers died. Errors of the function are raised too.
        """
        while self._idle and self.waiting:
            worker, task = self._idle.pop(), self.waiting.popleft()
            self._busy[worker.run.remote(task.shard)] = worker, task
        starting = sum(task is None for _, task in self._busy.values())
        for _ in range(min(len(self.waiting) - starting, self.size - len(self._busy) - len(self._idle))):
            worker = self._worker.options(num_cpus=self.wanted["CPU"], num_gpus=self.wanted["GPU"]).remote()
            self._busy[worker.begin.remote(self.start, os.getcwd(), _version(), self.wanted["GPU"] > 0)] = worker, None
        ready, _ = self.ray.wait(list(self._busy), timeout=PATIENCE)
        if not ready and not self._idle and all(task is None for _, task in self._busy.values()) and not self._is_told:
            self._is_told = True
            needs = ", ".join(f"{name}: {number:g}" for name, number in self.wanted.items() if number)
            LOG.warning("no worker could start yet: the cluster has no room for one of %s (ray status)", needs)
        return [found for call in ready for found in self._ended(call)]

    def _ended(self, call: Any) -> List[Tuple[_Task, Any]]:
        """Return the shard and result of a call, or nothing if the worker has just started, or has died."""
        worker, task = self._busy.pop(call)
        try:
            result, messages = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:  # raised by our code in the worker
            self._idle.append(worker)
            if isinstance(error.cause, (UserError, OSError)):
                raise error.cause from error
            raise
        except self.ray.exceptions.RayError as error:  # the worker died, or its machine, with the result
            self.ray.kill(worker)
            self._failed(task, one_line(error))
            return []
        for level, message in messages:
            LOG.log(level, "%s", message)
        self._idle.append(worker)
        if task is not None:
            return [(task, result)]
        self._failed_starts = 0
        return []

    def _failed(self, task: Optional[_Task], reason: str) -> None:
        """Handle the death of a worker: its shard is computed next."""
        if task is None:
            self._failed_starts += 1
            if self._failed_starts >= TRIES:
                raise UserError(f"{TRIES} workers in a row died when they started: {reason}")
            LOG.warning("a worker died when it started; another one is started")
            return
        task.deaths += 1
        if task.deaths >= TRIES:
            raise UserError(f"shard {task.key}: {TRIES} workers died of it, the last one: {reason}")
        LOG.warning("a worker died (%d of %d for this shard); its shard is computed again", task.deaths, TRIES)
        self.waiting.appendleft(task)

    def close(self) -> None:
        """End all workers."""
        for worker in [*self._idle, *(worker for worker, _ in self._busy.values())]:
            self.ray.kill(worker)
        self._idle, self._busy = [], {}


class _Worker:
    """The code in a worker. Each call also returns the messages that were logged in it."""

    def begin(
        self, start: Callable[[], Compute], folder: str, version: str, has_gpu: bool
    ) -> Tuple[None, List[Tuple[int, str]]]:
        """Load what the shards need, in the working directory of the command, to which relative paths refer."""
        if version != _version():
            raise UserError(f"{socket.gethostname()}: has tokenverse_pp {_version()}, the command is of {version}")
        if os.path.isdir(folder):
            os.chdir(folder)
        if not has_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else it would use GPUs that Ray does not count
        with _messages() as messages:
            self._compute = start()
        return None, messages

    def run(self, shard: Any) -> Tuple[Any, List[Tuple[int, str]]]:
        """Compute a shard."""
        with _messages() as messages:
            return self._compute(shard), messages


@contextlib.contextmanager
def _messages() -> Iterator[List[Tuple[int, str]]]:
    """Collect the package's log messages in the block, with their levels."""
    found: List[Tuple[int, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append((record.levelno, record.getMessage()))  # type: ignore[method-assign]
    with messages_to(handler):  # the command decides what it shows
        yield found


@contextlib.contextmanager
def messages_to(handler: logging.Handler) -> Iterator[None]:
    """Pass the package's log messages from level INFO on to a handler, within the block."""
    logger = logging.getLogger("tokenverse_pp")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _work_on_each(work: Compute, prepare: Compute) -> Compute:
    prepare(1)
    return lambda items: [work(item) for item in items]


def _version() -> str:
    import tokenverse_pp

    return tokenverse_pp.__version__


def _import_ray(address: str) -> Any:
    """Import Ray (raises UserError). A cluster that it starts itself listens on the loopback interface only."""
    if address == LOCAL:
        # Whoever reaches Ray's ports can run code. Ray itself does this on systems without clusters (macOS).
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # the default of Ray 2.60, which warns unless it is set
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as later versions do; else a warning
    with needing("--engine ray needs Ray", "ray"):
        import ray
    return ray


_CURRENT: ContextVar[ShardEngine] = ContextVar("engine", default=ShardEngine())  # noqa: B039 (it holds nothing)


def current_engine() -> ShardEngine:
    """Return the engine of the `opened` block; outside of one, this process."""
    return _CURRENT.get()


@contextlib.contextmanager
def opened(options: EngineOptions) -> Iterator[ShardEngine]:
    """Make the engine of these options the current one within the block (raises UserError)."""
    engine = RayEngine(options) if options.engine == "ray" else ShardEngine()
    token = _CURRENT.set(engine)
    try:
        yield engine
    finally:
        _CURRENT.reset(token)
        engine.close()

"""Training in a process that is made ready once and then copied: starting one takes a tenth of a second.

`multiprocessing`'s fork server imports everything, runs nothing, and forks itself for each run; the run goes through
the very ``main`` of recipes/train.py. (pytest puts this folder on the path, because of its conftest.py.)
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent
LIMIT = 300  # seconds that a run may take
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["runs"])  # this very file, which imports what a run needs

sys.path[:0] = [str(TESTS)] if str(TESTS) not in sys.path else []
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

with contextlib.suppress(ImportError):  # the curves of a run
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
from scripts import ROOT, load_script  # noqa: E402
from toy_runs import Failure  # noqa: E402

from tokenverse_pp.base.errors import UserError  # noqa: E402
from tokenverse_pp.cli.groups import report_errors  # noqa: E402
from tokenverse_pp.data.distributed import DistributedContext  # noqa: E402

TRAIN = load_script(ROOT / "recipes" / "train.py", "train_for_faults")
__all__ = ["Run", "checkpoints", "on_ranks", "train_on_ranks", "weights"]


@dataclass
class Run:
    """A training process. ``stderr``: the file that it writes to."""

    process: multiprocessing.Process
    stderr: Path

    @classmethod
    def start(cls, options, stderr, file_size=None, environment=None):
        """Run recipes/train.py with these options; a file of over ``file_size`` bytes cannot be written."""
        process = CONTEXT.Process(target=_train, args=(options, str(stderr), file_size, environment or {}))
        process.start()
        return cls(process, stderr)

    def wait(self, seconds=None):
        """The exit code, or None if the process is still at work after so long."""
        self.process.join(seconds)
        return self.process.exitcode

    def kill(self):
        """SIGKILL, whatever the process does at the moment."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def said(self):
        """What it has written to stderr so far."""
        return self.stderr.read_text(encoding="utf-8", errors="replace") if self.stderr.is_file() else ""


def train_on_ranks(options, ranks=2):
    """Ranks of recipes/train.py on this machine, as torchrun would start them, without what it takes to start it.

    Returns:
        Failure: the exit code of the first rank that failed (0 if none did), and what all have written to stderr.
    """
    # As with torchrun the store is of who starts the ranks: it is there until the last of them is done.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared.update(WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            Run.start(
                options, Path(folder, str(rank)), environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            )
            for rank in range(ranks)
        ]
        codes = [run.wait(LIMIT) for run in runs]
        for run in runs:
            run.kill()  # if it is still there
        return Failure(next((code for code in codes if code != 0), 0), "".join(run.said() for run in runs))


def on_ranks(count, function):
    """What ``function(world)`` returns, or its UserError's text, on ranks that are threads and talk to each other."""
    barrier, items = threading.Barrier(count, timeout=60), [None] * count

    class World(DistributedContext):
        def gather(self, item):
            barrier.wait()
            items[self.rank] = item
            barrier.wait()
            return list(items)

    def outcome(rank):
        try:
            return function(World(rank, count))
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(outcome, range(count)))


def _train(options, stderr, file_size, environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    sink = open(stderr, "a", buffering=1, encoding="utf-8")
    os.dup2(sink.fileno(), 2)
    sys.stderr = sink
    if file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as a full disk: the write fails, the process goes on
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    with report_errors():
        TRAIN.main([str(option) for option in options])


def checkpoints(exp_dir):
    """Names of the checkpoint folders, oldest first."""
    folder = Path(exp_dir) / "checkpoints"
    return sorted(p.name for p in folder.glob("step-????????")) if folder.is_dir() else []


def weights(exp_dir):
    """The bytes of the final model."""
    return (Path(exp_dir) / "model" / "model.safetensors").read_bytes()

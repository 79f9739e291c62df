"""Failures of a run: of its device (out of memory, a lost GPU), and of other ranks.

`naming_memory` is for the batches of a step, `explaining_device_errors` for the rest of a run; both give errors of one
line. `Watch`: when a rank fails or dies, all stop and report which one it was.

Each rank has a thread that talks only to the process group's key-value store (gloo and NCCL both have one), so it works
while the main thread is blocked in a collective operation:

- a rank that fails writes its message to the store; the others read it within `BEAT` seconds, print it and exit;
- every rank increments its own counter each `BEAT`. Rank 0 watches all counters, the others watch rank 0's; a rank
  whose counter does not change for ``patience`` seconds has died (SIGKILL, power, network);
- on SIGTERM (which torchrun sends when any rank is gone) or an error in a collective operation, all ranks watch all
  others for `URGENT` seconds.

Also `StopRequest`: SIGTERM or SIGUSR1 during training ends the run after the current step, with a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import torch.distributed as dist

from tokenverse_pp.base.config import TrainingConfig
from tokenverse_pp.base.errors import UserError, one_line
from tokenverse_pp.data.dataset import Batch
from tokenverse_pp.data.distributed import DistributedContext
from tokenverse_pp.losses.devices import is_lost_device, is_out_of_memory
from tokenverse_pp.models.checkpoint import list_checkpoints

BLOCKING = "CUDA_LAUNCH_BLOCKING"  # CUDA then raises an error at its cause, as torch itself advises


@contextlib.contextmanager
def naming_memory(batch: Batch) -> Iterator[None]:
    """Raise a UserError that names the cuts of a batch if it runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        ids, longest = batch["cut_ids"], int(batch["token_lens"].max())
        raise UserError(
            f"out of memory on a batch of {len(ids)} cuts, {batch['seconds']:.1f} s, targets of up to {longest} tokens "
            f"({', '.join(ids)}): lower --data.max_duration, --data.max_cuts or --data.max_batch_tokens, or see "
            "docs/training.md on memory"
        ) from None


@contextlib.contextmanager
def explaining_device_errors(options: TrainingConfig) -> Iterator[None]:
    """Raise a UserError if the GPU is lost, or memory runs out outside of a step's batches.

    It names the checkpoint to resume from: checkpoints are renamed into place once written, so the latest is complete.
    With CUDA_LAUNCH_BLOCKING=1, used to find the cause, the error of a lost GPU is not changed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            # The weights, the optimiser's state of the first step, validation, averaging.
            what, advice = "out of memory outside of a batch", "see docs/training.md on memory"
        elif is_lost_device(error) and os.environ.get(BLOCKING) != "1":
            what, advice = "the GPU has failed", f"if it fails again, {BLOCKING}=1 shows where"
        else:
            raise
        first = RuntimeError(str(error).strip().partition("\n")[0])  # the lines that CUDA adds are always the same
        reason = one_line(first) if str(first) else type(error).__name__
        raise UserError(f"{what} ({reason}): {rest_of(options)}; {advice}") from None


def rest_of(options: TrainingConfig) -> str:
    """Describe what is left of a failed run."""
    checkpoints = list_checkpoints(Path(options.exp_dir))
    if not checkpoints:
        return "there is no checkpoint yet"
    resumes = options.resume is True or options.resume == "auto"
    how = "the same command" if resumes else "the command with --training.resume auto"
    return f"{checkpoints[-1]} is intact, and {how} resumes from it"


BEAT = 0.5  # seconds
URGENT = 5.0  # seconds without a sign of life, once something is known to be wrong
EXIT_CODE = 2
STOPPED = 128 + signal.SIGTERM  # exit code of a run stopped by a signal, which can be resumed


class Watch:
    """Watches the other ranks from a thread.

    ``store``: its own connection to the key-value store. ``patience``: seconds without a heartbeat after which a rank
    counts as dead.
    """

    def __init__(self, store: Any, rank: int, size: int, patience: float, leave: Callable[[str], None]):
        self.store = store
        self.rank = rank
        self.size = size
        self.patience = patience
        self.leave = leave
        # Watch all for a while. Not an Event: signal handlers set this flag, when the lock of an Event may be held.
        self.urgent = False
        self.relaxed = False  # all are alive: no need to watch all any more
        self.failing = threading.Event()  # this rank has an error: stop once the others are known to be alive
        self.ended = threading.Event()
        self.lock = threading.Lock()  # a store's connection is not thread-safe
        self.seen: Dict[int, Tuple[int, float]] = {}
        self.limit = patience  # `URGENT` while all watch all
        self.answered = time.monotonic()  # time of the store's last answer
        self.thread = threading.Thread(target=self._run, name="peers", daemon=True)
        # If the machine of the store loses power, a request to it blocks for a quarter of an hour.
        self.guard = threading.Thread(target=self._guard, name="peers-guard", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self.answered = time.monotonic()
        self.thread.start()
        self.guard.start()

    def stop(self) -> None:
        """Stop watching and tell the others that this rank has finished."""
        self.ended.set()
        self.thread.join(timeout=URGENT)

        def say() -> None:
            with self.lock, contextlib.suppress(RuntimeError):
                self.store.add(f"done/{self.rank}", 1)

        _within(URGENT, say)

    def announce(self, message: str) -> None:
        """Tell the others why this rank fails, and wait until they have read it (this rank may host the store)."""
        self.ended.set()
        _within(2 * URGENT, lambda: self._tell(f"rank {self.rank} failed: {message}", self.size - 1))

    def _tell(self, message: str, listeners: int) -> None:
        with contextlib.suppress(RuntimeError):
            with self.lock:
                if self.store.add("claimed", 1) == 1:
                    self.store.set("message", message)
                    self.store.add("failed", 1)
            until = time.monotonic() + URGENT
            while self._read("heard") < listeners and time.monotonic() < until:
                time.sleep(BEAT / 5)

    def explain(self) -> None:
        """After an error: end this process if another rank is the cause."""
        self.failing.set()
        self.urgent = True
        self.thread.join(timeout=2 * URGENT)

    def relax(self) -> None:
        """Return to normal watching: all ranks have just taken part in a collective operation."""
        self.urgent, self.relaxed, self.limit = False, True, self.patience

    def _read(self, key: str) -> int:
        with self.lock:
            value = self.store.add(key, 0)
        self.answered = time.monotonic()
        return value

    def _run(self) -> None:
        since = time.monotonic()
        urgent = False
        while not self.ended.wait(BEAT):
            now = time.monotonic()
            if self.relaxed:
                self.relaxed = urgent = False
            if self.urgent:
                self.urgent, urgent, since = False, True, now
            self.limit = URGENT if urgent else self.patience
            reason = None
            with contextlib.suppress(RuntimeError):  # no answer: `_guard` measures for how long
                reason = self._look(urgent, now)
                if reason and not self._read("failed"):
                    self._tell(reason, self.size - 2)  # neither this rank nor the dead one
            if reason:
                self.leave(f"rank {self.rank} stops: {reason}")
                return
            if urgent and now - since > URGENT + 4 * BEAT and self.answered >= now:
                if self.failing.is_set():
                    return  # all others are alive: this rank is the cause
                urgent = False

    def _guard(self) -> None:
        last = time.monotonic()
        while self.thread.is_alive() and not self.ended.wait(BEAT):
            now = time.monotonic()
            if now - last > 2 * BEAT:  # no thread of this process ran: a library that writes a file may keep the GIL
                self.answered += now - last - BEAT
            last = now
            if now - self.answered > (URGENT if self.urgent else self.limit):
                self.leave(
                    f"rank {self.rank} stops: the rank or machine that holds the store of the process group is gone"
                )
                return

    def _look(self, urgent: bool, now: float) -> Optional[str]:
        """Send a heartbeat; return the reason to stop, if there is one."""
        with self.lock:
            self.store.add(f"alive/{self.rank}", 1)
        if self._read("failed"):
            with self.lock:
                message = self.store.get("message").decode()
                self.store.add("heard", 1)
            return message
        watched = range(self.size) if urgent or self.rank == 0 else [0]
        for peer in (peer for peer in watched if peer != self.rank):
            beats = self._read(f"alive/{peer}")
            if beats != self.seen.get(peer, (-1, 0.0))[0]:
                self.seen[peer] = (beats, now)
            silence = now - self.seen[peer][1]
            if silence > (URGENT if urgent else self.patience) and not self._read(f"done/{peer}"):
                return f"rank {peer} has given no sign of life for {silence:.0f} s: was it killed?"
        return None


def join_watch(world: DistributedContext, patience: float) -> Optional[Watch]:
    """Start to watch the other ranks of the process group; return None if there are none."""
    if world.size == 1:
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    client = dist.TCPStore(host, port, world.size, False, timedelta(seconds=max(patience, URGENT)))
    # torchrun keeps its store when it restarts the ranks, after a failure or when a machine joins.
    store = dist.PrefixStore(f"tokenverse/{world.from_first(lambda: uuid.uuid4().hex)}", client)
    watch = Watch(store, world.rank, world.size, patience, _leave)
    watch.start()

    def on_term(signum: int, frame: Optional[FrameType]) -> None:
        watch.explain()
        _leave(f"rank {world.rank} stops: SIGTERM", 128 + signum)

    signal.signal(signal.SIGTERM, on_term)
    return watch


class StopRequest:
    """Records whether SIGTERM or SIGUSR1 has asked this process to stop.

    Inside this context the signals only record a request. Outside it they have their previous effect, but after a
    request the handlers of the context stay. SLURM, Kubernetes and spot machines announce the end with SIGTERM, SLURM's
    ``--signal`` with any signal. torchrun also sends SIGTERM to restart the ranks when one has failed or a machine
    joins.
    """

    def __init__(self, watch: Optional[Watch] = None):
        self.watch = watch
        self.made = False
        self.before: Dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for name in ("SIGTERM", "SIGUSR1"):  # Windows has no SIGUSR1
            if hasattr(signal, name) and threading.current_thread() is threading.main_thread():
                number = getattr(signal, name)
                self.before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items() if not self.made else ():
            signal.signal(number, handler)

    def _on_signal(self, signum: int, frame: Optional[FrameType]) -> None:
        self.made = True
        if self.watch is not None:
            self.watch.urgent = True  # if a rank is gone, the step never ends

    def agreed(self) -> None:
        """Note that all ranks have finished the step and stop; what follows may take long."""
        self.made = True
        if self.watch is not None:
            self.watch.relax()


def _within(seconds: float, act: Callable[[], None]) -> None:
    """Call ``act``, which may block on a machine that is gone; continue after ``seconds`` at most."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(timeout=seconds)


def _leave(message: str, code: int = EXIT_CODE) -> None:
    """End this process at once: its main thread may be blocked in a collective operation."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    os._exit(code)


@contextlib.contextmanager
def looking_after(watch: Optional[Watch]) -> Iterator[None]:
    """Run the work of a rank: an error here ends all ranks; an error caused by another rank names that rank."""
    try:
        yield
    except BaseException as error:
        if watch is not None:
            if not isinstance(error, (UserError, KeyboardInterrupt)):
                watch.explain()
            handled = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            if handled and threading.current_thread() is threading.main_thread():
                # torchrun sends it once a peer has ended, maybe before the error is printed here.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            watch.announce(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        raise
    if watch is not None:
        watch.stop()

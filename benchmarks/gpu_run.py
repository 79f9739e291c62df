"""The records, the time budget and the measurements that the parts of benchmarks/gpu.py share."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import torch

from tokenverse_pp.base.errors import one_line

Record = Dict[str, Any]
Measure = Callable[[], Record]


class OutOfTimeError(BaseException):
    """Raised inside a section that has used up its time; no Exception, which called code might catch."""


class GpuRun:
    """One run: writes each record to the JSON file at once, one a line.

    Every record has ``section``, ``case``, ``status`` (`ok`, `skipped` or `failed`), ``seconds`` and ``card``, so that
    records of several runs can be joined; those that are not `ok` have ``reason``.

    Args:
        path: of the JSON file.
        minutes: time for everything.
        dry: tiny sizes on a CPU.
        append: add to the file instead of replacing it.
    """

    def __init__(self, path: Path, minutes: float, dry: bool, append: bool = False):
        self.dry = dry
        self.device = torch.device("cpu" if dry else "cuda")
        self.card = "CPU" if dry else torch.cuda.get_device_name()
        self.repeats = 1 if dry else 10
        self.started = time.monotonic()
        self.budget = 60 * minutes
        self.records: List[Record] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a" if append else "w", encoding="utf-8")

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.budget - (time.monotonic() - self.started)

    def add(self, section: str, case: str, status: str, seconds: float, about: Record, found: Record) -> None:
        """Write a record of what was measured (``about``) and what was found; show the latter on stderr."""
        head = {"section": section, "case": case, "status": status, "seconds": round(seconds, 2), "card": self.card}
        record = {**head, **about, **found}
        self.records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        shown = ", ".join(f"{key} {value}" for key, value in found.items() if value is not None)
        print(f"[{time.monotonic() - self.started:6.1f} s] {section}: {case}: {status}: {shown}", file=sys.stderr)

    def case(self, section: str, case: str, measure: Measure, optional: bool = False, **about: Any) -> None:
        """Measure one case; an error becomes a record.

        Args:
            section: that it belongs to.
            case: its name.
            measure: returns what the record is to hold; ``ok=False`` in it makes the record a failed one.
            optional: a package that is missing or runs out of memory is no failure of this run (for the peers).
            about: what the record holds beside it, whatever happens.
        """
        started = time.monotonic()
        try:
            found = measure()
            status = "ok" if found.pop("ok", True) else "failed"
        except Exception as error:  # the next case shall run whatever this one raised
            missing = isinstance(error, (ImportError, torch.OutOfMemoryError))
            status, found = "skipped" if optional and missing else "failed", {"reason": reason_of(error)}
        self.add(section, case, status, time.monotonic() - started, about, found)
        self.free()

    def section(self, name: str, needs: float, body: Callable[[GpuRun], None]) -> None:
        """Run a section if there is time for it, and stop it after three times as long as it needs.

        A dry run, on CPUs that may have other work, is stopped only at the end of its time.

        Args:
            name: its name.
            needs: seconds that it takes on an H100.
            body: runs it; it calls `case`.
        """
        started = time.monotonic()
        limit = self.left if self.dry else min(self.left, max(3 * needs, 20))
        if self.left < needs:
            reason = f"needs about {needs:.3g} s, {max(0, self.left):.3g} s are left"
            self.add(name, "all", "skipped", 0, {}, {"reason": reason})
            return
        try:
            with raising_after(limit):
                body(self)
        except OutOfTimeError:
            reason = f"stopped after {limit:.0f} s"
            self.add(name, "rest", "skipped", time.monotonic() - started, {}, {"reason": reason})
        except Exception as error:  # while a section prepares its cases
            self.add(name, "rest", "failed", time.monotonic() - started, {}, {"reason": reason_of(error)})
        self.free()

    def free(self) -> None:
        """Give the memory of what is no longer used back to the GPU."""
        gc.collect()
        if self.device.type == "cuda" and self.works():
            torch.cuda.empty_cache()

    def works(self) -> bool:
        """Whether the device still does: after an illegal memory access, no call of this process on the GPU works."""
        try:
            wait(self.device)
        except RuntimeError:
            return False
        return True

    def close(self) -> None:
        """Close the JSON file."""
        self._file.close()


def reason_of(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {one_line(error, 400)}"


@contextlib.contextmanager
def raising_after(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError inside the block after some seconds."""

    def stop(*_: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def wait(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(run: Callable[[], Any], device: torch.device, repeats: int) -> Record:
    """Wall-clock milliseconds of a call, median and best of ``repeats``; the first call, which compiles, apart."""

    def once() -> float:
        wait(device)
        started = time.perf_counter()
        run()
        wait(device)
        return 1000 * (time.perf_counter() - started)

    first = once()
    times = [once() for _ in range(repeats)]
    return {"ms": round(statistics.median(times), 3), "best_ms": round(min(times), 3), "first_ms": round(first, 1)}


def peak_mb(run: Callable[[], Any], device: torch.device, prepare: Callable[[], None]) -> Optional[float]:
    """The most GPU memory in MiB that a call holds beyond what was held before it; None on a CPU.

    ``prepare`` comes before the call: it frees what an earlier one has left (gradients).
    """
    if device.type != "cuda":
        return None
    prepare()
    wait(device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    wait(device)
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def launches(run: Callable[[], Any], device: torch.device) -> Record:
    """What a call starts on the GPU (``kernels``; ``copies``: copying and filling memory), and its aten operations."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=kinds) as profiler:
        run()
        wait(device)
    events = profiler.events() or []
    operations = sum(event.name.startswith("aten::") for event in events)
    if device.type != "cuda":
        return {"kernels": None, "copies": None, "operations": operations}
    on_gpu = [
        event.name
        for event in events
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in on_gpu)
    return {"kernels": len(on_gpu) - copies, "copies": copies, "operations": operations}


def waits(run: Callable[[], Any], device: torch.device) -> Optional[str]:
    """The message of the first synchronisation of host and GPU in a call; "no" without any, None on a CPU."""
    if device.type != "cuda":
        return None
    wait(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        return one_line(error)[:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "no"


class Marks:
    """The times at which the GPU (or the CPU) reaches places of a program, without waiting there."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: List[Any] = []
        self.names: List[str] = []

    def __call__(self, name: str) -> None:
        """Name the part that ends here; the first call names nothing."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())
        self.names.append(name)

    def milliseconds(self) -> Dict[str, float]:
        """Each part's time."""
        wait(self.device)
        pairs = list(zip(self.marks, self.marks[1:]))
        if self.device.type == "cuda":
            times = [a.elapsed_time(b) for a, b in pairs]
        else:
            times = [1000 * (b - a) for a, b in pairs]
        return dict(zip(self.names[1:], times))


def median_parts(parts: Sequence[Dict[str, float]]) -> Dict[str, float]:
    """The median of each part over some runs, in milliseconds."""
    return {f"{name}_ms": round(statistics.median(p[name] for p in parts), 3) for name in parts[0]}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|; infinite where it is not a number."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    error = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    return error if math.isfinite(error) else math.inf


def import_script(path: Path) -> Any:
    """A script of recipes/ as a module; it finds its neighbours, as when Python runs it."""
    sys.path.insert(0, str(path.parent))
    try:
        return __import__(path.stem)
    finally:
        sys.path.pop(0)

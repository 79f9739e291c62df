"""What waits for the model in one stream: audio, and changes of tasks between it, in their order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Callable, Deque, Optional, Tuple, Union

import numpy as np

from tokenverse_pp.serving.protocol import SAMPLE_RATE, SetTasks, Start
from tokenverse_pp.streaming.events import Event


@dataclass(frozen=True)
class Close:
    """No more audio."""


FLOAT = 4  # bytes
Work = Union[Start, SetTasks, Close, np.ndarray]


CONTROL_SECONDS = 0.5  # a message that is no audio counts as so much: they cannot pile up either


@dataclass(frozen=True)
class Done:
    """What the model did for a stream at once.

    Args:
        work: what it was asked; audio (S,) float32 among it.
        events: what it said.
        problem: why the stream cannot go on: a code of the protocol and a message; None: it can.
    """

    work: Work
    events: Tuple[Event, ...] = ()
    problem: Optional[Tuple[str, str]] = None


def weight(work: Work) -> float:
    """Seconds that a piece of work counts in what may wait."""
    return len(work) / SAMPLE_RATE if isinstance(work, np.ndarray) else CONTROL_SECONDS


class Feed:
    """The queue of one stream. `Worker` guards it with its lock.

    Args:
        name: of the stream.
        chunk_samples: audio is handed out in pieces that fill the model's chunks, so that none waits for less.
        deliver: called on the event loop with what the model did.
    """

    def __init__(self, name: str, chunk_samples: int, deliver: Callable[[Done], None]):
        self.name = name
        self.deliver = deliver
        self.stream: Any = None  # the transcriber's handle, and the transcriber: the worker's alone
        self.transcriber: Any = None
        self._chunk = chunk_samples
        self._heard = 0  # samples handed out
        # Audio between two changes is one buffer of float32, whatever the number of messages it came in.
        self._queue: Deque[Union[Start, SetTasks, Close, bytearray]] = deque()

    def put(self, work: Work) -> None:
        """Add to the end."""
        if not isinstance(work, np.ndarray):
            self._queue.append(work)
        elif self._queue and isinstance(self._queue[-1], bytearray):
            self._queue[-1] += work.tobytes()
        else:
            self._queue.append(bytearray(work.tobytes()))

    @property
    def ready(self) -> bool:
        """Whether the model has something to do: a whole chunk, or anything but audio."""
        if not self._queue:
            return False
        head = self._queue[0]
        return not isinstance(head, bytearray) or len(self._queue) > 1 or len(head) >= FLOAT * self._missing

    @property
    def _missing(self) -> int:
        """Samples until the model's chunk is full."""
        return self._chunk - self._heard % self._chunk

    def take(self) -> Work:
        """The next thing to do: audio up to the end of a chunk, or what stands at the head."""
        head = self._queue[0]
        if not isinstance(head, bytearray):
            self._queue.popleft()
            return head
        end = min(FLOAT * self._missing, len(head))
        samples = np.frombuffer(head[:end], dtype=np.float32)
        self._heard += len(samples)
        del head[:end]
        if not head:
            self._queue.popleft()
        return samples

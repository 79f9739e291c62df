"""A trained model as the server's engine.

What waits for the model in one stream: audio, and changes of tasks between it, in their order.

The one thread that runs the model: it takes a chunk of every stream that has one, and runs them together.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Protocol, Sequence, Tuple, Union

import numpy as np

from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import StreamingOptions
from tokenverse_pp.decoding.streaming.events import Event
from tokenverse_pp.decoding.streaming.transcriber import StreamingTranscriber
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.serving.protocol import SAMPLE_RATE, SetTasks, Start


def build_engine(loaded: ModelBundle, options: StreamingOptions) -> Engine:
    """Two transcribers of one model: with and without reset at endpoints, which a stream chooses.

    Raises:
        UserError: for options that the model cannot be streamed with.
    """
    resets = (False, True) if "endp" in loaded.tasks else (False,)
    transcribers = {reset: StreamingTranscriber(loaded, replace(options, reset_at_endpoint=reset)) for reset in resets}
    tasks = loaded.tasks.subset(options.tasks).names if options.tasks else loaded.tasks.names
    return Engine(transcribers, tasks, transcribers[False].encoder.chunk_samples)


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


log = logging.getLogger(__name__)


class Transcriber(Protocol):
    """What a server needs of `tokenverse_pp.decoding.streaming.transcriber.StreamingTranscriber`; see there."""

    def open(self, tasks: Optional[Sequence[str]] = None, name: Optional[str] = None) -> Any:
        """A new stream."""

    def push_many(self, pieces: Sequence[Tuple[Any, Any]]) -> List[List[Event]]:
        """Hear more of several streams; UserError: none has heard anything."""

    def set_tasks(self, stream: Any, tasks: Sequence[str]) -> None:
        """Other tasks from here on."""

    def close(self, stream: Any) -> List[Event]:
        """End a stream."""


@dataclass(frozen=True)
class Engine:
    """A model that hears streams.

    Args:
        transcribers: by whether they reset at endpoints, on the same model; one that knows no endpoints has the first
            alone.
        tasks: names of the tasks that it knows.
        chunk_samples: of the model's chunks.
    """

    transcribers: Mapping[bool, Transcriber]
    tasks: Tuple[str, ...]
    chunk_samples: int


class Worker:
    """Runs an engine for any number of feeds, in a thread of its own.

    All methods are called on the event loop, and none of them waits for the model; what it did comes back there too, by
    the feed's ``deliver``.

    Args:
        engine: the model.
        batch: streams that go through it together.
    """

    def __init__(self, engine: Engine, batch: int):
        self.engine = engine
        self.batch = batch
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._feeds: OrderedDict[Feed, None] = OrderedDict()  # those served longest ago first
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def add(self, feed: Feed, start: Start) -> None:
        """Serve one more stream."""
        with self._changed:
            self._feeds[feed] = None
        self.put(feed, start)

    def put(self, feed: Feed, work: Work) -> None:
        """More for a stream to hear or do."""
        with self._changed:
            if feed in self._feeds:
                feed.put(work)
                if feed.ready:
                    self._changed.notify()

    def drop(self, feed: Feed) -> None:
        """Forget a stream, whatever waits in it."""
        with self._changed:
            self._feeds.pop(feed, None)

    async def stop(self) -> None:
        """End the thread, after what the model is at now."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        await self._loop.run_in_executor(None, self._thread.join)

    def _run(self) -> None:
        while True:
            with self._changed:
                batch = self._take()
                while not batch and not self._stopping:
                    self._changed.wait()
                    batch = self._take()
                if self._stopping:
                    return
            done = self._do(batch)
            try:
                self._loop.call_soon_threadsafe(_deliver, done)
            except RuntimeError:  # the loop is closed: nobody is left to hear it
                return

    def _take(self) -> List[Tuple[Feed, Work]]:
        """One piece of work of each feed that has one, of as many as go into a batch."""
        chosen = [feed for feed in self._feeds if feed.ready][: self.batch]
        for feed in chosen:
            self._feeds.move_to_end(feed)
        return [(feed, feed.take()) for feed in chosen]

    def _do(self, batch: List[Tuple[Feed, Work]]) -> List[Tuple[Feed, Done]]:
        """Do a batch of work; whatever goes wrong ends those streams that it went wrong in."""
        done = []
        audio: Dict[int, List[Tuple[Feed, np.ndarray]]] = {}
        for feed, work in batch:
            if isinstance(work, np.ndarray):
                audio.setdefault(id(feed.transcriber), []).append((feed, work))
            else:
                done.append((feed, self._control(feed, work)))
        for pieces in audio.values():
            done += self._hear(pieces)
        return done

    def _control(self, feed: Feed, work: Work) -> Done:
        try:
            if isinstance(work, Start):
                if work.reset_at_endpoint not in self.engine.transcribers:
                    raise UserError("field 'reset_at_endpoint': the model does not know the task 'endp'")
                feed.transcriber = self.engine.transcribers[work.reset_at_endpoint]
                feed.stream = feed.transcriber.open(work.tasks, feed.name)
            elif isinstance(work, SetTasks):
                feed.transcriber.set_tasks(feed.stream, work.tasks)
            elif isinstance(work, Close):
                return Done(work, tuple(feed.transcriber.close(feed.stream)))
        except Exception as error:
            return _failed(work, error)
        return Done(work)

    def _hear(self, pieces: List[Tuple[Feed, np.ndarray]]) -> List[Tuple[Feed, Done]]:
        """Audio of several streams with one transcriber."""
        transcriber = pieces[0][0].transcriber
        try:
            told = transcriber.push_many([(feed.stream, samples) for feed, samples in pieces])
        except UserError as error:
            # Nobody has heard anything: find out whose fault it was.
            if len(pieces) == 1:
                return [(pieces[0][0], _failed(pieces[0][1], error))]
            return [found for piece in pieces for found in self._hear([piece])]
        except Exception as error:
            # What each of them has heard is unknown: none can go on.
            problem = _failed(pieces[0][1], error).problem
            return [(feed, Done(samples, problem=problem)) for feed, samples in pieces]
        return [(feed, Done(samples, tuple(events))) for (feed, samples), events in zip(pieces, told)]


def _deliver(done: List[Tuple[Feed, Done]]) -> None:
    for feed, what in done:
        feed.deliver(what)


def _failed(work: Work, error: Exception) -> Done:
    if isinstance(error, UserError):
        code = "bad_audio" if isinstance(work, np.ndarray) else "bad_message"
        return Done(work, problem=(code, " ".join(str(error).split())))
    log.error("the model failed", exc_info=error)
    return Done(work, problem=("internal", "the model failed; the server's log says more"))

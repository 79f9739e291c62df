"""The model of a server: `Worker` runs it in one thread, in batches of one chunk of each stream that has one."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np

from tokenverse_pp.base.config import SAMPLE_RATE
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.base.options import Inactive, SearchOptions, StreamingOptions
from tokenverse_pp.decoding.hypothesis import read_calibration
from tokenverse_pp.decoding.inactive import search_for
from tokenverse_pp.decoding.streaming.events import Event
from tokenverse_pp.decoding.streaming.transcriber import StreamingTranscriber, trained_in_chunks
from tokenverse_pp.models.bundle import ModelBundle
from tokenverse_pp.serving.protocol import NEVER_IN_CHUNKS, Control, End, SetTasks, Start

log = logging.getLogger(__name__)
Work = Union[Control, np.ndarray]  # audio is (S,) float32
FLOAT = 4  # bytes
CONTROL_SECONDS = 0.5  # a control message counts as this much audio, so that they cannot pile up either


def weight(work: Work) -> float:
    """Seconds that a piece of work counts towards ``Limits.waiting_seconds``."""
    return len(work) / SAMPLE_RATE if isinstance(work, np.ndarray) else CONTROL_SECONDS


@dataclass(frozen=True)
class Done:
    """A piece of work that the model has done for a stream.

    Args:
        problem: why the stream cannot continue: a code of the protocol and a message; None: it can.
    """

    work: Work
    events: Tuple[Event, ...] = ()
    problem: Optional[Tuple[str, str]] = None


@dataclass(frozen=True)
class Engine:
    """A model that transcribes streams.

    Args:
        transcribers: transcribers of the same model, by whether they reset at endpoints; without the task endp only
            the one that does not.
        tasks: names of the tasks that are offered.
        search: default search options of streams.
        trained_in_chunks: whether the model was trained in chunks (`tokenverse_pp.decoding.streaming.transcriber`).
        endpoint_thresholds: thresholds of the model's calibration, if they hold for these chunks.
        inactive: treatment of tasks that are not requested (`tokenverse_pp.decoding.inactive`).
        language_tokens: the task tokens that name a language, for the page.
    """

    transcribers: Mapping[bool, StreamingTranscriber]
    tasks: Tuple[str, ...]
    chunk_samples: int
    search: SearchOptions = field(default_factory=lambda: SearchOptions("greedy"))
    trained_in_chunks: bool = True
    endpoint_thresholds: Mapping[int, float] = field(default_factory=dict)
    inactive: Inactive = "suppress"
    language_tokens: Tuple[str, ...] = ()


def build_engine(loaded: ModelBundle, options: StreamingOptions) -> Engine:
    """Build an engine with one transcriber that resets at endpoints and one that does not; each stream chooses.

    Raises:
        UserError: if the model cannot be streamed with these options.
    """
    chunked = trained_in_chunks(loaded)
    if not chunked:
        log.warning(NEVER_IN_CHUNKS)
    resets = (False, True) if "endp" in loaded.tasks else (False,)
    transcribers = {reset: StreamingTranscriber(loaded, replace(options, reset_at_endpoint=reset)) for reset in resets}
    tasks = loaded.tasks.subset(options.tasks).names if options.tasks else loaded.tasks.names
    found = read_calibration(loaded.folder)
    fits = found is not None and found.endpoint_chunk_ms == options.chunks.chunk_ms
    thresholds = found.endpoints if found is not None and fits else {}
    samples = transcribers[False].encoder.chunk_samples
    inactive = transcribers[False].inactive
    languages = tuple(loaded.tasks["lid"].symbols) if "lid" in tasks else ()
    return Engine(transcribers, tasks, samples, options.search, chunked, thresholds, inactive, languages)


class Feed:
    """The queue of one stream: audio and control messages, in order. `Worker` guards it with its lock.

    Args:
        chunk_samples: samples of a chunk. Audio is taken in pieces that end where chunks end, so that no stream waits
            for audio of another chunk.
        deliver: called on the event loop with each result.
    """

    def __init__(self, name: str, chunk_samples: int, deliver: Callable[[Done], None]):
        self.name = name
        self.deliver = deliver
        self.transcriber: Any = None  # like `stream`, used by the worker's thread only
        self.stream: Any = None
        self._chunk = chunk_samples
        self._heard = 0  # samples taken
        # Audio between two control messages is one buffer of float32, however many messages it came in.
        self._queue: Deque[Union[Control, bytearray]] = deque()

    def put(self, work: Work) -> None:
        """Append to the queue."""
        if not isinstance(work, np.ndarray):
            self._queue.append(work)
        elif self._queue and isinstance(self._queue[-1], bytearray):
            self._queue[-1] += work.tobytes()
        else:
            self._queue.append(bytearray(work.tobytes()))

    @property
    def ready(self) -> bool:
        """Whether there is work for the model: a whole chunk, a control message, or the audio before one."""
        if not self._queue:
            return False
        head = self._queue[0]
        return not isinstance(head, bytearray) or len(self._queue) > 1 or len(head) >= FLOAT * self._missing

    @property
    def _missing(self) -> int:
        """Samples until the model's chunk is full."""
        return self._chunk - self._heard % self._chunk

    def take(self) -> Work:
        """Remove the next piece of work: a control message, or audio up to the end of a chunk."""
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


class Worker:
    """Runs an engine for any number of feeds, in a separate thread.

    The methods are called on the event loop and do not wait for the model; results are delivered on the event loop
    too, by ``Feed.deliver``. At most ``batch`` streams are processed together.
    """

    def __init__(self, engine: Engine, batch: int):
        self.engine = engine
        self.batch = batch
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._feeds: OrderedDict[Feed, None] = OrderedDict()  # least recently served first
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def add(self, feed: Feed, start: Start) -> None:
        """Add a stream."""
        with self._changed:
            self._feeds[feed] = None
        self.put(feed, start)

    def put(self, feed: Feed, work: Work) -> None:
        """Add work to a stream."""
        with self._changed:
            if feed in self._feeds:
                feed.put(work)
                if feed.ready:
                    self._changed.notify()

    def drop(self, feed: Feed) -> None:
        """Remove a stream and its work."""
        with self._changed:
            self._feeds.pop(feed, None)

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    async def stop(self) -> None:
        """End the thread, after its current batch."""
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
            # Before the next batch: a stream that failed must not be batched with others. The event loop, which drops
            # it too, may come too late.
            with self._changed:
                for feed, what in done:
                    if what.problem is not None:
                        self._feeds.pop(feed, None)
            try:
                self._loop.call_soon_threadsafe(_deliver, done)
            except RuntimeError:  # the loop is closed
                return

    def _take(self) -> List[Tuple[Feed, Work]]:
        """One piece of work from each of up to ``batch`` feeds."""
        chosen = [feed for feed in self._feeds if feed.ready][: self.batch]
        for feed in chosen:
            self._feeds.move_to_end(feed)
        return [(feed, feed.take()) for feed in chosen]

    def _do(self, batch: List[Tuple[Feed, Work]]) -> List[Tuple[Feed, Done]]:
        """Do a batch of work. An error ends only the streams that it occurred in."""
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

    def _control(self, feed: Feed, work: Control) -> Done:
        try:
            if isinstance(work, Start):
                if work.reset_at_endpoint not in self.engine.transcribers:
                    raise UserError("field 'reset_at_endpoint': the model does not know the task 'endp'")
                feed.transcriber = self.engine.transcribers[work.reset_at_endpoint]
                default, tasks = self.engine.search, self.engine.tasks if work.tasks is None else work.tasks
                own = search_for(tasks, default, self.engine.inactive)
                if own.lm is None and default.lm is not None and work.asks_for_lm:
                    needs = "the server's language models are one per language, and need the task 'lid'"
                    raise UserError(f"field 'lm': {needs}")
                search = work.search(own)
                feed.stream = feed.transcriber.open(work.tasks, feed.name, search, bool(work.pauses), default.languages)
            elif isinstance(work, SetTasks):
                feed.transcriber.set_tasks(feed.stream, work.tasks)
            elif isinstance(work, End):
                return Done(work, tuple(feed.transcriber.close(feed.stream)))
        except Exception as error:
            return _failed(work, error)
        return Done(work)

    def _hear(self, pieces: List[Tuple[Feed, np.ndarray]]) -> List[Tuple[Feed, Done]]:
        """Process audio of several streams of one transcriber."""
        transcriber = pieces[0][0].transcriber
        try:
            results = transcriber.push_many([(feed.stream, samples) for feed, samples in pieces])
        except UserError as error:
            # No stream has taken its audio: find the one that caused the error.
            if len(pieces) == 1:
                return [(pieces[0][0], _failed(pieces[0][1], error))]
            return [found for piece in pieces for found in self._hear([piece])]
        except Exception as error:
            # It is unknown which streams have taken their audio: none can continue.
            problem = _failed(pieces[0][1], error).problem
            return [(feed, Done(samples, problem=problem)) for feed, samples in pieces]
        return [(feed, Done(samples, tuple(events))) for (feed, samples), events in zip(pieces, results)]


def _deliver(done: List[Tuple[Feed, Done]]) -> None:
    for feed, what in done:
        feed.deliver(what)


def _failed(work: Work, error: Exception) -> Done:
    if isinstance(error, UserError):
        code = "bad_audio" if isinstance(work, np.ndarray) else "bad_message"
        return Done(work, problem=(code, " ".join(str(error).split())))
    log.error("the model failed", exc_info=error)
    return Done(work, problem=("internal", "the model failed; the server's log says more"))

"""The one thread that runs the model: it takes a chunk of every stream that has one, and runs them together."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Protocol, Sequence, Tuple

import numpy as np

from tokenverse_pp.errors import UserError
from tokenverse_pp.serving.feed import Close, Done, Feed, Work
from tokenverse_pp.serving.protocol import SetTasks, Start
from tokenverse_pp.streaming.events import Event

log = logging.getLogger(__name__)


class Transcriber(Protocol):
    """What a server needs of `tokenverse_pp.streaming.transcriber.StreamingTranscriber`; see there."""

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

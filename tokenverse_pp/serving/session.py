"""One connection: its messages go to the model, and events go back through a bounded queue (`Outbox`)."""

from __future__ import annotations

import asyncio
import json
import logging
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Deque, Dict, Optional, Tuple, Union

import numpy as np
from aiohttp import WSMsgType, web

from tokenverse_pp.base.config import SAMPLE_RATE
from tokenverse_pp.decoding.streaming.events import END, PARTIAL
from tokenverse_pp.serving.access import bearer
from tokenverse_pp.serving.protocol import (
    NORMAL,
    TOO_BIG,
    VERSION,
    End,
    SetTasks,
    Start,
    StreamError,
    read_audio,
    read_control,
)
from tokenverse_pp.serving.worker import Done, Feed, Work, weight

if TYPE_CHECKING:
    from tokenverse_pp.serving.server import StreamingServer

log = logging.getLogger(__name__)
POLL_SECONDS = 0.05


class StreamSocket(web.WebSocketResponse):
    """A websocket that tells a client why its message is refused, and gives it time to read the reason.

    aiohttp itself ends connections on messages that are too large, invalid frames and text that is not UTF-8
    (codes 1009, 1002, 1007). It closes the socket at once, so a client that is still sending would see a broken
    connection instead of the code. Therefore the close frame is sent first, and further messages of the client are read
    and dropped until it hangs up.

    Attributes:
        refused: the code, if aiohttp has ended the connection.
    """

    def __init__(self, request: web.Request, message_bytes: int, closing_seconds: float):
        # Audio does not compress, and decompression allows attacks. aiohttp also refuses messages of exactly its limit.
        super().__init__(timeout=closing_seconds, compress=False, max_msg_size=message_bytes + 1)
        self.refused: Optional[int] = None
        self._request, self._closing_seconds = request, closing_seconds
        self._reasons = {
            1002: "not a websocket frame",
            1007: "text that is not UTF-8",
            TOO_BIG: f"message exceeds the limit of {message_bytes} bytes",
        }

    def abort(self) -> None:
        """Abort the connection."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def close(self, *, code: int = NORMAL, message: bytes = b"", drain: bool = True) -> bool:
        """Close the connection; without a message, the close is aiohttp's own (`Session` always gives its reason)."""
        if not self.closed and not message and code in self._reasons:
            self.refused, message = int(code), self._reasons[code].encode()
            try:
                await self.send_frame(struct.pack("!H", code) + message, WSMsgType.CLOSE)
                if self._request.transport is not None:
                    self._request.transport.write_eof()
                for _ in range(int(self._closing_seconds / POLL_SECONDS)):
                    if self._request.transport is None:
                        break
                    await asyncio.sleep(POLL_SECONDS)
            except ConnectionError:
                pass  # the client has left
        return await super().close(code=code, message=message, drain=drain)


class Outbox:
    """A bounded queue of messages to a client. A new partial replaces a waiting one."""

    def __init__(self, most: int):
        self.most = most  # bytes of messages that may wait, without partials
        self._queue: Deque[Tuple[str, int]] = deque()  # messages and their bytes; 0 for the partial
        self._size = 0
        self._has_partial = False
        self._ended = False
        self._changed = asyncio.Event()

    def put(self, message: str, partial: bool = False) -> bool:
        """Add a message; return False, without adding it, if the queue is full. After `end` nothing is added."""
        if self._ended:
            return True
        if partial:
            if self._has_partial:
                self._queue = deque(item for item in self._queue if item[1])
            self._has_partial = True
        elif self._size > self.most:
            return False
        self._add(message, 0 if partial else len(message.encode()))
        return True

    def end(self, message: Optional[str] = None, clear: bool = False) -> None:
        """Close the queue after a last message; with ``clear``, drop the waiting ones."""
        if self._ended:
            return
        if clear:
            self._queue.clear()
            self._size, self._has_partial = 0, False
        if message is not None:
            self._add(message, len(message.encode()))
        self._ended = True
        self._changed.set()

    def _add(self, message: str, size: int) -> None:
        self._queue.append((message, size))
        self._size += size
        self._changed.set()

    async def get(self) -> Optional[str]:
        """Wait for the next message; None at the end."""
        while not self._queue:
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        message, size = self._queue.popleft()
        self._size -= size
        self._has_partial = self._has_partial and size > 0
        return message


@dataclass
class Ending:
    """Why a stream ended: ``end``, ``gone`` (the client left), the code of an error, or ``refused_1009`` and so on."""

    how: str
    close_code: int = NORMAL
    reason: str = ""


class Session:
    """One stream from its first message to its closed connection; ``name`` is its name in events and logs."""

    def __init__(self, server: StreamingServer, request: web.Request, connection: StreamSocket, name: str):
        self.server = server
        self.request = request
        self.limits = server.limits
        # With less than a chunk the model would never run.
        self._most_waiting = max(self.limits.waiting_seconds, 2 * server.engine.chunk_samples / SAMPLE_RATE)
        self.connection = connection
        self.name = name
        self.ending: Optional[Ending] = None
        self.start: Optional[Start] = None
        self.seconds = 0.0  # of audio received
        self.messages = 0  # sent
        self._outbox = Outbox(self.limits.unsent_bytes)
        self._feed = Feed(name, server.engine.chunk_samples, self._deliver)
        self._waiting = 0.0  # seconds (`weight`) that the model has not processed
        self._room = asyncio.Event()
        self._room.set()
        self._no_more_audio = False
        self._samples = [0, 0]  # received; processed by the model
        self._complete: Deque[float] = deque()  # when the last sample of each waiting chunk arrived
        self._loop = asyncio.get_running_loop()
        self._last_heard = self._loop.time()
        self._idle_timer = self._loop.call_later(self.limits.idle_seconds, self._check_idle)
        self._abort_timer: Optional[asyncio.TimerHandle] = None

    async def run(self) -> None:
        """Serve the stream; returns when its connection is closed."""
        reading = asyncio.ensure_future(self._read())
        try:
            while (message := await self._outbox.get()) is not None:
                await self.connection.send_str(message)
        except ConnectionError:
            self.finish(self._left())
        except Exception as error:
            log.error("stream %s: cannot send", self.name, exc_info=error)
            self.fail(StreamError("internal", "the server failed"))
        finally:
            self.server.worker.drop(self._feed)
            ending = self.ending or self._left()  # None while the event loop is closing
            # aiohttp's `close` drops what the client still sends, up to its close frame. While another task waits for a
            # message, it closes the socket at once: a client that is still sending would not see the close frame.
            reading.cancel()
            await asyncio.wait([reading])
            await self.connection.close(code=ending.close_code, message=ending.reason.encode(), drain=False)
            self._idle_timer.cancel()
            if self._abort_timer is not None:
                self._abort_timer.cancel()

    def finish(self, ending: Ending, message: Optional[str] = None, clear: bool = False) -> None:
        """End the stream with a last message.

        If the client does not read the remaining messages and close, the connection is aborted after
        ``closing_seconds``.
        """
        if self.ending is not None:
            return
        self.ending = ending
        self._outbox.end(message, clear)
        self._room.set()
        self.server.worker.drop(self._feed)
        self._abort_timer = self._loop.call_later(self.limits.closing_seconds, self.connection.abort)

    def fail(self, error: StreamError) -> None:
        """Send an error to the client, and end the stream."""
        message = json.dumps({"kind": "error", "code": error.code, "message": error.message, "stream": self.name})
        # A slow reader would not reach an error that follows the waiting messages.
        self.finish(Ending(error.code, error.close_code, error.reason), message, clear=error.code == "slow_reader")

    async def _read(self) -> None:
        """Receive messages until the connection is closed."""
        try:
            while (message := await self.connection.receive()).type in (WSMsgType.TEXT, WSMsgType.BINARY):
                self._last_heard = self._loop.time()
                if self.ending is None:
                    try:
                        self._take(message.data)
                    except StreamError as error:
                        self.fail(error)
                await self._room.wait()
            self.finish(self._left())
        except Exception as error:
            log.error("stream %s: cannot read", self.name, exc_info=error)
            self.fail(StreamError("internal", "the server failed"))

    def _take(self, message: Union[str, bytes]) -> None:
        """Handle one message (raises StreamError)."""
        if isinstance(message, str):
            control = read_control(message, self.server.engine.tasks)
            if isinstance(control, Start):
                self._begin(control)
                return
            self._check_open("'set_tasks'" if isinstance(control, SetTasks) else "'end'")
            self._no_more_audio = isinstance(control, End)
            self._put(control)
            return
        self._check_open("audio")
        assert self.start is not None
        samples = read_audio(message, self.start.format)
        chunk = self.server.engine.chunk_samples
        before, self._samples[0] = self._samples[0], self._samples[0] + len(samples)
        self._complete.extend([self._loop.time()] * (self._samples[0] // chunk - before // chunk))
        self.seconds += len(samples) / SAMPLE_RATE
        if self.seconds > self.limits.stream_seconds:
            raise StreamError("too_long", f"a stream has at most {self.limits.stream_seconds:g} s of audio")
        if len(samples):
            self._put(samples)

    def _check_open(self, what: str) -> None:
        if self.start is None:
            raise StreamError("bad_message", f"{what} before 'start': the first message starts the stream")
        if self._no_more_audio:
            raise StreamError("bad_message", f"{what} after 'end'")

    def _begin(self, start: Start) -> None:
        if self.start is not None:
            raise StreamError("bad_message", "a second 'start': a connection is one stream")
        given = start.token or bearer(self.request.headers.get("Authorization"))
        if not self.server.access.allows_token(given):
            raise StreamError("unauthorised", "token missing" if given is None else "wrong token")
        self.server.count_in(self)
        self.start = start
        self._waiting += weight(start)
        self.server.worker.add(self._feed, start)

    def _put(self, work: Work) -> None:
        self._waiting += weight(work)
        if self._waiting > self._most_waiting:
            self._room.clear()
        self.server.worker.put(self._feed, work)

    def _deliver(self, done: Done) -> None:
        """Handle a result of the model (`Feed.deliver`)."""
        self._waiting -= weight(done.work)
        if not self._room.is_set():
            self._last_heard = self._loop.time()  # nothing was read before
            if self._waiting <= self._most_waiting:
                self._room.set()
        if self.ending is not None:
            return
        try:
            self._report(done)
        except Exception as error:  # must not affect the other streams of the batch
            log.error("stream %s: cannot send events", self.name, exc_info=error)
            self.fail(StreamError("internal", "the server failed"))

    def _report(self, done: Done) -> None:
        """Send events and answers to the client."""
        if done.problem is not None:
            self.fail(StreamError(*done.problem))
            return
        if isinstance(done.work, Start):
            engine, limits = self.server.engine, self.limits
            message = {
                "kind": "ready",
                "version": VERSION,
                "tasks": list(engine.tasks if done.work.tasks is None else done.work.tasks),
                "known_tasks": list(engine.tasks),
                "chunk_seconds": engine.chunk_samples / SAMPLE_RATE,
                "trained_in_chunks": engine.trained_in_chunks,
            }
            if done.work.pauses and engine.endpoint_thresholds:
                message["endpoint_thresholds"] = dict(engine.endpoint_thresholds)
            names = ("message_bytes", "stream_seconds", "idle_seconds")
            self._send({**message, "limits": {name: getattr(limits, name) for name in names}})
        elif isinstance(done.work, SetTasks):
            self._send({"kind": "tasks", "tasks": list(done.work.tasks)})
        elif isinstance(done.work, np.ndarray):
            self.server.heard_seconds += weight(done.work)
            self._measure(len(done.work))
        for event in done.events:
            if event.kind == END:
                self.finish(Ending("end"), self._text(event.as_dict()))
            elif event.kind != PARTIAL or (self.start and self.start.partials):
                self._send(event.as_dict(), partial=event.kind == PARTIAL)

    def _measure(self, samples: int) -> None:
        """Record audio that the model has processed, and the time since its chunk was complete."""
        monitor, chunk = self.server.monitor, self.server.engine.chunk_samples
        monitor.audio.labels("stream").inc(samples / SAMPLE_RATE)
        before, self._samples[1] = self._samples[1], self._samples[1] + samples
        for _ in range(self._samples[1] // chunk - before // chunk):
            monitor.stream_latency.observe(self._loop.time() - self._complete.popleft())

    def _send(self, message: Dict[str, Any], partial: bool = False) -> None:
        self.messages += 1
        if not self._outbox.put(self._text(message), partial):
            self.fail(StreamError("slow_reader", f"more than {self.limits.unsent_bytes} bytes of events are not read"))

    def _text(self, message: Dict[str, Any]) -> str:
        return json.dumps({"stream": self.name, **message}, ensure_ascii=False, allow_nan=False)

    def _left(self) -> Ending:
        """The ending of a connection that was closed by the client, or by aiohttp (e.g. for too large a message)."""
        refused = self.connection.refused
        return Ending("gone") if refused is None else Ending(f"refused_{refused}", refused)

    def _check_idle(self) -> None:
        """End an idle stream. Time in which the server did not read does not count."""
        if self._no_more_audio or self.ending is not None:
            return
        now = self._loop.time()
        if not self._room.is_set():
            self._last_heard = now
        left = self._last_heard + self.limits.idle_seconds - now
        if left <= 0:
            what = "audio" if self.start is not None else "'start'"
            self.fail(StreamError("idle", f"no {what} for {self.limits.idle_seconds:g} s"))
        else:
            self._idle_timer = self._loop.call_later(left, self._check_idle)

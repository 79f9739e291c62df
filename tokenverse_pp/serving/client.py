"""A Python client of the streaming server.

>>> async with StreamClient("ws://127.0.0.1:8765/stream", tasks=["asr", "scd"]) as stream:  # doctest: +SKIP
...     await stream.send(samples)  # (S,) at 16 kHz in -1 .. 1, again and again
...     await stream.end()
...     async for event in stream:
...         print(event["kind"], event["text"])

`send` waits while the server is busy, and events wait until they are read; so a client that sends for a long time must
read in another asyncio task at the same time. `transcribe` does that, for programs without asyncio.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
from typing import Any, AsyncIterator, Callable, Dict, Iterable, List, Optional, Sequence, Tuple, Union
from urllib.parse import urlsplit

import numpy as np

from tokenverse_pp.base.config import SAMPLE_RATE
from tokenverse_pp.base.errors import UserError, needing
from tokenverse_pp.serving.access import is_loopback
from tokenverse_pp.serving.protocol import TOO_BIG, Start, start_message, write_audio

Event = Dict[str, Any]
MOST_EVENT = 1 << 24  # bytes: the event `end` holds the whole text
PIECE_SECONDS = 0.5  # of audio per message


def need_websockets() -> None:
    """Check that the client's package websockets is installed and new enough (raises UserError)."""
    with needing("streaming needs websockets >= 13", "serve"):
        importlib.import_module("websockets.asyncio.client")


def need_server() -> None:
    """Check that the packages of the server are installed (raises UserError)."""
    for name, least in (("aiohttp", "3.10"), ("prometheus_client", "0.17")):
        with needing(f"the server needs {name} >= {least}", "serve"):
            importlib.import_module(name)


class ServerError(UserError):
    """An error from the server: ``code`` as in docs/streaming_protocol.md, or ``closed``."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code


class StreamClient:
    """One stream.

    Args:
        url: address of the server, ``ws://HOST:PORT/stream``.
        tasks: tasks to decode; None for all that the server offers.
        format: format of the audio sent: ``pcm16`` or ``float32``.
        partials: whether the server sends partial results, which may still change.
        reset_at_endpoint: restart the server's search at each ``[ENDP]``.
        token: the server's token, if it requires one.
        language: code of the spoken language, or several codes; needs the task ``lid``.
        hotwords: phrases to prefer, each alone or with its bonus, instead of the server's.
        hotword_score: bonus in nats for each token of a phrase without its own bonus.
        lm: False to decode without the server's language model.
        lm_scale: scale of that language model.
        lm_bonus: bonus for each token that it scores.
        pauses: whether the server sends the probability of an endpoint while a pause lasts (events of kind ``pause``).

    Raises:
        UserError: (on entering) if the server cannot be reached.
        ServerError: (on entering, and while reading) for errors from the server.
    """

    def __init__(
        self,
        url: str,
        tasks: Optional[Sequence[str]] = None,
        format: str = "pcm16",
        partials: bool = True,
        reset_at_endpoint: bool = False,
        token: Optional[str] = None,
        language: Optional[Union[str, Sequence[str]]] = None,
        hotwords: Optional[Sequence[Union[str, Tuple[str, float]]]] = None,
        hotword_score: Optional[float] = None,
        lm: Optional[bool] = None,
        lm_scale: Optional[float] = None,
        lm_bonus: Optional[float] = None,
        pauses: Optional[bool] = None,
    ):
        self.url = url
        codes = (language,) if isinstance(language, str) else language
        self.start = Start(
            format,
            None if tasks is None else tuple(tasks),
            partials,
            reset_at_endpoint,
            token,
            None if codes is None else tuple(codes),
            None if hotwords is None else tuple(x if isinstance(x, str) else (x[0], x[1]) for x in hotwords),
            hotword_score,
            lm,
            lm_scale,
            lm_bonus,
            pauses,
        )
        self.ready: Event = {}  # the server's answer to the start
        self._connection: Any = None

    async def __aenter__(self) -> StreamClient:
        self._connection = await _connect(self.url)
        try:
            await self._say(start_message(self.start))
            self.ready = await self._receive()
        except BaseException:
            await self._connection.close()
            raise
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self._connection.close()

    async def send(self, audio: np.ndarray) -> None:
        """Send samples ``(S,)`` at 16 kHz in -1 .. 1; waits while the server is busy.

        Does nothing after the server has closed the stream; reading raises the reason.
        """
        most = int(PIECE_SECONDS * SAMPLE_RATE)
        for begin in range(0, len(audio), most):
            await self._say(write_audio(audio[begin : begin + most], self.start.format))
            await asyncio.sleep(0)  # websockets gives other tasks a turn only while its buffer is full

    async def set_tasks(self, tasks: Sequence[str]) -> None:
        """Switch the active tasks from the next chunk on."""
        await self._say(json.dumps({"kind": "set_tasks", "tasks": list(tasks)}))

    async def end(self) -> None:
        """Tell the server that no more audio follows; it sends the remaining events, then ``end``."""
        await self._say(json.dumps({"kind": "end"}))

    async def __aiter__(self) -> AsyncIterator[Event]:
        """The events up to ``end``."""
        while True:
            event = await self._receive()
            yield event
            if event["kind"] == "end":
                return

    async def _say(self, message: Union[str, bytes]) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            await self._connection.send(message)
        except ConnectionClosed:
            pass  # reading raises the reason

    async def _receive(self) -> Event:
        from websockets.exceptions import ConnectionClosed

        try:
            event = json.loads(await self._connection.recv())
        except ConnectionClosed as error:
            closed = error.rcvd
            if closed is None:
                raise ServerError("closed", f"{self.url}: the connection broke") from error
            code = "too_big" if closed.code == TOO_BIG else "closed"
            said = f"{self.url}: the server closed the stream: {closed.code} {closed.reason}"
            raise ServerError(code, said) from error
        if event.get("kind") == "error":
            raise ServerError(event["code"], event["message"])
        return event


def transcribe(
    url: str,
    audio: Union[np.ndarray, Iterable[np.ndarray]],
    on_event: Optional[Callable[[Event], None]] = None,
    real_time: bool = False,
    on_ready: Optional[Callable[[Event], None]] = None,
    **options: Any,
) -> List[Event]:
    """Send audio, and collect all events (raises UserError, see `StreamClient`).

    Args:
        url: see `StreamClient`.
        audio: samples ``(S,)`` at 16 kHz in -1 .. 1, or pieces of them.
        on_event: called with each event as it arrives.
        real_time: send no faster than real time.
        on_ready: called with the server's answer to the start, before the events.
        options: options of `StreamClient`.

    Returns:
        All events; the text of the last, ``end``, is the whole transcript.
    """
    pieces = [audio] if isinstance(audio, np.ndarray) else audio

    async def talk() -> List[Event]:
        events: List[Event] = []
        async with StreamClient(url, **options) as stream:
            if on_ready is not None:
                on_ready(stream.ready)

            async def read() -> None:
                async for event in stream:
                    events.append(event)
                    if on_event is not None:
                        on_event(event)

            both = [asyncio.ensure_future(each) for each in (_send_all(stream, pieces, real_time), read())]
            try:  # until the events end, or either fails: the server waits for all audio before `end`
                await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                for task in both:
                    task.cancel()
                problems = await asyncio.gather(*both, return_exceptions=True)
            for problem in reversed(problems):
                if isinstance(problem, Exception):
                    raise problem
        return events

    return asyncio.run(talk())


async def _send_all(stream: StreamClient, pieces: Iterable[np.ndarray], real_time: bool) -> None:
    loop = asyncio.get_running_loop()
    began, sent = loop.time(), 0
    step = int(SAMPLE_RATE * (0.1 if real_time else PIECE_SECONDS))
    source = iter(pieces)
    # In a thread, since a microphone blocks, and events are read meanwhile.
    while (piece := await asyncio.to_thread(next, source, None)) is not None:
        for begin in range(0, len(piece), step):
            part = piece[begin : begin + step]
            await stream.send(part)
            sent += len(part)
            if real_time:
                await asyncio.sleep(max(0.0, began + sent / SAMPLE_RATE - loop.time()))
    await stream.end()


async def _connect(url: str) -> Any:
    """An open connection (raises UserError)."""
    need_websockets()
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI

    # Pings would wait behind audio that a busy server has not read yet, and time out.
    options: Dict[str, Any] = {"compression": None, "max_size": MOST_EVENT, "ping_interval": None}
    if "proxy" in inspect.signature(connect.__init__).parameters and is_loopback(urlsplit(url).hostname or ""):
        options["proxy"] = None
    try:
        return await connect(url, **options)
    except InvalidURI as error:
        raise UserError(f"{url}: expected an address such as ws://127.0.0.1:8765/stream") from error
    except InvalidStatus as error:
        said = (error.response.body or b"").decode("utf-8", "replace").strip()
        raise UserError(f"{url}: refused: {error.response.status_code} {said}".rstrip()) from error
    except (InvalidHandshake, InvalidMessage, asyncio.TimeoutError, EOFError) as error:
        raise UserError(f"{url}: no streaming server answers there: {error}") from error
    except OSError as error:
        raise UserError(f"{url}: cannot connect: {error.strerror or error}") from error

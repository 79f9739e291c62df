"""The server: connections and their sessions, counters, and graceful shutdown."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Set

from aiohttp import web

from tokenverse_pp.base.config import SAMPLE_RATE
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.serving.access import Access, bearer, is_loopback
from tokenverse_pp.serving.http import (
    ALIVE_PATH,
    FILES,
    HEALTH_PATH,
    METRICS_PATH,
    OFFER_PATH,
    STREAM_PATH,
    Monitor,
    plain,
    respond,
)
from tokenverse_pp.serving.openai_api import PREFIX, OpenAIApi
from tokenverse_pp.serving.protocol import VERSION, Limits, StreamError, shown
from tokenverse_pp.serving.session import Session, StreamSocket
from tokenverse_pp.serving.uploads import UploadModel, Uploads
from tokenverse_pp.serving.worker import Engine, Worker

log = logging.getLogger(__name__)
library_log = logging.getLogger("tokenverse_pp.serving.http")
library_log.setLevel(logging.CRITICAL)  # invalid requests are not errors of the server; sessions log theirs

KERNEL_BYTES = 1 << 17  # size of the kernel's buffers, so that back-pressure and slow readers show within seconds
OPEN_SECONDS = 5.0  # to receive the head of a request
FREE_PORT = 0
# Paths that /metrics counts separately.
COUNTED = {STREAM_PATH, HEALTH_PATH, ALIVE_PATH, METRICS_PATH, OFFER_PATH, *FILES}


@dataclass
class StreamingServer:
    """Serves a model to many clients, on one port: streams, uploads (with a ``model`` for them), the web page."""

    engine: Engine
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    model: Optional[UploadModel] = None

    def __post_init__(self) -> None:
        self.heard_seconds = 0.0
        self.streams: Set[Session] = set()
        self.ended: Counter[str] = Counter()  # streams and refused connections, by reason
        self._sessions: Set[Session] = set()
        self._silent: Set[Any] = set()  # connections that have not sent a complete request
        self._names = 0
        self._runner: Optional[web.AppRunner] = None
        self._server: Optional[asyncio.AbstractServer] = None
        self.is_loopback = True
        self.port = FREE_PORT
        self._began = time.monotonic()
        self.uploads = Uploads(self.model, self.limits)
        self.monitor = Monitor(self)
        self._api = OpenAIApi(self)

    async def start(self, host: str, port: int = FREE_PORT) -> None:
        """Listen; with ``port`` 0 on a free port, which is stored in the attribute ``port`` (raises UserError)."""
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        application.on_response_prepare.append(_without_server)
        application.on_response_prepare.append(self._share)
        # A connection that has been idle for this long between two requests is closed.
        runner = self._runner = web.AppRunner(
            application,
            access_log=None,
            logger=library_log,
            keepalive_timeout=max(OPEN_SECONDS, self.limits.idle_seconds),
            shutdown_timeout=self.limits.closing_seconds + 1,
        )
        await runner.setup()
        loop = asyncio.get_running_loop()

        def connection() -> Any:
            assert runner.server is not None
            handler = runner.server()
            self._silent.add(handler)
            loop.call_later(OPEN_SECONDS, self._check_silent, handler)
            return handler

        self.worker = Worker(self.engine, self.limits.batch)
        self.uploads.start()
        try:
            self._server = await loop.create_server(connection, host, port)
        except (OSError, OverflowError) as error:
            await self.worker.stop()
            await self.uploads.stop()
            await runner.cleanup()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UserError(f"cannot listen on {host} port {port}: {reason}") from error
        for listening in self._server.sockets:
            # Connections inherit these.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        self.is_loopback = is_loopback(host)
        self.port = self._server.sockets[0].getsockname()[1]
        self._began = time.monotonic()

    async def stop(self) -> None:
        """Refuse new connections, end streams and uploads with an error, and end the model's threads."""
        assert self._server is not None and self._runner is not None
        self._server.close()
        for session in list(self._sessions):
            session.fail(StreamError("going_away", "the server is shutting down"))
        await self.uploads.stop()
        # Sessions abort connections whose clients do not close.
        await self._runner.cleanup()
        await self.worker.stop()

    def is_alive(self) -> bool:
        """Whether the model's threads are running."""
        return self.worker.is_alive() and self.uploads.is_alive()

    def health(self) -> Dict[str, Any]:
        """The contents of /health."""
        return {
            "status": "ok",
            "version": VERSION,
            "streams": len(self.streams),
            "most_streams": self.limits.streams,
            "audio_seconds": round(self.heard_seconds, 2),
            "uptime_seconds": round(time.monotonic() - self._began, 2),
            "ended": dict(self.ended),
            **self.offer(),
        }

    def offer(self) -> Dict[str, Any]:
        """What the page needs to know, the contents of /page.json: a proxy that hides the counts of /health has it."""
        return {
            "tasks": list(self.engine.tasks),
            "language_tokens": list(self.engine.language_tokens),
            "sample_rate": SAMPLE_RATE,
            "token_required": self.access.token is not None,
        }

    def count_in(self, session: Session) -> None:
        """Count one more stream (raises StreamError at the limit)."""
        most = self.limits.streams
        if len(self.streams) >= most:
            raise StreamError("too_many_streams", f"{most} streams are open, as many as may be; try later")
        self.streams.add(session)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request, whatever its path."""
        self._silent.discard(request.protocol)
        path = request.path
        if "websocket" in request.headers.get("Upgrade", "").lower():
            refusal = self._refuse(request)
            response = await self._stream(request) if refusal is None else refusal
            if refusal is not None:
                self.ended[f"http_{refusal.status}"] += 1
        elif path.startswith(PREFIX):
            return await self._api.respond(request)  # counts its requests itself
        else:
            response = respond(request, self)
        self.monitor.requests.labels(path if path in COUNTED else "other", response.status).inc()
        return response

    def _check_silent(self, handler: Any) -> None:
        """Abort a connection that has not sent a complete request in time."""
        if handler in self._silent:
            self._silent.discard(handler)
            if handler.transport is not None:
                handler.transport.abort()

    def foreign_origin(self, request: web.Request) -> Optional[str]:
        """An error message if the request is of a web page that may not use this server, else None."""
        origins, hosts = request.headers.getall("Origin", []), request.headers.getall("Host", [])
        if origins and not (
            len(origins) == len(hosts) == 1 and self.access.allows_origin(origins[0], hosts[0], self.is_loopback)
        ):
            return f"pages of {shown(origins[0])} may not connect: see --allow-origin"
        return None

    def other_origin(self, request: web.Request) -> Optional[str]:
        """The origin of the page that sent a request, if it is one of ``--allow-origin``."""
        origins = request.headers.getall("Origin", [])
        return origins[0] if len(origins) == 1 and origins[0] in self.access.origins else None

    async def _share(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let pages of the allowed origins read answers of OpenAI's API; a websocket needs no header for that."""
        if self.access.origins and request.path.startswith(PREFIX):
            response.headers["Vary"] = "Origin"
            origin = self.other_origin(request)
            if origin is not None:
                response.headers["Access-Control-Allow-Origin"] = origin

    def _refuse(self, request: web.Request) -> Optional[web.Response]:
        if request.path != STREAM_PATH:
            return plain(404, f"no streams at {shown(request.path)}: they are at {STREAM_PATH}")
        foreign = self.foreign_origin(request)
        if foreign is not None:
            return plain(403, foreign)
        given = bearer(request.headers.get("Authorization"))
        if given is not None and not self.access.allows_token(given):
            return plain(401, "wrong token")
        if len(self._sessions) >= self.limits.connections:
            return plain(503, "too many connections; try later")
        return None

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        connection = StreamSocket(request, self.limits.message_bytes, self.limits.closing_seconds)
        await connection.prepare(request)
        self._names += 1
        session = Session(self, request, connection, f"s{self._names}")
        self._sessions.add(session)
        peer = request.remote or "unknown"
        try:
            await session.run()
        except Exception as error:
            log.error("stream %s: failed", session.name, exc_info=error)
        finally:
            self._sessions.discard(session)
            self.streams.discard(session)
            how = session.ending.how if session.ending else "gone"
            self.ended[how] += 1
            self.monitor.ended.labels(how).inc()
            if how not in ("end", "gone"):
                self.monitor.errors.labels("stream", how).inc()
            said = "stream %s from %s: %.1f s of audio, %d messages sent, ended: %s"
            log.info(said, session.name, peer, session.seconds, session.messages, how)
        return connection


async def _without_server(request: web.Request, response: web.StreamResponse) -> None:
    """Do not reveal the versions of Python and aiohttp."""
    response.headers.popall("Server", None)


def run_server(
    engine: Engine, limits: Limits, access: Access, host: str, port: int, model: Optional[UploadModel] = None
) -> None:
    """Serve until SIGINT or SIGTERM; a second signal kills the process (raises UserError if it cannot listen)."""
    asyncio.run(_run(StreamingServer(engine, limits, access, model), host, port))


async def _run(server: StreamingServer, host: str, port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        loop.remove_signal_handler(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    await server.start(host, port)
    if not is_loopback(host) and server.access.token is None:
        log.warning("listening on %s without a token: whoever reaches this machine may use the model", host or "all")
    name = f"[{host}]" if ":" in host else host
    log.info("page: http://%s:%d/ streams: ws://%s:%d%s", name, server.port, name, server.port, STREAM_PATH)
    await stop.wait()
    log.info("stopping: %d streams are open", len(server.streams))
    await server.stop()

"""The server: connections and their sessions, counters, and graceful shutdown."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, Optional, Set

from websockets.asyncio.server import serve

from tokenverse_pp.base.config import SAMPLE_RATE
from tokenverse_pp.base.errors import UserError
from tokenverse_pp.serving.access import STREAM_PATH, Access, bearer, is_loopback, plain, respond
from tokenverse_pp.serving.protocol import VERSION, Limits, StreamError, shown
from tokenverse_pp.serving.session import Session
from tokenverse_pp.serving.worker import Engine, Worker

if TYPE_CHECKING:
    from websockets.asyncio.server import Server, ServerConnection
    from websockets.http11 import Request, Response

log = logging.getLogger(__name__)
library_log = logging.getLogger("tokenverse_pp.serving.websockets")
library_log.setLevel(logging.CRITICAL)  # invalid requests are no errors of the server; sessions log their own

KERNEL_BYTES = 1 << 17  # of the kernel's buffers, so that back-pressure and slow readers show within seconds
OPEN_SECONDS = 5.0  # for the handshake
FREE_PORT = 0


@dataclass
class StreamingServer:
    """Serves a model to many clients, on one port with the web page."""

    engine: Engine
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)

    def __post_init__(self) -> None:
        self.heard_seconds = 0.0
        self.streams: Set[Session] = set()
        self.ended: Counter[str] = Counter()  # streams and refused connections, by reason
        self._sessions: Set[Session] = set()
        self._names = 0
        self._server: Optional[Server] = None
        self._loopback = True
        self.port = FREE_PORT
        self._began = time.monotonic()

    async def start(self, host: str, port: int = FREE_PORT) -> None:
        """Listen; with ``port`` 0 on a free port, which is stored in the attribute ``port`` (raises UserError)."""
        self.worker = Worker(self.engine, self.limits.batch)
        try:
            self._server = await serve(
                self._handle,
                host,
                port,
                process_request=self._answer,
                server_header=None,
                compression=None,  # audio does not compress, and decompression allows attacks
                open_timeout=OPEN_SECONDS,
                # A ping would wait behind audio that is not read while the model is behind; `Session` has its own
                # timer for idle clients.
                ping_interval=None,
                close_timeout=self.limits.closing_seconds,
                max_size=self.limits.message_bytes,
                max_queue=1,
                logger=library_log,
            )
        except (OSError, OverflowError) as error:
            await self.worker.stop()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UserError(f"cannot listen on {host} port {port}: {reason}") from error
        for listening in self._server.sockets:
            # Connections inherit these.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        self._loopback = is_loopback(host)
        self.port = self._server.sockets[0].getsockname()[1]
        self._began = time.monotonic()

    async def stop(self) -> None:
        """Refuse new connections, close the streams with an error, and end the model's thread."""
        assert self._server is not None
        self._server.close(close_connections=False)
        for session in list(self._sessions):
            session.fail(StreamError("going_away", "the server is shutting down"))
        try:
            # Sessions abort connections whose clients do not close; handshakes have their own timeout.
            await asyncio.wait_for(self._server.wait_closed(), self.limits.closing_seconds + OPEN_SECONDS + 1)
        except asyncio.TimeoutError:
            log.warning("some connections did not close in time")
        await self.worker.stop()

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
            "tasks": list(self.engine.tasks),
            "sample_rate": SAMPLE_RATE,
            "token_required": self.access.token is not None,
        }

    def count_in(self, session: Session) -> None:
        """Count one more stream (raises StreamError at the limit)."""
        most = self.limits.streams
        if len(self.streams) >= most:
            raise StreamError("too_many_streams", f"{most} streams are open, as many as may be; try later")
        self.streams.add(session)

    def _answer(self, connection: ServerConnection, request: Request) -> Optional[Response]:
        """Answer plain HTTP requests, and refuse websocket handshakes; None accepts one."""
        if "websocket" not in request.headers.get("Upgrade", "").lower():
            return respond(request, self.health())
        refusal = self._refuse(request)
        if refusal is not None:
            self.ended[f"http_{refusal.status_code}"] += 1
        return refusal

    def _refuse(self, request: Request) -> Optional[Response]:
        path = request.path.partition("?")[0]
        if path != STREAM_PATH:
            return plain(404, f"no streams at {shown(path)}: they are at {STREAM_PATH}")
        origins, hosts = request.headers.get_all("Origin"), request.headers.get_all("Host")
        if origins and not (
            len(origins) == len(hosts) == 1 and self.access.allows_origin(origins[0], hosts[0], self._loopback)
        ):
            return plain(403, f"pages of {shown(origins[0])} may not connect: see --allow-origin")
        given = bearer(request.headers.get("Authorization"))
        if given is not None and not self.access.allows_token(given):
            return plain(401, "wrong token")
        if len(self._sessions) >= self.limits.connections:
            return plain(503, "too many connections; try later")
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        self._names += 1
        session = Session(self, connection, f"s{self._names}")
        self._sessions.add(session)
        try:
            await session.run()
        except Exception as error:
            log.error("stream %s: failed", session.name, exc_info=error)
        finally:
            self._sessions.discard(session)
            self.streams.discard(session)
            how = session.ending.how if session.ending else "gone"
            self.ended[how] += 1
            peer = connection.remote_address[0] if connection.remote_address else "unknown"
            said = "stream %s from %s: %.1f s of audio, %d messages sent, ended: %s"
            log.info(said, session.name, peer, session.seconds, session.messages, how)


def run_server(engine: Engine, limits: Limits, access: Access, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; a second signal kills the process (raises UserError if it cannot listen)."""
    asyncio.run(_run(StreamingServer(engine, limits, access), host, port))


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

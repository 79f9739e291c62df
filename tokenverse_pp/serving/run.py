"""Run a server until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal

from tokenverse_pp.serving.access import STREAM_PATH, Access, is_loopback
from tokenverse_pp.serving.protocol import Limits
from tokenverse_pp.serving.server import StreamingServer
from tokenverse_pp.serving.worker import Engine

log = logging.getLogger(__name__)


def run_server(engine: Engine, limits: Limits, access: Access, host: str, port: int) -> None:
    """Listen until SIGINT or SIGTERM; a second signal ends the process at once.

    Raises:
        UserError: for an address that cannot be listened on.
    """
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

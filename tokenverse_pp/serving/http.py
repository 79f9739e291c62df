"""Plain HTTP: the server's page (with /page.json), state (/health, /healthz) and measurements (/metrics)."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from tokenverse_pp.serving.server import StreamingServer

STREAM_PATH = "/stream"
HEALTH_PATH = "/health"
ALIVE_PATH = "/healthz"
METRICS_PATH = "/metrics"
OFFER_PATH = "/page.json"
PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/audio.js": ("audio.js", "text/javascript"),
    "/transcript.js": ("transcript.js", "text/javascript"),
    "/capture.js": ("capture.js", "text/javascript"),
}
SAFE_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")
SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300)  # upper bounds of the histograms' buckets


@cache
def _page_file(name: str) -> bytes:
    return (PAGE / name).read_bytes()


def respond(request: web.Request, server: StreamingServer) -> web.Response:
    """Answer a request for the page's files, the state or the measurements."""
    if request.method not in ("GET", "HEAD"):
        return plain(405, "only GET is served here")
    path = request.path
    if path == HEALTH_PATH:
        return answer(200, json.dumps(server.health()).encode(), "application/json")
    if path == OFFER_PATH:
        return answer(200, json.dumps(server.offer()).encode(), "application/json")
    if path == ALIVE_PATH:
        # For supervisors and load balancers, which read only the status.
        return plain(200, "ok") if server.is_alive() else plain(503, "the model's thread has ended")
    if path == METRICS_PATH:
        return answer(200, generate_latest(server.monitor.registry), CONTENT_TYPE_LATEST)
    if path not in FILES:
        return plain(404, f"nothing here: the page is at /, streams are at {STREAM_PATH} (websocket)")
    name, kind = FILES[path]
    return answer(200, _page_file(name), f"{kind}; charset=utf-8", request.headers.get("Host"))


def plain(status: int, text: str) -> web.Response:
    """A response of one line of text."""
    return answer(status, f"{text}\n".encode(), "text/plain; charset=utf-8")


def answer(status: int, body: bytes, kind: str, host: Optional[str] = None, closes: bool = True) -> web.Response:
    """A response with strict security headers: the page may load its own files and reach its own server only.

    ``closes``: whether to close the connection afterwards.
    """
    # Some browsers do not apply 'self' to websockets, so the server's name is written out.
    sockets = f" ws://{host} wss://{host}" if host and SAFE_HOST.fullmatch(host) else ""
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
        f"connect-src 'self'{sockets}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Type": kind,
        "Cache-Control": "no-cache",
        "Content-Security-Policy": policy,
        "Permissions-Policy": "microphone=(self)",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    response = web.Response(status=status, body=body, headers=headers)
    if closes:
        response.force_close()
    return response


class Monitor:
    """Counters and measurements of a server for Prometheus (docs/deployment.md explains them and their labels)."""

    def __init__(self, server: StreamingServer):
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time, open files
        streams = Gauge("tokenverse_streams", "Open streams.", registry=registry)
        streams.set_function(lambda: len(server.streams))
        Gauge("tokenverse_streams_limit", "Streams that may be open.", registry=registry).set(server.limits.streams)
        queue = Gauge("tokenverse_uploads", "Uploads being received, waiting or decoded.", registry=registry)
        queue.set_function(lambda: server.uploads.entered)
        Gauge("tokenverse_uploads_limit", "Uploads that may be.", registry=registry).set(server.limits.uploads)
        waiting = Gauge("tokenverse_uploads_waiting", "Uploads that wait for the model.", registry=registry)
        waiting.set_function(lambda: server.uploads.waiting)
        self.audio = Counter("tokenverse_audio_seconds", "Audio processed.", ["kind"], registry=registry)
        self.ended = Counter("tokenverse_streams_ended", "Streams that ended.", ["how"], registry=registry)
        self.requests = Counter("tokenverse_requests", "HTTP requests.", ["path", "status"], registry=registry)
        self.errors = Counter("tokenverse_errors", "Errors told to clients.", ["kind", "code"], registry=registry)
        about = "Seconds from the last sample of a chunk to its events."
        self.stream_latency = Histogram("tokenverse_stream_latency_seconds", about, buckets=SECONDS, registry=registry)
        about = "Seconds from the start of an upload to its transcript."
        self.upload_latency = Histogram("tokenverse_upload_latency_seconds", about, buckets=SECONDS, registry=registry)

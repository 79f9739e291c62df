"""What the server answers to plain HTTP: the web page, and its state as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple

from websockets.datastructures import Headers
from websockets.http11 import Response

if TYPE_CHECKING:
    from websockets.http11 import Request

STREAM_PATH = "/stream"
HEALTH_PATH = "/health"
PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/audio.js": ("audio.js", "text/javascript"),
    "/transcript.js": ("transcript.js", "text/javascript"),
    "/capture.js": ("capture.js", "text/javascript"),
}
PHRASES = {200: "OK", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed"}
PHRASES.update({503: "Service Unavailable"})
SAFE_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")


class WebPage:
    """The page's files, read once."""

    def __init__(self) -> None:
        self._files: Dict[str, Tuple[bytes, str]] = {
            path: ((PAGE / name).read_bytes(), f"{kind}; charset=utf-8") for path, (name, kind) in FILES.items()
        }

    def respond(self, request: Request, health: Mapping[str, Any]) -> Response:
        """The answer to a request that asks for no websocket."""
        # Before version 16, websockets refuses other methods itself, and does not say which one it was.
        if getattr(request, "method", "GET") not in ("GET", "HEAD"):
            return plain(405, "only GET is served here")
        path = request.path.partition("?")[0]
        if path == HEALTH_PATH:
            return response(200, json.dumps(health).encode(), "application/json")
        if path not in self._files:
            return plain(404, f"nothing here: the page is at /, streams are at {STREAM_PATH} (websocket)")
        body, kind = self._files[path]
        return response(200, body, kind, request.headers.get("Host"))


def policy(host: Optional[str]) -> str:
    """The page's Content-Security-Policy: its own files and its own server, nothing else.

    Some browsers do not take ``'self'`` for websockets, so the server's name is written out.
    """
    sockets = f" ws://{host} wss://{host}" if host and SAFE_HOST.fullmatch(host) else ""
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
        f"connect-src 'self'{sockets}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def response(status: int, body: bytes, kind: str, host: Optional[str] = None) -> Response:
    """An HTTP response that no browser may take for anything else."""
    headers = Headers(
        {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Connection": "close",
            "Cache-Control": "no-cache",
            "Content-Security-Policy": policy(host),
            "Permissions-Policy": "microphone=(self)",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
    )
    return Response(status, PHRASES[status], headers, body)


def plain(status: int, text: str) -> Response:
    """One line of text."""
    return response(status, f"{text}\n".encode(), "text/plain; charset=utf-8")

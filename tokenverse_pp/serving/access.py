"""Access control and plain HTTP: tokens, origins of web pages, the server's own page and /health."""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import re
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Optional, Tuple
from urllib.parse import urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Response

from tokenverse_pp.base.errors import UserError

if TYPE_CHECKING:
    from websockets.http11 import Request

TOKEN_VARIABLE = "TOKENVERSE_TOKEN"
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
SAFE_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")


@dataclass(frozen=True)
class Access:
    """Access rules of a server.

    Args:
        token: required of clients; None: no token is required.
        origins: web origins (``https://example.org``) besides the server's own whose pages may connect.
    """

    token: Optional[str] = None
    origins: Tuple[str, ...] = ()

    def allows_origin(self, origin: str, host: str, loopback: bool) -> bool:
        """Whether a page may connect.

        Args:
            origin: of the page, from the header ``Origin`` (programs send none).
            host: the header ``Host``.
            loopback: the server listens on this machine only. A page under another host name is then not the server's
                own, even if that name resolves to this machine (DNS rebinding).
        """
        if origin in self.origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:  # an unclosed bracket
            return False
        same = parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
        return same and (not loopback or is_loopback(parts.hostname or ""))

    def allows_token(self, token: Optional[str]) -> bool:
        """Whether this is the token, compared in constant time."""
        if self.token is None:
            return True
        return token is not None and hmac.compare_digest(
            token.encode("utf-8", "surrogatepass"), self.token.encode("utf-8", "surrogatepass")
        )


def bearer(header: Optional[str]) -> Optional[str]:
    """The token of a header ``Authorization: Bearer TOKEN``; None without one."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def is_loopback(host: str) -> bool:
    """True for ``localhost``, ``127.0.0.1``, ``::1`` and the like."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(file: Optional[Path]) -> Optional[str]:
    """The token from a file, or else from the environment (`TOKEN_VARIABLE`); None if neither is given.

    Raises:
        UserError: for a file that cannot be read, and a token that is empty or contains spaces.
    """
    if file is not None:
        try:
            token, source = file.read_text(encoding="utf-8-sig").strip(), f"{file}: "
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise UserError(f"{file}: cannot read the token: {reason}") from error
    elif TOKEN_VARIABLE in os.environ:
        token, source = os.environ[TOKEN_VARIABLE].strip(), f"{TOKEN_VARIABLE}: "
    else:
        return None
    if not token or len(token.split()) != 1:
        raise UserError(f"{source}expected a token of one word")
    return token


def check_origin(origin: str) -> str:
    """Check that an origin is written as browsers do (raises UserError)."""
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or not parts.netloc or f"{parts.scheme}://{parts.netloc}" != origin:
        raise UserError(f"--allow-origin {origin}: expected scheme and host alone, as in https://example.org")
    return origin


@cache
def _page_file(name: str) -> bytes:
    return (PAGE / name).read_bytes()


def respond(request: Request, health: Mapping[str, Any]) -> Response:
    """Answer a request that does not ask for a websocket: the page's files, and /health as JSON."""
    # Before version 16, websockets rejects other methods itself, and does not tell the method.
    if getattr(request, "method", "GET") not in ("GET", "HEAD"):
        return plain(405, "only GET is served here")
    path = request.path.partition("?")[0]
    if path == HEALTH_PATH:
        return _response(200, json.dumps(health).encode(), "application/json")
    if path not in FILES:
        return plain(404, f"nothing here: the page is at /, streams are at {STREAM_PATH} (websocket)")
    name, kind = FILES[path]
    return _response(200, _page_file(name), f"{kind}; charset=utf-8", request.headers.get("Host"))


def plain(status: int, text: str) -> Response:
    """A response of one line of text."""
    return _response(status, f"{text}\n".encode(), "text/plain; charset=utf-8")


def _response(status: int, body: bytes, kind: str, host: Optional[str] = None) -> Response:
    """A response with strict security headers: the page may load its own files and reach its own server only."""
    # Some browsers do not apply 'self' to websockets, so the server's name is written out.
    sockets = f" ws://{host} wss://{host}" if host and SAFE_HOST.fullmatch(host) else ""
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
        f"connect-src 'self'{sockets}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Type": kind,
        "Content-Length": str(len(body)),
        "Connection": "close",
        "Cache-Control": "no-cache",
        "Content-Security-Policy": policy,
        "Permissions-Policy": "microphone=(self)",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    return Response(status, HTTPStatus(status).phrase, Headers(headers), body)

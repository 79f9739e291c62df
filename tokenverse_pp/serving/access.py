"""Who may connect: a token, and for browsers the page that they come from.

What the server answers to plain HTTP: the web page, and its state as JSON.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple
from urllib.parse import urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Response

from tokenverse_pp.base.errors import UserError

if TYPE_CHECKING:
    from websockets.http11 import Request

TOKEN_VARIABLE = "TOKENVERSE_TOKEN"


@dataclass(frozen=True)
class Access:
    """Rules of a server.

    Args:
        token: that clients must give; None: none is asked for.
        origins: web origins (``https://example.org``) besides the server's own whose pages may connect.
    """

    token: Optional[str] = None
    origins: Tuple[str, ...] = ()

    def allows_origin(self, origin: str, host: str, loopback: bool) -> bool:
        """Whether a page may connect.

        Args:
            origin: of the page, as the header ``Origin`` says (programs send none).
            host: the header ``Host``.
            loopback: the server listens on this machine alone. Then a page that calls itself by another name is none
                of its own, though that name may have been made to point here ("DNS rebinding").
        """
        if origin in self.origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:  # a bracket that is not closed
            return False
        same = parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
        return same and (not loopback or is_loopback(parts.hostname or ""))

    def allows_token(self, token: Optional[str]) -> bool:
        """Whether this is the token, compared in a time that does not depend on it."""
        if self.token is None:
            return True
        return token is not None and hmac.compare_digest(
            token.encode("utf-8", "surrogatepass"), self.token.encode("utf-8", "surrogatepass")
        )


def bearer(header: Optional[str]) -> Optional[str]:
    """The token of a header ``Authorization: Bearer TOKEN``; None where there is none."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def is_loopback(host: str) -> bool:
    """True for ``localhost``, ``127.0.0.1``, ``::1`` and their like."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(file: Optional[Path]) -> Optional[str]:
    """The token in a file, or else in the environment (`TOKEN_VARIABLE`); None where there is neither.

    Raises:
        UserError: for a file that cannot be read, or a token that is empty or has spaces in it.
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
    """An origin as browsers write it (raises UserError)."""
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or not parts.netloc or f"{parts.scheme}://{parts.netloc}" != origin:
        raise UserError(f"--allow-origin {origin}: expected scheme and host alone, as in https://example.org")
    return origin


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

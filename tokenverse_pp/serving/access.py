"""Who may use a server: tokens, and the origins of web pages."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple
from urllib.parse import urlsplit

from tokenverse_pp.base.errors import UserError

TOKEN_VARIABLE = "TOKENVERSE_TOKEN"
DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True)
class Access:
    """Access rules of a server.

    Args:
        token: token that clients must send; None: no token is required.
        origins: web origins (``https://example.org``) besides the server's own whose pages may connect.
    """

    token: Optional[str] = None
    origins: Tuple[str, ...] = ()

    def allows_origin(self, origin: str, host: str, loopback: bool) -> bool:
        """Whether a page may connect.

        Args:
            origin: origin of the page, from the header ``Origin`` (programs send none).
            host: the header ``Host``.
            loopback: whether the server listens on this machine only. A page under another host name is then not the
                server's own, even if that name resolves to this machine (DNS rebinding).
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
    """Return an origin; raises UserError if it is not written as browsers send it, since no page would match it."""
    with contextlib.suppress(ValueError):  # an unclosed bracket
        parts = urlsplit(origin)
        host = parts.netloc.lower().removesuffix(DEFAULT_PORTS.get(parts.scheme, ""))
        if parts.scheme in DEFAULT_PORTS and host and host.isascii() and origin == f"{parts.scheme}://{host}":
            return origin
    said = "expected scheme and host as browsers send them, as in https://example.org: lower case, no default port"
    raise UserError(f"--allow-origin {origin}: {said}")

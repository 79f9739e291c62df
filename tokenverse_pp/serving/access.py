"""Who may connect: a token, and for browsers the page that they come from."""

from __future__ import annotations

import hmac
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple
from urllib.parse import urlsplit

from tokenverse_pp.errors import UserError

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

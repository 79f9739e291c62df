"""The package that a server and its clients need besides those of the core."""

from __future__ import annotations

from tokenverse_pp.errors import UserError


def need_websockets() -> None:
    """See that the package websockets is there, and new enough (raises UserError)."""
    try:
        import websockets.asyncio.server  # noqa: F401
    except ImportError as error:
        raise UserError("streaming needs websockets >= 13: pip install 'tokenverse_pp[serve]'") from error

"""The package that a server and its clients need besides those of the core."""

from __future__ import annotations

from tokenverse_pp.errors import UserError, one_line


def need_websockets() -> None:
    """See that the package websockets is there, and new enough (raises UserError)."""
    try:
        import websockets.asyncio.server  # noqa: F401
    except Exception as error:  # one that is there may fail in other ways than ImportError
        said = f"streaming needs websockets >= 13 ({one_line(error)}): pip install 'tokenverse_pp[serve]'"
        raise UserError(said) from error

"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass

from tokenverse_pp.errors import UserError
from tokenverse_pp.serving.protocol import MOST_CONTROL


@dataclass(frozen=True)
class Limits:
    """What one stream, and all of them, may take.

    Args:
        streams: open at once; one more is refused.
        message_bytes: of one message; a longer one closes its stream (code 1009).
        waiting_seconds: of audio that may wait for the model in one stream; then no more is read from its connection
            until the model has caught up, and TCP holds the client back.
        stream_seconds: of audio in one stream.
        idle_seconds: without a message, before ``start`` and between messages.
        unsent_bytes: of events that wait for one client to read them. Partials do not count: only the newest waits.
        closing_seconds: for a client to take what is left and to close its side.
        batch: streams that go through the model together.

    Raises:
        UserError: for a limit that no stream could live with.
    """

    streams: int = 50
    message_bytes: int = 1 << 18
    waiting_seconds: float = 10.0
    stream_seconds: float = 4 * 3600.0
    idle_seconds: float = 30.0
    unsent_bytes: int = 1 << 18
    closing_seconds: float = 5.0
    batch: int = 32

    def __post_init__(self) -> None:
        lowest = {"message_bytes": MOST_CONTROL, "unsent_bytes": 1024, "streams": 1, "batch": 1}
        for name, value in vars(self).items():
            least = lowest.get(name, 0)
            if value < least or value == 0:
                above = f"at least {least}" if least else "more than 0"
                raise UserError(f"limit '{name}': expected {above}, got {value}")

    @property
    def connections(self) -> int:
        """Connections open at once, those among them that have not started a stream."""
        return 2 * self.streams + 8

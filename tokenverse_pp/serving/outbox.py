"""What waits to be sent to one client: bounded, and the newest partial only."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Deque, Optional, Tuple


class Outbox:
    """Messages in their order, of which a newer partial replaces the one that still waits.

    Args:
        most: characters of messages that may wait, partials left out.
    """

    def __init__(self, most: int):
        self.most = most
        self._queue: Deque[Tuple[str, bool]] = deque()
        self._size = 0  # of all but the partial
        self._has_partial = False
        self._ended = False
        self._changed = asyncio.Event()

    def put(self, message: str, partial: bool = False) -> bool:
        """Add a message; False if too much waits already (it is not added then). After `end` nothing is added."""
        if self._ended:
            return True
        if partial:
            if self._has_partial:
                self._queue = deque(item for item in self._queue if not item[1])
            self._has_partial = True
        elif self._size > self.most:
            return False
        else:
            self._size += len(message)
        self._queue.append((message, partial))
        self._changed.set()
        return True

    def end(self, message: Optional[str] = None, clear: bool = False) -> None:
        """Let nothing follow what waits but this message; ``clear``: throw away what waits."""
        if self._ended:
            return
        if clear:
            self._queue.clear()
            self._size, self._has_partial = 0, False
        if message is not None:
            self._queue.append((message, False))
            self._size += len(message)
        self._ended = True
        self._changed.set()

    async def get(self) -> Optional[str]:
        """The next message, waiting for one; None at the end."""
        while not self._queue:
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        message, partial = self._queue.popleft()
        if partial:
            self._has_partial = False
        else:
            self._size -= len(message)
        return message

"""Sets of names in little memory: a manifest of a million cuts has a million ids."""

from __future__ import annotations

from array import array

_HASH_BITS = (1 << 64) - 1


class NameSet:
    """A set that keeps the 64-bit hashes of names, not the names: 16 to 32 bytes a name, with no upper bound.

    Two different names are taken for one with a chance of n^2 / 2^65 among n names (3e-8 at a million), so that
    what it calls a repeated name is one. Open addressing with linear probing (Knuth, TAOCP 3, algorithm 6.4 L).
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 64))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, name: str) -> bool:
        """Put a name in; True if it was not there before."""
        return self._put((hash(name) & _HASH_BITS) or 1)  # 0 marks a free slot

    def update(self, other: NameSet) -> None:
        """Put in all that another set holds."""
        for value in other._slots:
            if value:
                self._put(value)

    def _put(self, value: int) -> bool:
        slots, mask = self._slots, len(self._slots) - 1
        at = value & mask
        while slots[at]:
            if slots[at] == value:
                return False
            at = (at + 1) & mask
        slots[at] = value
        self._count += 1
        if 2 * self._count > mask:
            self._grow()
        return True

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(16 * len(old)))
        self._count = 0
        for value in old:
            if value:
                self._put(value)

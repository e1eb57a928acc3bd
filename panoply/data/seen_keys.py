"""A set of 64-bit keys that takes at most 32 bytes a key, where Python's own takes about 100."""

from __future__ import annotations

from array import array

SMALLEST = 1024


class SeenKeys:
    """Hash table of open addressing that only grows."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * SMALLEST))
        self._num = 0

    def add(self, key: int) -> bool:
        """Adds a key in [1, 2^64); returns whether it was there before."""
        place = self._place(key)
        if self._slots[place]:
            return True
        self._slots[place] = key
        self._num += 1
        if 2 * self._num > len(self._slots):
            self._grow()
        return False

    def __contains__(self, key: int) -> bool:
        """Returns whether a key was added."""
        return self._slots[self._place(key)] != 0

    def _place(self, key: int) -> int:
        """Returns the slot that holds a key, or the free one where it belongs."""
        slots, mask = self._slots, len(self._slots) - 1
        place = key & mask
        while slots[place] and slots[place] != key:
            place = (place + 1) & mask
        return place

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(2 * old.itemsize * len(old)))
        for key in old:
            if key:
                self._slots[self._place(key)] = key

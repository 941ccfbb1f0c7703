"""Which hashes were there before, in less than half of the memory of a set."""

from __future__ import annotations

SIZE = 16
"""Bytes of a hash."""

_EMPTY = bytes(SIZE)
_FULL = 0.7


class Distinct:
    """Hashes of 16 bytes, evenly spread as those of `hashlib` are: 23 to 46 bytes of memory each, for a time
    half as much again while the table doubles. Open addressing with linear probing (Knuth 1998, "Sorting and
    Searching", section 6.4)."""

    def __init__(self) -> None:
        self._slots = bytearray(1024 * SIZE)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, hash_: bytes) -> bool:
        at = self._place(hash_)
        return self._slots[at : at + SIZE] == hash_

    def add(self, hash_: bytes) -> bool:
        """Whether it was new."""
        at = self._place(hash_)
        if self._slots[at : at + SIZE] == hash_:
            return False
        self._slots[at : at + SIZE] = hash_
        self._count += 1
        if self._count * SIZE > _FULL * len(self._slots):
            self._grow()
        return True

    def _place(self, hash_: bytes) -> int:
        """Where it is, or would be."""
        slots, last = self._slots, len(self._slots) - SIZE
        at = int.from_bytes(hash_[:8], "little") * SIZE & last
        while (found := slots[at : at + SIZE]) != hash_ and found != _EMPTY:
            at = at + SIZE & last
        return at

    def _grow(self) -> None:
        old, self._slots = self._slots, bytearray(2 * len(self._slots))
        for at in range(0, len(old), SIZE):
            if (hash_ := old[at : at + SIZE]) != _EMPTY:
                place = self._place(bytes(hash_))
                self._slots[place : place + SIZE] = hash_

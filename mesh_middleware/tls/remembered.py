"""What was found out about tokens, by hash: bounded, the good apart from the bad.

Apart, because bad tokens cost nothing to make: a flood of them fills its own half and drives no
good one out. Only hashes are kept as keys, so that what is remembered cannot be used as a token.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")

LIMIT = 1024
"""How many good ones, and how many bad ones."""


class Remembered(Generic[T]):
    """The last `limit` good and bad keys that were used. Safe from any thread."""

    __slots__ = ("_bad", "_good", "_limit", "_lock")

    def __init__(self, limit: int = LIMIT) -> None:
        self._good: OrderedDict[bytes, T] = OrderedDict()
        self._bad: OrderedDict[bytes, None] = OrderedDict()
        self._limit = limit
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._good) + len(self._bad)

    def good(self, key: bytes) -> T | None:
        """What was remembered for a good key; None when it is not known as good."""
        with self._lock:
            found = self._good.get(key)
            if found is not None:
                self._good.move_to_end(key)
            return found

    def is_bad(self, key: bytes) -> bool:
        """Whether `key` is known as bad."""
        with self._lock:
            if key not in self._bad:
                return False
            self._bad.move_to_end(key)
            return True

    def add_good(self, key: bytes, value: T) -> None:
        """Remember a good key; the one that was not used for longest makes room."""
        with self._lock:
            self._good[key] = value
            if len(self._good) > self._limit:
                self._good.popitem(last=False)

    def add_bad(self, key: bytes) -> None:
        """Remember a bad key, which is no longer a good one."""
        with self._lock:
            self._good.pop(key, None)
            self._bad[key] = None
            if len(self._bad) > self._limit:
                self._bad.popitem(last=False)

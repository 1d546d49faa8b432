"""Who wants to hear of changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Subscribers(Generic[T]):
    """Callbacks that are told of each `T`. Safe from any thread, and after a fork: has no lock.

    They run in the thread that tells, must be quick and not block; what one raises is logged to
    `logger` in the words of `failed`, and keeps nobody else from hearing.
    """

    def __init__(self, logger: logging.Logger, failed: str) -> None:
        self._logger = logger
        self._failed = failed
        self._callbacks: dict[object, Callable[[T], object]] = {}

    def add(self, callback: Callable[[T], object]) -> Callable[[], None]:
        """Tell `callback` from now on; returns the way out."""
        key = object()
        self._callbacks[key] = callback

        def remove() -> None:
            self._callbacks.pop(key, None)

        return remove

    def tell(self, news: T) -> None:
        """Call everybody with `news`."""
        for callback in tuple(self._callbacks.values()):
            try:
                callback(news)
            except Exception:  # somebody else's code at our thread's edge
                self._logger.exception("%s", self._failed)

"""The launcher owns the signals: uvicorn would raise SIGTERM again after a clean stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_OURS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """SIGTERM and SIGINT while the launcher runs: the first stops, the second forces. SIGHUP
    restarts, before that; from a terminal that was closed it stops.

    `stopping` is set by the first. The callbacks run in the main thread, between two bytecodes.
    `terminal`: the file that may be one.
    """

    def __init__(self, terminal: int = 0) -> None:
        self._terminal = terminal if os.isatty(terminal) else None
        self.stopping = threading.Event()
        self.forced = threading.Event()
        self._on_stop: Callable[[], None] = lambda: None
        self._on_force: Callable[[], None] = lambda: None
        self._on_restart: Callable[[], None] = lambda: None

    def call(
        self, *, stop: Callable[[], None], force: Callable[[], None], restart: Callable[[], None]
    ) -> None:
        """What to do from now on; a stop is done at once when its signal was there before."""
        self._on_stop, self._on_force, self._on_restart = stop, force, restart
        if self.stopping.is_set():
            stop()

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if signum == signal.SIGHUP and not self._hung_up():
            if not self.stopping.is_set():
                self._on_restart()
        elif not self.stopping.is_set():
            self.stopping.set()
            self._on_stop()
        elif not self.forced.is_set():
            self.forced.set()
            self._on_force()

    def _hung_up(self) -> bool:
        return self._terminal is not None and not os.isatty(self._terminal)

    @contextmanager
    def owned(self) -> Iterator[Signals]:
        """Handle the signals inside, restore the handlers after. Only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {s: signal.signal(s, self._handle) for s in _OURS}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

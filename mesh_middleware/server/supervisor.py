"""``--workers``: several serving processes on one socket, kept running until told to stop.

uvicorn's own supervisor hides why a worker ended and decides about the signals; this one passes
the exit code of a worker that never served on to the launcher, and starts any other again.
"""

from __future__ import annotations

import logging
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

from mesh_middleware.server.exits import ExitCode
from mesh_middleware.server.heartbeat import Board, Phase
from mesh_middleware.server.worker import ChildProcess, Settings

logger = logging.getLogger("mesh_middleware.server")

RESTART_SECONDS = 1.0
"""At most one start per row in this time: a worker that dies at once must not busy the machine."""

_TICK_SECONDS = 0.1

multiprocessing.allow_connection_pickling()  # sockets travel to spawned processes
_spawn = multiprocessing.get_context("spawn")


class Supervisor:
    """Keeps one worker per row of `board` running.

    ``stop()`` and ``force()`` can be called from any thread or signal handler, at any time.
    """

    def __init__(
        self,
        settings: Settings,
        board: Board,
        sockets: list[socket.socket],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._board = board
        self._sockets = sockets
        self._clock = clock
        self._stopping = threading.Event()
        self._processes: dict[int, SpawnProcess] = {}
        self._started = dict.fromkeys(range(board.slots), float("-inf"))

    def stop(self) -> None:
        """Let every worker finish what is open; `run` returns when all have ended."""
        self._stopping.set()

    def force(self) -> None:
        """End the workers now."""
        self._stopping.set()
        for process in tuple(self._processes.values()):
            process.kill()

    def run(self) -> ExitCode:
        """Serve until stopped, or until a worker says that no worker can serve."""
        while not self._stopping.is_set():
            self._start_missing()
            code = self._reap()
            if code is not None:
                self._end_all()
                return code
            # the handler of a signal runs, but does not end the wait: hence a short one
            wait([process.sentinel for process in self._processes.values()], _TICK_SECONDS)
        self._end_all()
        return ExitCode.OK

    def _start_missing(self) -> None:
        now = self._clock()
        for slot in range(self._board.slots):
            if slot in self._processes or now - self._started[slot] < RESTART_SECONDS:
                continue
            self._board.clear(slot)
            self._started[slot] = now
            child = ChildProcess(self._settings, self._board, slot)
            process = _spawn.Process(target=child, args=(self._sockets,), name=f"mesh-{slot}")
            process.start()
            self._processes[slot] = process

    def _reap(self) -> ExitCode | None:
        """Take ended workers off the list; the exit code of one that must not be started again."""
        for slot, process in tuple(self._processes.items()):
            if process.exitcode is None:
                continue
            del self._processes[slot]
            served = self._board.phases()[slot] >= Phase.SERVING
            self._board.clear(slot)
            if not served and process.exitcode > ExitCode.OK:
                # app, agent, token or options: the next one would end the same way
                return _code(process.exitcode)
            if not self._stopping.is_set():
                logger.warning(
                    "worker %s ended with %s; starting another", process.pid, process.exitcode
                )
        return None

    def _end_all(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join()


def _code(exitcode: int) -> ExitCode:
    try:
        return ExitCode(exitcode)
    except ValueError:
        return ExitCode.RUNTIME

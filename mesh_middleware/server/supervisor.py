"""``--workers``: several serving processes on one socket, kept running until told to stop.

uvicorn's own supervisor hides why a worker ended and decides about the signals; this one passes
the exit code of a worker that never served on to the launcher, and starts any other again.

A restart (SIGHUP) is a round: one worker after the other is replaced.

1. A replacement starts in the row to spare, with the code that is there now.
2. It serves and can decide: the old one is told to finish what is open. Both have the socket, so
   a new connection always finds one of them. The old one ended: on to the next.
3. It ends before that: the round is over, and the old one stays.
4. The old one ends before that: the replacement is an ordinary worker.

A request for a restart during a round is kept: one further round follows, whatever became of the
first, because some of its workers may have read the code before the last change.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

from mesh_middleware.server.exits import ExitCode
from mesh_middleware.server.heartbeat import Board, Phase
from mesh_middleware.server.worker import ChildProcess, Settings

logger = logging.getLogger("mesh_middleware.server")

SPARE_ROWS = 1
"""Rows of the board beyond the number of workers: for a replacement."""

RESTART_SECONDS = 1.0
"""Between two starts when a worker dies at once: it must not busy the machine."""

RETRY_SECONDS = 5.0
"""After a worker that could not serve, while others can: the next one may."""

STOP_SIGNAL = signal.SIGUSR1
"""By which workers are stopped. Not SIGTERM, which whole groups get that only the parent should."""

_TICK_SECONDS = 0.1

multiprocessing.allow_connection_pickling()  # sockets travel to spawned processes
_spawn = multiprocessing.get_context("spawn")


@dataclass(eq=False, slots=True)
class _Child:
    """A worker's process; `leaving`: it was told to finish."""

    process: SpawnProcess
    slot: int
    started: float
    leaving: bool = False

    def leave(self) -> None:
        """Tell it to finish, once."""
        pid = self.process.pid
        if not self.leaving and pid is not None and self.process.exitcode is None:
            self.leaving = True
            os.kill(pid, STOP_SIGNAL)


@dataclass(eq=False, slots=True)
class _Round:
    """A restart: workers to be replaced, and the (old, new) that are at it."""

    waiting: list[_Child]
    turn: tuple[_Child, _Child] | None = None


class Supervisor:
    """Keeps one worker per row of `board` running, but for the row to spare.

    ``stop()``, ``force()`` and ``restart()`` can be called from any thread or signal handler, at
    any time.
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
        self._workers = board.slots - SPARE_ROWS
        self._stopping = threading.Event()
        # not an Event: `run` clears it in the main thread, where the handler may set it meanwhile
        self._asked = False
        self._children: dict[int, _Child] = {}
        self._not_before = float("-inf")
        self._round: _Round | None = None

    def stop(self) -> None:
        """Let every worker finish what is open; `run` returns when all have ended."""
        self._stopping.set()

    def force(self) -> None:
        """End the workers now."""
        self._stopping.set()
        for child in tuple(self._children.values()):
            child.process.kill()

    def restart(self) -> None:
        """Replace every worker, one after the other; once more when that is going on."""
        self._asked = True

    def run(self) -> ExitCode:
        """Serve until stopped, or until a worker says that no worker can serve."""
        while not self._stopping.is_set():
            self._start_missing()
            self._go_round()
            code = self._reap()
            if code is not None:
                self._end_all()
                return code
            # the handler of a signal runs, but does not end the wait: hence a short one
            wait([child.process.sentinel for child in self._children.values()], _TICK_SECONDS)
        self._end_all()
        return ExitCode.OK

    def _start_missing(self) -> None:
        replacing = self._round is not None and self._round.turn is not None
        missing = self._workers + replacing
        missing -= sum(not child.leaving for child in self._children.values())
        if self._clock() >= self._not_before:
            for _ in range(missing):
                self._start()

    def _start(self) -> _Child:
        slot = next(slot for slot in range(self._board.slots) if slot not in self._children)
        target = ChildProcess(self._settings, self._board, slot, STOP_SIGNAL)
        process = _spawn.Process(target=target, args=(self._sockets,), name=f"mesh-{slot}")
        process.start()
        child = self._children[slot] = _Child(process, slot, self._clock())
        return child

    def _go_round(self) -> None:
        """One step of the restart, when its time has come."""
        if self._round is None:
            if self._asked:
                self._asked = False
                self._round = _Round(list(self._children.values()))
                logger.info("restarting %d workers, one after the other", self._workers)
            return
        if any(child.leaving for child in self._children.values()):
            return
        if self._round.turn is not None:
            old, new = self._round.turn
            if self._board.ready(new.slot):
                self._round.turn = None
                old.leave()
                logger.info("worker %s serves, %s finishes", new.process.pid, old.process.pid)
        elif self._round.waiting:
            self._round.turn = (self._round.waiting.pop(0), self._start())
        else:
            self._round = None
            logger.info("all workers are restarted")

    def _reap(self) -> ExitCode | None:
        """Take ended workers off the list; the exit code of one that must not be started again."""
        for child in tuple(self._children.values()):
            if child.process.exitcode is None:
                continue
            del self._children[child.slot]
            served = self._board.phases()[child.slot] >= Phase.SERVING
            self._board.clear(child.slot)
            if child.leaving or self._replaced(child):
                continue
            code = self._after(child, child.process.exitcode, served=served)
            if code is not None:
                return code
        return None

    def _replaced(self, child: _Child) -> bool:
        """Take `child`, which ended by itself, out of the round; True when nobody has to follow."""
        if self._round is None:
            return False
        self._round.waiting = [other for other in self._round.waiting if other is not child]
        if self._round.turn is None or child not in self._round.turn:
            return False
        old, new = self._round.turn
        self._round.turn = None
        if child is new:
            self._round = None
            logger.error(
                "worker %s ended with %s before it could serve: worker %s stays, and nothing more "
                "is restarted",
                *(new.process.pid, new.process.exitcode, old.process.pid),
            )
        return True

    def _after(self, child: _Child, exitcode: int, *, served: bool) -> ExitCode | None:
        """Start another after `child`, at once or later; else the code that ends everything."""
        self._not_before = child.started + RESTART_SECONDS
        if not served and exitcode > ExitCode.OK:
            if not any(self._board.ready(slot) for slot in self._children):
                # app, agent, token or options: the next one would end the same way
                return _code(exitcode)
            self._not_before = self._clock() + RETRY_SECONDS
        if not self._stopping.is_set():
            pid = child.process.pid
            logger.warning("worker %s ended with %s; starting another", pid, exitcode)
        return None

    def _end_all(self) -> None:
        for child in self._children.values():
            child.leave()
        for child in self._children.values():
            child.process.join()


def _code(exitcode: int) -> ExitCode:
    try:
        return ExitCode(exitcode)
    except ValueError:
        return ExitCode.RUNTIME

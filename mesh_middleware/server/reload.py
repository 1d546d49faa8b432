"""``--reload``: uvicorn watches the files, our worker serves."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from uvicorn.supervisors import ChangeReload

from mesh_middleware.server.exits import ExitCode
from mesh_middleware.server.heartbeat import Board
from mesh_middleware.server.worker import ChildProcess, Settings


class Reloader(ChangeReload):  # type: ignore[misc, valid-type]
    """uvicorn's reloader, which leaves the signals to the launcher.

    A worker that cannot start (a syntax error, an agent that is away) is started again at the
    next change of a file; the reloader itself goes on.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        settings: Settings,
        board: Board,
        sockets: list[socket.socket],
        own_signals: Callable[[], None],
    ) -> None:
        super().__init__(config, target=ChildProcess(settings, board), sockets=sockets)
        self._own_signals = own_signals

    def startup(self) -> None:
        """Start the first worker; uvicorn sets its own signal handlers here."""
        super().startup()
        self._own_signals()

    def stop(self) -> None:
        """Let the worker finish what is open, and return from `run`."""
        self.should_exit.set()

    def force(self) -> None:
        """End the worker now."""
        self.should_exit.set()
        self.process.kill()

    def serve(self) -> ExitCode:
        """Serve and watch until stopped."""
        self.run()
        return ExitCode.OK

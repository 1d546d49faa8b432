"""The development agent's server thread: uvicorn, and the clock that moves the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading

import uvicorn

from mesh_middleware._listening import close_listeners
from mesh_middleware.devagent.app import create_app
from mesh_middleware.devagent.files import WatchedFiles
from mesh_middleware.devagent.store import Store

_log = logging.getLogger("mesh_middleware.devagent")

TICK_SECONDS = 0.2
"""How often expired checks, due leaves and the intentions file are looked at."""


class AgentServer(uvicorn.Server):
    """uvicorn that says when it serves, and looks after the store while it does."""

    def __init__(self, store: Store, files: WatchedFiles | None) -> None:
        config = uvicorn.Config(
            create_app(store),
            lifespan="off",
            ws="none",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=120,
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)
        self.serving = threading.Event()
        self._store = store
        self._files = files

    def serve_socket(self, sock: socket.socket) -> None:
        """The thread's body: serve until `should_exit`."""
        try:
            asyncio.run(self.serve([sock]))
        finally:
            self.serving.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn, then say that requests are served."""
        await super().startup(sockets)
        self._ticker = asyncio.create_task(self._tick_forever())
        self.serving.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn, after the watch over the store has ended."""
        self._ticker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticker
        await close_listeners(self.servers)
        await super().shutdown(sockets)

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                self._store.tick()
                if self._files is not None:
                    self._files.check(self._store)
            except Exception:  # the edge of the agent's own thread: it has to go on
                _log.exception("the development agent could not look after its state")

"""Tell open WebSockets that the server goes away, before uvicorn cuts them.

uvicorn (0.54) ends them with 1012, which clients read as "restarting, come back here". 1001
(going away, RFC 6455 7.4.1) is what a service that leaves the mesh means. It is done on the ASGI
level, so that it holds for each of uvicorn's WebSocket implementations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final

from mesh_middleware._types import ASGIApp, Message, Receive, Scope, Send

GOING_AWAY: Final = 1001


class _Open:
    """One WebSocket. Its application's `receive` stays the server's own, which gives it the
    disconnect when the close handshake is done or the connection is cut."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._accepted = False
        self._closed = False
        self._gone = False

    async def send(self, message: Message) -> None:
        if self._gone:
            raise ConnectionAbortedError("the server is going away")  # ASGI 2.4: an OSError
        self._accepted |= message["type"] == "websocket.accept"
        self._closed |= message["type"] in ("websocket.close", "websocket.http.response.start")
        await self._send(message)

    async def close(self) -> None:
        if self._accepted and not self._closed and not self._gone:
            self._gone = True
            with suppress(OSError, RuntimeError):  # the client was faster
                await self._send({"type": "websocket.close", "code": GOING_AWAY, "reason": ""})


class GoAway:
    """An ASGI wrapper that can close every open WebSocket with 1001."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._open: set[_Open] = set()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one scope; only WebSockets are watched, everything else passes without a frame."""
        if scope["type"] != "websocket":
            return self.app(scope, receive, send)
        return self._watched(scope, receive, send)

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = _Open(send)
        self._open.add(connection)
        try:
            await self.app(scope, receive, connection.send)
        finally:
            self._open.discard(connection)

    async def close_all(self) -> None:
        """Close those that are open now; returns when the close frames are written."""
        await asyncio.gather(*(connection.close() for connection in tuple(self._open)))

"""Tell clients that the server goes away, before uvicorn cuts them.

Open WebSockets: uvicorn (0.54) ends them with 1012, which clients read as "restarting, come back
here". 1001 (going away, RFC 6455 7.4.1) is what a service that leaves the mesh means.

Connections of HTTP/1.1 that wait for their next request: uvicorn closes them, and a request that
is on its way at that moment is lost. So they stay open for a while (see `UvicornServer`), and the
response to the next request says ``connection: close`` (RFC 9112 9.6). Over HTTP/2 uvicorn leaves
that header out.

It is done on the ASGI level, so that it holds for each of uvicorn's implementations.
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
        self.gone = False

    async def send(self, message: Message) -> None:
        if self.gone:
            raise ConnectionAbortedError("the server is going away")  # ASGI 2.4: an OSError
        self._accepted |= message["type"] == "websocket.accept"
        self._closed |= message["type"] in ("websocket.close", "websocket.http.response.start")
        await self._send(message)

    async def close(self) -> None:
        if self._accepted and not self._closed and not self.gone:
            self.gone = True
            with suppress(OSError, RuntimeError):  # the client was faster
                await self._send({"type": "websocket.close", "code": GOING_AWAY, "reason": ""})


class GoAway:
    """An ASGI wrapper that can close every open WebSocket with 1001, and end HTTP connections."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._open: set[_Open] = set()
        self._going = False

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one scope; before the end only WebSockets are watched, nothing else has a frame."""
        if scope["type"] == "websocket":
            return self._watched(scope, receive, send)
        if self._going and scope["type"] == "http":
            return self.app(scope, receive, _closing(send))
        return self.app(scope, receive, send)

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = _Open(send)
        self._open.add(connection)
        try:
            await self.app(scope, receive, connection.send)
        except OSError:  # what we gave it ourselves, and nobody's mistake
            if not connection.gone:
                raise
        finally:
            self._open.discard(connection)

    async def close_all(self) -> None:
        """Close the WebSockets that are open now; returns when the close frames are written.

        From now on each response over HTTP/1.1 is the last one of its connection.
        """
        self._going = True
        await asyncio.gather(*(connection.close() for connection in tuple(self._open)))


def _closing(send: Send) -> Send:
    async def send_closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"connection", b"close")]
            message = {**message, "headers": headers}
        await send(message)

    return send_closing

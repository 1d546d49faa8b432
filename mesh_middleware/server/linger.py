"""Cut connections whose client does not answer our goodbye, so that a stop need not wait for it.

Each side of a TLS connection ends it with a close_notify. asyncio and uvloop wait 30 s for that of
the other side (``ssl_shutdown_timeout`` of ``loop.create_server``, which uvicorn 0.54 does not
set), and uvicorn waits for them. A client that keeps an idle connection in a pool and reads from
it only with its next request, as httpx and requests do, sends none: one such client would hold
each stop for half a minute.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection
from typing import Any

import uvicorn

LINGER_SECONDS = 1.0
"""How long the other side has for its goodbye: many round trips."""

_LOOK_SECONDS = 0.1


class CuttingServer(uvicorn.Server):
    """uvicorn's server, which cuts such connections while it stops."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain as uvicorn does."""
        cutting = asyncio.create_task(cut_lingering(self.server_state.connections))
        try:
            await super().shutdown(sockets=sockets)
        finally:
            cutting.cancel()


async def cut_lingering(connections: Collection[Any]) -> None:
    """Abort each of `connections` once it is closing for `LINGER_SECONDS`; for a task to cancel.

    `connections`: uvicorn's protocols, looked at again and again. One that has something to send
    is left to the loop: its client may be slow.
    """
    loop = asyncio.get_running_loop()
    closing: dict[Any, float] = {}
    while True:
        now = loop.time()
        for connection in tuple(connections):
            transport = getattr(connection, "transport", None)
            if transport is None or not transport.is_closing():
                continue
            over = now - closing.setdefault(connection, now) >= LINGER_SECONDS
            if over and not _unsent(transport):
                transport.abort()
        await asyncio.sleep(_LOOK_SECONDS)


def _unsent(transport: asyncio.WriteTransport) -> int:
    """Bytes that wait to be sent."""
    try:
        return transport.get_write_buffer_size()
    except AttributeError:  # asyncio's TLS transport, closed twice (Python 3.11): nothing is known
        return 0

"""Cut connections whose client does not answer our goodbye, so that a stop need not wait for it.

Each side of a TLS connection ends it with a close_notify. asyncio and uvloop wait 30 s for that of
the other side (``ssl_shutdown_timeout`` of ``loop.create_server``, which uvicorn 0.54 does not
set), and uvicorn waits for them. A client that keeps an idle connection in a pool and reads from
it only with its next request, as httpx and requests do, sends none: one such client would hold
each stop for half a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import struct
import termios
from collections.abc import AsyncIterator, Collection
from typing import Any

LINGER_SECONDS = 1.0
"""How long the other side has after our close: for its goodbye, once it has everything else, and
for reading why, where that is a line. Many round trips."""

_LOOK_SECONDS = 0.1


@contextlib.asynccontextmanager
async def lingering_cut(connections: Collection[Any]) -> AsyncIterator[None]:
    """While in the block, abort each of `connections` that only waits for its client's goodbye.

    `connections`: uvicorn's protocols, looked at again and again. One that has something to send
    is left to the loop: its client may be slow.
    """
    cutting = asyncio.create_task(_cut(connections))
    try:
        yield
    finally:
        cutting.cancel()


async def _cut(connections: Collection[Any]) -> None:
    loop = asyncio.get_running_loop()
    waiting: dict[Any, float] = {}  # since when there was nothing to send, at no look
    while True:
        now = loop.time()
        for connection in tuple(connections):
            transport = getattr(connection, "transport", None)
            if transport is None or not transport.is_closing() or unsent(transport):
                waiting.pop(connection, None)
            elif now - waiting.setdefault(connection, now) >= LINGER_SECONDS:
                transport.abort()
        await asyncio.sleep(_LOOK_SECONDS)


def unsent(transport: asyncio.WriteTransport) -> int:
    """Bytes that the other side's kernel has not taken yet, as far as `transport` and ours tell.

    A transport below a TLS transport may hold more for a moment, until ours takes it.
    """
    try:
        held = transport.get_write_buffer_size()
    except AttributeError:  # asyncio's TLS transport, closed twice (Python 3.11): nothing is known
        held = 0
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return held
    queued: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    return held + queued  # Linux: tcp(7), SIOCOUTQ

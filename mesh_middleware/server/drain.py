"""How open connections of HTTP/1.1 end when the server stops: each where no request can be lost.

uvicorn (0.54) closes an idle connection at once. A client may have sent a request on it just then,
and cannot know whether it was served; httpx, as most, does not send it again. So each ends as on
any other day:

1. The response to its next request says ``connection: close`` (`GoAway` adds it).
2. It has been idle for ``--timeout-keep-alive``: uvicorn's own timer closes it.
3. It never carried a request: closed after that same time.
4. Its handshake is not done: it will be one of the above. uvicorn does not know of it yet and would
   end the loop under it (asyncio's of Python 3.11, and uvloop 0.23).

Where an idle one was closed, the client's goodbye is not waited for: one with a pool of blocking
sockets says it when it looks at them the next time. That its kernel has everything is enough.

WebSockets and HTTP/2 are uvicorn's: they have close frames of their own.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import math
import struct
import termios
from typing import Any

import uvicorn

from mesh_middleware.server.bounds import BoundedHead
from mesh_middleware.server.protocols import shaking_hands

logger = logging.getLogger("mesh_middleware.server")

_TICK_SECONDS = 0.05

_BUSY = object()


async def let_clients_go(server: uvicorn.Server, *, patient: bool) -> None:
    """Wait until the connections have ended, or `server` is forced, or its time to drain is over.

    The listeners are closed already. Not `patient`: idle connections are closed at once. What is
    left of the time to drain stays uvicorn's.
    """
    loop, config = asyncio.get_running_loop(), server.config
    limit = config.timeout_graceful_shutdown or 0  # `uvicorn_config` never leaves it None
    started, told = loop.time(), False
    idle: dict[BoundedHead, Any] = {}  # those idle at the last look, with their last request
    while True:
        await asyncio.sleep(_TICK_SECONDS)  # first: what was accepted last is no handshake yet
        passed = loop.time() - started
        still = [c for c in server.server_state.connections if isinstance(c, BoundedHead)]
        if server.force_exit or passed >= limit or not (still or shaking_hands()):
            break
        young = patient and passed < config.timeout_keep_alive
        for connection in still:
            if not connection.transport.is_closing():
                idle[connection] = connection.cycle if connection.idle() else _BUSY
                if not young and (connection.cycle is None or not patient):
                    connection.shutdown()
            # no request came since it was idle, so that no response is on its way
            elif idle.get(connection, _BUSY) is connection.cycle and not unacknowledged(connection):
                connection.transport.abort()
        if still and not told:
            told = True
            logger.info("waiting for the clients of %d connections", len(still))
    config.timeout_graceful_shutdown = max(0, math.ceil(limit - passed))


def unacknowledged(connection: BoundedHead) -> int:
    """How many bytes our kernel holds that the client's has not taken yet.

    Linux: tcp(7), SIOCOUTQ. What the transport itself holds does not count.
    """
    sock = connection.transport.get_extra_info("socket")
    if sock.fileno() < 0:
        return 0
    number: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    return number

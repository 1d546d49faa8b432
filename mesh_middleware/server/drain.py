"""How open connections of HTTP/1.1 end when the server stops: each where no request can be lost.

uvicorn (0.54) closes an idle connection at once. A client may have sent a request on it just then,
and cannot know whether it was served; httpx, as most, does not send it again. So each ends as on
any other day:

1. The response to its next request says ``connection: close`` (`GoAway` adds it).
2. It has been idle for ``--timeout-keep-alive``: uvicorn's own timer closes it.
3. It never carried a request: closed after that same time.
4. Its handshake is not done: it will be one of the above. uvicorn does not know of it yet and would
   end the loop under it (asyncio's of Python 3.11, and uvloop 0.23).

WebSockets and HTTP/2 are uvicorn's: they have close frames of their own.
"""

from __future__ import annotations

import asyncio
import logging
import math

import uvicorn

from mesh_middleware.server.bounds import BoundedHead
from mesh_middleware.server.protocols import shaking_hands

logger = logging.getLogger("mesh_middleware.server")

_TICK_SECONDS = 0.05


async def let_clients_go(server: uvicorn.Server, *, patient: bool) -> None:
    """Wait until the connections have ended, or `server` is forced, or its time to drain is over.

    The listeners are closed already. Not `patient`: idle connections are closed at once. What is
    left of the time to drain stays uvicorn's.
    """
    loop, config = asyncio.get_running_loop(), server.config
    limit = config.timeout_graceful_shutdown or 0  # `uvicorn_config` never leaves it None
    started, told = loop.time(), False
    while True:
        await asyncio.sleep(_TICK_SECONDS)  # first: what was accepted last is no handshake yet
        passed = loop.time() - started
        still = [c for c in server.server_state.connections if isinstance(c, BoundedHead)]
        if server.force_exit or passed >= limit or not (still or shaking_hands()):
            break
        young = patient and passed < config.timeout_keep_alive
        for connection in still:
            unused = connection.cycle is None
            if not young and (unused or not patient) and not connection.transport.is_closing():
                connection.shutdown()
        if still and not told:
            told = True
            logger.info("waiting for the clients of %d connections", len(still))
    config.timeout_graceful_shutdown = max(0, math.ceil(limit - passed))

"""How a server stops to listen without losing whom it has just accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

_TURNS = 5
"""Of the loop: from accepting a connection until its protocol knows takes four."""


async def close_listeners(servers: Iterable[asyncio.Server]) -> None:
    """Close the listeners of `servers`, in the loop that they are of.

    asyncio (3.11) forgets a connection, open, that it accepted in the very turn of the loop in
    which its listener is closed. So nobody is accepted any more, those become known, and only then
    the listeners are closed. uvloop has no such moment.
    """
    loop = asyncio.get_running_loop()
    selecting = isinstance(loop, asyncio.SelectorEventLoop)
    closing = list(servers)
    for server in closing if selecting else ():
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
    for _ in range(_TURNS if selecting else 0):
        await asyncio.sleep(0)
    for server in closing:
        server.close()

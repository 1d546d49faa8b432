"""A connection whose next request has to come in time, whatever it speaks."""

from __future__ import annotations

import asyncio
from typing import Any

from mesh_middleware.server.linger import LINGER_SECONDS

HEAD_SECONDS = 30.0
"""From the end of the handshake, or the first byte of a later request, to the end of its head. On
HTTP/2 the first byte of anything counts, while no request is open."""


class Awaited:
    """Mixed into a protocol of uvicorn, before it."""

    transport: Any
    loop: asyncio.AbstractEventLoop
    _timer: asyncio.TimerHandle | None = None
    _ending = False

    def connection_made(self, transport: Any) -> None:
        """As in the base class; the first head has to come."""
        super().connection_made(transport)  # type: ignore[misc]
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """As in the base class."""
        self._disarm()
        super().connection_lost(exc)  # type: ignore[misc]

    def _arm(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        # a WebSocket has taken the connection over
        if self.transport.get_protocol() is self and not self.transport.is_closing():
            self._end()

    def _end(self) -> None:
        """Close; a peer that goes on sending would be listened to for half a minute more."""
        if not self._ending:
            self._ending = True
            if not self.transport.is_closing():  # closed twice, asyncio's of TLS never aborts
                self.transport.close()
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)

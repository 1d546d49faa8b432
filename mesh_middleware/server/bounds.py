"""A bound on the head of a request, in bytes and in time, where uvicorn (0.54) has none.

With httptools a head may be of any length, and with both parsers it may take for ever: a peer that
no intention lets in could still hold connections and memory. Nothing is done for a head that
arrives in one piece, as nearly all do.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from uvicorn.importer import import_from_string

from mesh_middleware.server.linger import LINGER_SECONDS

HEAD_BYTES = 65536
"""As h11's; ``--h11-max-incomplete-event-size`` sets it for both. What one read of the socket
brings may come on top."""

HEAD_SECONDS = 30.0
"""From the end of the handshake, or the first byte of a later request, to the end of its head."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)


class BoundedHead:
    """Mixed into uvicorn's protocols of HTTP/1.1, before them: `cycle` is the newest request."""

    cycle: Any
    transport: Any
    config: Any
    loop: asyncio.AbstractEventLoop
    _head = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """As in the base class; the first head has to come."""
        super().connection_made(transport)  # type: ignore[misc]
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """As in the base class."""
        self._disarm()
        super().connection_lost(exc)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        """As in the base class, unless the head is too long."""
        before = self.cycle
        super().data_received(data)  # type: ignore[misc]
        if self.cycle is not before or not self._in_head():
            self._disarm()
            return
        self._head += len(data)
        if self._head > (self.config.h11_max_incomplete_event_size or HEAD_BYTES):
            self._disarm()
            if not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self._end()
        elif self._timer is None:
            self._arm()

    def _in_head(self) -> bool:
        cycle = self.cycle
        return cycle is None or (cycle.response_complete and not cycle.more_body)

    def _arm(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def _disarm(self) -> None:
        self._head = 0
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
        self.transport.close()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)


class BoundedChoice:
    """Mixed into the protocol that chooses by ALPN: what it takes for HTTP/1.1 is bounded."""

    config: Any
    server_state: Any
    app_state: Any
    loop: asyncio.AbstractEventLoop
    transport: Any

    def _switch(self, http2: bool, initial_data: bytes = b"") -> None:
        if http2:
            super()._switch(http2=True, initial_data=initial_data)  # type: ignore[misc]
            return
        protocol = bounded(import_from_string(_PLAIN_ZTTP))(
            config=self.config,
            server_state=self.server_state,
            app_state=self.app_state,
            _loop=self.loop,
        )
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if initial_data:
            protocol.data_received(initial_data)


_PLAIN_ZTTP = "uvicorn.protocols.http.zttp_impl:ZttpProtocol"


@functools.cache
def bounded(base: type) -> type:
    """`base`, a protocol class of uvicorn, with the bounds of this module."""
    mixin = BoundedChoice if hasattr(base, "_switch") else BoundedHead
    return type(f"Bounded{base.__name__}", (mixin, base), {})

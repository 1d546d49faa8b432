"""A bound on the head of a request, in bytes and in time, where uvicorn (0.54) has none.

With httptools a head may be of any length, and with both parsers it may take for ever: a peer that
no intention lets in could still hold connections and memory. Nothing is done for a head that
arrives in one piece, as nearly all do. For HTTP/2 see `streams`.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from uvicorn.importer import import_from_string

from mesh_middleware.server.awaited import Awaited
from mesh_middleware.server.streams import BoundedStreams

HEAD_BYTES = 65536
"""As h11's; ``--h11-max-incomplete-event-size`` sets it for both. What one read of the socket
brings may come on top."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)


class BoundedHead(Awaited):
    """Mixed into uvicorn's protocols of HTTP/1.1, before them: `cycle` is the newest request."""

    cycle: Any
    config: Any
    _head = 0

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

    def _disarm(self) -> None:
        self._head = 0
        super()._disarm()


class BoundedChoice:
    """Mixed into the protocol that chooses by ALPN: what it chooses is bounded."""

    config: Any
    server_state: Any
    app_state: Any
    loop: asyncio.AbstractEventLoop
    transport: Any

    def _switch(self, http2: bool, initial_data: bytes = b"") -> None:
        protocol = bounded(import_from_string(_ZTTP_HTTP2 if http2 else _ZTTP_HTTP1))(
            config=self.config,
            server_state=self.server_state,
            app_state=self.app_state,
            _loop=self.loop,
        )
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if initial_data:
            protocol.data_received(initial_data)


_ZTTP_HTTP1 = "uvicorn.protocols.http.zttp_impl:ZttpProtocol"
_ZTTP_HTTP2 = "uvicorn.protocols.http.zttp_h2_impl:ZttpH2Protocol"


@functools.cache
def bounded(base: type) -> type:
    """`base`, a protocol class of uvicorn, with the bounds of this module."""
    mixin: type = BoundedHead
    if hasattr(base, "_switch"):
        mixin = BoundedChoice
    elif hasattr(base, "handle_rst_stream"):
        mixin = BoundedStreams
    return type(f"Bounded{base.__name__}", (mixin, base), {})

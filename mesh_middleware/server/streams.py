"""Bounds on a connection of HTTP/2, where uvicorn (0.54) and zttp (0.0.35) leave them out.

1. A request has to come in time (`awaited`). uvicorn closes a connection without any, but begins
   to wait with the first byte, and anew with each that follows: a frame that comes a byte at a
   time, or a ping now and then, would be enough to stay.
2. zttp breaks a connection off, and what is open on it, with its 4,097th stream or the 257th that
   its client resets. Half of that ends it where no request is open; where there is always one, the
   client is asked to go on with another connection. httpcore (1.0.9) gives up what it has open
   when it is asked, so that is for those who leave no other moment.
3. zttp keeps what a client has no window for, however much an application sends. Here the
   application waits, as it does on HTTP/1.1.
4. Who asks and reads no answers (pings are enough) is not read from while answers wait.

What else a peer can do zttp bounds: streams at a time (128), the size of a head and its frames.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Final

from mesh_middleware._types import Message, Send
from mesh_middleware.server.awaited import Awaited
from mesh_middleware.server.linger import unsent

STREAMS = 4096
RESETS = 256
"""What zttp takes of one connection."""

_ENOUGH: Final = 1 / 2
_ALL_BUT_ALL: Final = 15 / 16
"""Of the above; what may be open at a time is still within it."""

UNSENT_BYTES: Final = 65536
"""So much of one response may wait for the client's window, and what comes with one message."""

_CONTROL_BYTES: Final = 16384  # so much on its way may be answers to pings

_NOT_YET: Final = 2**31 - 1  # RFC 9113 6.8: the last stream of a GOAWAY that refuses none


class BoundedStreams(Awaited):
    """Mixed into uvicorn's protocol of HTTP/2, before it: `cycles` are the open requests."""

    conn: Any
    cycles: dict[int, Any]
    _broken = False
    _leaving = False
    _streams = 0
    _resets = 0
    _credit: asyncio.Event | None = None
    """Made when somebody waits for window; set when there may be some."""

    # -- 1: in time ---------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """As in the base class; a request has to come of it."""
        super().data_received(data)  # type: ignore[misc]
        self._wake()
        if self._broken:
            self._end()
        elif self._timer is None and not self.cycles and not self._unsent():
            self._arm()

    def handle_events(self) -> None:
        """As in the base class, which raises for what is no HTTP/2."""
        self._broken = True
        super().handle_events()  # type: ignore[misc]
        self._broken = False

    def _unsent(self) -> bool:
        """Whether a response is complete, but its client is slow to take it."""
        pending: bool = self.conn.has_pending_send()
        return pending or unsent(self.transport) > _CONTROL_BYTES

    def _end(self) -> None:
        self._close()
        super()._end()

    def _close(self) -> None:
        self._close_connection()  # type: ignore[attr-defined]  # uvicorn's: says goodbye (GOAWAY)

    # -- 2: not for ever ----------------------------------------------------------------------

    def handle_request(self, event: Any) -> None:
        """As in the base class: a head is complete, and with it a request that has no body.

        zttp has no further event for such a request, and uvicorn would let the application wait.
        """
        self._disarm()
        super().handle_request(event)  # type: ignore[misc]
        cycle = self.cycles[event.stream_id]
        if event.end_stream:
            cycle.more_body = False
            cycle.message_event.set()
        cycle.send = functools.partial(self._send, cycle, cycle.send)
        self._streams += 1
        self._ask_to_leave()

    def handle_rst_stream(self, event: Any) -> None:
        """As in the base class."""
        self._resets += 1
        self._ask_to_leave()
        super().handle_rst_stream(event)  # type: ignore[misc]

    def on_stream_closed(self) -> None:
        """As in the base class."""
        super().on_stream_closed()  # type: ignore[misc]
        if not self.cycles:
            self._end_if_used()

    def _is_used(self, part: float) -> bool:
        return self._streams >= part * STREAMS or self._resets >= part * RESETS

    def _ask_to_leave(self) -> None:
        """Ask for another connection; what the client sends until it has read that is served.

        Source: RFC 9113 6.8, graceful shutdown.
        """
        if not self._leaving and self._is_used(_ALL_BUT_ALL):
            self._leaving = True
            self.conn.close(0, _NOT_YET)

    def _end_if_used(self) -> None:
        """Close where no request is open; who sends one now is told that it was not taken."""
        if self._is_used(_ENOUGH) and not self.conn.has_pending_send():
            self._close()

    # -- 3 and 4: what waits ------------------------------------------------------------------

    async def _send(self, cycle: Any, send: Send, message: Message) -> None:
        while (cycle.stream.pending_bytes or 0) > UNSENT_BYTES and not cycle.disconnected:
            self._credit = self._credit or asyncio.Event()
            self._credit.clear()
            await self._credit.wait()
        await send(message)

    def _wake(self) -> None:
        if self._credit is not None:
            self._credit.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """As in the base class."""
        super().connection_lost(exc)
        self._wake()

    def pause_writing(self) -> None:
        """As in the base class; each frame that is read might be answered."""
        super().pause_writing()  # type: ignore[misc]
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """As in the base class."""
        super().resume_writing()  # type: ignore[misc]
        self.transport.resume_reading()

"""Connections that only wait for their client's goodbye are cut after a while, and no others."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field

import pytest

from mesh_middleware.server import linger
from tests.support import await_for


@dataclass(eq=False)
class Transport:
    """`held`: bytes; None is asyncio's, closed twice, which has forgotten."""

    closing: bool = True
    held: int | None = 0
    sock: socket.socket | None = None
    aborted: bool = False

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        if self.held is None:
            raise AttributeError("'NoneType' object has no attribute '_get_write_buffer_size'")
        return self.held

    def get_extra_info(self, name: str) -> socket.socket | None:
        assert name == "socket"
        return self.sock

    def abort(self) -> None:
        self.aborted = True


@dataclass(eq=False)
class Connection:
    transport: Transport | None = field(default_factory=Transport)


def test_what_is_closing_and_has_nothing_to_send_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "LINGER_SECONDS", 0.3)
    silent = Transport()
    twice = Transport(held=None)
    gone = Transport(sock=socket.socket())
    assert gone.sock is not None
    gone.sock.close()
    busy = Transport(closing=False)
    slow = Transport(held=1)

    async def run() -> None:
        connections = {Connection(t) for t in (silent, twice, gone, busy, slow, None)}
        started = asyncio.get_running_loop().time()
        async with linger.lingering_cut(connections):
            await await_for(lambda: silent.aborted and twice.aborted and gone.aborted)
            assert asyncio.get_running_loop().time() - started >= 0.3
            assert not busy.aborted
            assert not slow.aborted
            busy.closing, slow.held = True, 0
            await await_for(lambda: busy.aborted and slow.aborted)
            assert asyncio.get_running_loop().time() - started >= 0.6  # counted anew

    asyncio.run(run())


def test_what_the_other_kernel_has_not_taken_is_unsent() -> None:
    """A client that does not read may still get the rest of its answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with client, server:
            server.setblocking(False)
            transport = Transport(sock=server)
            assert linger.unsent(transport) == 0  # type: ignore[arg-type]
            try:
                while True:
                    server.send(b"x" * 65536)
            except BlockingIOError:
                assert linger.unsent(transport) > 0  # type: ignore[arg-type]

"""Whoever was accepted is served or cut when a listener closes, never left open and forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading

import pytest
import uvloop

from mesh_middleware._listening import close_listeners
from tests.support import wait_for

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.mark.parametrize("loop", LOOPS)
def test_nobody_is_forgotten(loop: str) -> None:
    left: list[socket.socket] = []
    gc.disable()  # it would close what is forgotten
    try:
        for _ in range(10):
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                left += runner.run(closing_while_they_come())
        assert left == []
    finally:
        for connection in left:
            connection.close()
        gc.enable()


async def closing_while_they_come() -> list[socket.socket]:
    """Those that have neither an answer nor an end, of all who could connect."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    dialled: list[socket.socket] = []
    ending = threading.Event()

    def dial() -> None:
        while not ending.is_set():
            with contextlib.suppress(OSError):
                dialled.append(socket.create_connection(address, 5))

    thread = threading.Thread(target=dial)
    thread.start()
    await asyncio.to_thread(wait_for, lambda: len(dialled) > 5)
    await close_listeners([server])
    ending.set()
    await asyncio.to_thread(thread.join)
    return await asyncio.to_thread(unanswered, dialled)


def unanswered(dialled: list[socket.socket]) -> list[socket.socket]:
    left = []
    for connection in dialled:
        connection.settimeout(0.1 if left else 2)
        try:
            connection.recv(1)
        except TimeoutError:
            left.append(connection)
            continue
        except OSError:
            pass
        connection.close()
    return left

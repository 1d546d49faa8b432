"""What real servers make of a request target: the scopes that they call an application with."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Self

import uvicorn

from mesh_middleware.server.protocols import protocol_class
from tests.support import wait_for

SERVERS = ("h11", "httptools", "zttp", "http2")
"""uvicorn's HTTP implementations; ``http2`` is zttp with a client that speaks HTTP/2 at once."""

HEADERS = [(b"host", b"api"), (b"x-role", b"user")]
_KEPT = ("type", "method", "path", "raw_path", "query_string", "root_path", "scheme", "headers")


class Capture:
    """An application that keeps what it was called with, and refuses or answers nothing."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kept = {key: scope[key] for key in _KEPT if key in scope}
        self.scopes.append({**kept, "headers": list(scope["headers"])})
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        head = {"status": 200, "headers": [(b"content-length", b"0")]}
        await send({"type": "http.response.start", **head})
        await send({"type": "http.response.body", "body": b""})


@contextlib.contextmanager
def capturing(server: str, **options: Any) -> Iterator[tuple[Capture, int]]:
    """A capturing application behind a real uvicorn with our protocol hook, and its port."""
    capture = Capture()
    listener = socket.create_server(("127.0.0.1", 0))
    # asyncio sets it only for sockets that say they are TCP; without, each answer takes 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    http = protocol_class("zttp" if server == "http2" else server, http2=server == "http2")
    config = uvicorn.Config(capture, lifespan="off", log_config=None, http=http, **options)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve([listener])), daemon=True)
    thread.start()
    try:
        wait_for(lambda: running.started)
        yield capture, listener.getsockname()[1]
    finally:
        running.should_exit = True
        thread.join(10)
        listener.close()


def captured(server: str, asked: Iterable[bytes], root_path: str = "") -> list[dict[str, Any]]:
    """The scopes that `server` makes of GET requests for these targets; it refuses some itself."""
    with capturing(server, root_path=root_path) as (capture, port):
        client = Http2(port) if server == "http2" else Http1(port)
        with client:
            for target in asked:
                client.ask(target)
        return capture.scopes


def captured_websockets(http: str, ws: str, asked: Iterable[bytes]) -> list[dict[str, Any]]:
    """The same for WebSocket handshakes; each has a connection of its own."""
    lines = [b"Host: api", b"Upgrade: websocket", b"Connection: Upgrade", b"x-role: user"]
    lines += [b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    with capturing(http, ws=ws) as (capture, port):
        for target in asked:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                request = b"GET " + target + b" HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"
                connection.sendall(request)
                with contextlib.suppress(ConnectionError):
                    connection.recv(65536)
        return capture.scopes


class Http1:
    """Sends raw request targets on one connection for as long as the server keeps it."""

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, target: bytes) -> None:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=10)
        head = b"\r\n".join(name + b": " + value for name, value in HEADERS)
        try:
            self._socket.sendall(b"GET " + target + b" HTTP/1.1\r\n" + head + b"\r\n\r\n")
            answer = b""
            while b"\r\n\r\n" not in answer:
                more = self._socket.recv(65536)
                if not more:
                    break
                answer += more
        except ConnectionError:
            answer = b""
        if not answer.startswith(b"HTTP/1.1 200"):
            self.__exit__()


class Http2:
    """The same over HTTP/2, spelled by hand, because a client library would refuse most targets.

    Source: RFC 9113 4 (frames) and RFC 7541 6.2.2 (literal fields, not indexed, not compressed).
    """

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._socket: socket.socket | None = None
        self._stream = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, target: bytes) -> None:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=10)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._stream = -1
            self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        self._stream += 2
        fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"api")]
        fields += [(b":path", target), (b"x-role", b"user")]
        block = b"".join(literal(name, value) for name, value in fields)
        parts = [block[at : at + 16000] for at in range(0, len(block), 16000)]
        kinds = [1] + [9] * (len(parts) - 1)
        ends = [0] * (len(parts) - 1) + [4]
        try:
            self._socket.sendall(
                b"".join(
                    frame(kind, end | (kind == 1), self._stream, part)
                    for kind, end, part in zip(kinds, ends, parts, strict=True)
                )
            )
            if not self._answered():
                self.__exit__()
        except ConnectionError:
            self.__exit__()

    def _answered(self) -> bool:
        """Whether the connection is usable after this stream's answer."""
        while True:
            head = self._read(9)
            kind, stream = head[3], int.from_bytes(head[5:9], "big")
            self._read(int.from_bytes(head[:3], "big"))
            if kind == 7:
                return False
            if stream == self._stream and kind in (1, 3):
                return True

    def _read(self, size: int) -> bytes:
        assert self._socket is not None
        found = b""
        while len(found) < size:
            more = self._socket.recv(size - len(found))
            if not more:
                raise ConnectionResetError
            found += more
        return found


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
    return head + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """One header field that leaves no trace in the other side's table."""
    return b"\x00" + _counted(name) + _counted(value)


def _counted(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    size -= 127
    written = bytearray((127,))
    while size >= 128:
        written.append(size % 128 + 128)
        size //= 128
    written.append(size)
    return bytes(written) + text

"""A scriptable faulty proxy in front of an agent: it passes everything on until it is told not to.

A *behaviour* is a coroutine that gets one `Exchange` and answers it, well or badly. The behaviours
that a table can name are in `tests.faults.table`; this file only has what they need.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from mesh_middleware._listening import close_listeners

RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Answer:
    """What is sent back: status line, headers by lower-case name, body."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def with_body(self, body: bytes, **headers: str) -> Answer:
        return replace(self, body=body, headers={**self.headers, **headers})

    def with_index(self, index: str) -> Answer:
        if "x-consul-index" not in self.headers:
            return self
        return replace(self, headers={**self.headers, "x-consul-index": index})

    def wire(self) -> bytes:
        headers = {**self.headers, "content-length": str(len(self.body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} X\r\n{lines}\r\n".encode("latin-1") + self.body


@dataclass
class Exchange:
    """One request of a client, and the ways to answer it."""

    path: str
    token: str | None
    raw: bytes
    writer: asyncio.StreamWriter
    closing: asyncio.Event
    agent: tuple[str, int]

    async def fetch(self) -> Answer:
        """What the agent behind the proxy answers; waits as long as the agent does."""
        return await asyncio.wait_for(_ask(self.agent, self.raw), 60)

    async def send(self, answer: Answer) -> None:
        await self.send_raw(answer.wire())

    async def send_raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """End the connection with RST, as a crashed machine behind a firewall does."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()

    async def hang(self) -> None:
        await self.closing.wait()
        self.reset()


Behaviour = Callable[[Exchange], Awaitable[None]]


async def well(exchange: Exchange) -> None:
    """Pass on, and pass back."""
    await exchange.send(await exchange.fetch())


class FaultProxy:
    """A context manager with its own thread; listens on loopback TCP or on a unix socket.

    `agent`: the address behind. `host`: 127.0.0.1 or ::1. `path`: a unix socket instead.
    """

    def __init__(self, agent: str, *, host: str = "127.0.0.1", path: Path | None = None) -> None:
        self.agent = agent
        self.requests: list[tuple[float, str]] = []
        self.behaviour: Behaviour = well
        self.port = 0
        self._host, self._path = host, path
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        if self._path is not None:
            return f"unix://{self._path}"
        return f"http://[{self._host}]:{self.port}" if ":" in self._host else self.loopback

    @property
    def loopback(self) -> str:
        return f"http://{self._host}:{self.port}"

    def count(self, since: float = 0.0) -> dict[str, int]:
        """Requests by path since a moment (monotonic seconds)."""
        found: dict[str, int] = {}
        for at, path in tuple(self.requests):
            if at >= since:
                found[path] = found.get(path, 0) + 1
        return found

    def set(self, behaviour: Behaviour) -> None:
        """How requests that come from now on are answered."""
        self.behaviour = behaviour

    def refuse(self) -> None:
        """Close the listener and every connection: nobody is there."""
        self._run(self._stop_listening())

    def accept(self) -> None:
        """Listen again, on the same port."""
        self._run(self._listen())

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy")
        self._thread.start()
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._run(self._stop_listening())
        self._run(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Awaitable[None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)  # type: ignore[arg-type]

    async def _listen(self) -> None:
        if self._path is not None:
            self._server = await asyncio.start_unix_server(self._serve, self._path)
            return
        self._server = await asyncio.start_server(
            self._serve, self._host, self.port, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._server is not None:
            await close_listeners([self._server])
            self._server = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        for writer in tuple(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _end_tasks(self) -> None:
        await _turns()  # what was being accepted when the listener closed
        for writer in tuple(self._writers):
            writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await _turns()  # transports close in a later turn of the loop

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.CancelledError):
                while not writer.is_closing():
                    await self._serve_one(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = _headers(lines[1:])
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        method, target, _ = lines[0].split(" ")
        path = urlsplit(target).path
        self.requests.append((time.monotonic(), f"{method} {path}"))
        passed = {k: v for k, v in headers.items() if k not in ("connection", "accept-encoding")}
        agent = urlsplit(self.agent)
        passed["host"] = agent.netloc
        text = "".join(f"{name}: {value}\r\n" for name, value in passed.items())
        raw = f"{method} {target} HTTP/1.1\r\n{text}connection: close\r\n\r\n".encode("latin-1")
        assert agent.hostname
        assert agent.port
        await self.behaviour(
            Exchange(
                path,
                headers.get("x-consul-token"),
                raw + body,
                writer,
                self._closing,
                (agent.hostname, agent.port),
            )
        )


async def _ask(agent: tuple[str, int], raw: bytes) -> Answer:
    reader, writer = await asyncio.open_connection(*agent)
    try:
        writer.write(raw)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = _headers(head[1:])
        rest = await reader.read(-1)
    finally:
        writer.transport.abort()
    if headers.pop("transfer-encoding", "") == "chunked":
        rest = _dechunked(rest)
    headers.pop("content-length", None)
    headers.pop("connection", None)
    return Answer(int(head[0].split(" ")[1]), headers, rest)


def _headers(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines if line)
    return {name.lower(): value.strip() for name, _, value in pairs}


def _dechunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, data = body + data[:length], data[length + 2 :]
        if not length:
            break
    return body


async def _turns(count: int = 5) -> None:
    """Let the loop do what is due: callbacks that callbacks ask for, a few deep."""
    for _ in range(count):
        await asyncio.sleep(0)

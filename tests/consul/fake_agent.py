"""An agent that answers what it is told to, down to the bytes: for agents that misbehave."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from mesh_middleware.devagent.ca import CertificateAuthority

PATHS = {
    "roots": "/v1/agent/connect/ca/roots",
    "leaf": "/v1/agent/connect/ca/leaf/",
    "match": "/v1/connect/intentions/match",
    "authorize": "/v1/agent/connect/authorize",
    "intentions": "/v1/connect/intentions",
    "mesh": "/v1/config/mesh",
}

_POLICY = "X-Consul-Default-Acl-Policy"


@dataclass
class Reply:
    """`raw` is sent as it is, then the connection is closed; else `body` as HTTP, blocking as
    Consul does when a request brings the same `index`."""

    status: int = 200
    body: bytes = b""
    index: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    hang: bool = False

    @classmethod
    def json(cls, value: Any, index: int | None = 1, **headers: str) -> Reply:
        return cls(
            body=json.dumps(value).encode(),
            index=index,
            headers={name.replace("_", "-"): text for name, text in headers.items()},
        )


@dataclass(frozen=True)
class Asked:
    """A request that came; `at` in monotonic seconds."""

    key: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    at: float


class FakeAgent:
    """A context manager with its own thread. `asked`: every request. `ca`: signs its leaves."""

    def __init__(self, service: str = "web", **replies: Reply) -> None:
        self.ca = CertificateAuthority("fake.consul")
        self.service = service
        self.asked: list[Asked] = []
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._replies = {**self.good(), **replies}
        self._version = dict.fromkeys(PATHS, 0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def good(self, ca: CertificateAuthority | None = None, index: int = 5) -> dict[str, Reply]:
        ca = ca or self.ca
        return {
            "roots": Reply.json(ca.roots_document(), index),
            "leaf": Reply.json(ca.issue(self.service).document(), index),
            "match": Reply.json({self.service: None}, index, X_Consul_Default_Acl_Policy="deny"),
            "authorize": Reply.json({"Authorized": False, "Reason": "Default intention policy"}),
            "intentions": Reply.json([], index),
            "mesh": Reply.json([], index),
        }

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set(self, **replies: Reply) -> None:
        """From now on (also to who is waiting)."""

        def change() -> None:
            for key, reply in replies.items():
                self._replies[key] = reply
                self._version[key] += 1

        assert self._loop is not None
        self._loop.call_soon_threadsafe(change)

    def count(self, key: str) -> int:
        return sum(asked.key == key for asked in tuple(self.asked))

    def last(self, key: str) -> Asked:
        return [asked for asked in tuple(self.asked) if asked.key == key][-1]

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(started)))
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None

    async def _main(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()
        for _ in range(20):  # also those that were accepted last; what is aborted is closed later
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        target = urlsplit(head[0].split(" ")[1])
        query = dict(parse_qsl(target.query, keep_blank_values=True))
        key = next((key for key, path in PATHS.items() if target.path.startswith(path)), "")
        self.asked.append(Asked(key, target.path, query, headers, body, time.monotonic()))
        reply = await self._reply(key, query)
        if reply.hang:
            await self._stop.wait()
            return False
        if reply.raw is not None:
            writer.write(reply.raw)
            await writer.drain()
            return False
        lines = {"Content-Length": str(len(reply.body)), **reply.headers}
        if said := self._replies["match"].headers.get(_POLICY):
            lines.setdefault(_POLICY, said)  # a real agent's header is on every answer
        if reply.index is not None:
            lines["X-Consul-Index"] = str(reply.index)
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(f"HTTP/1.1 {reply.status} X\r\n{text}\r\n".encode() + reply.body)
        await writer.drain()
        return True

    async def _reply(self, key: str, query: dict[str, str]) -> Reply:
        if key not in self._replies:
            return Reply(404)
        seen, deadline = self._version[key], time.monotonic() + _seconds(query.get("wait", "0ms"))
        while (  # noqa: ASYNC110 - five conditions end it
            self._replies[key].status == 200
            and self._replies[key].raw is None
            and query.get("index") == str(self._replies[key].index)
            and self._version[key] == seen
            and time.monotonic() < deadline
        ):
            await asyncio.sleep(0.005)
        return self._replies[key]


def _seconds(text: str) -> float:
    assert text.endswith("ms")
    return float(text[:-2]) / 1000

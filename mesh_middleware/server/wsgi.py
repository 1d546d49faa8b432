"""WSGI applications under the launcher: a2wsgi with a pool of threads, and what it leaves open.

Two things are added to a2wsgi (1.10):

1. A response that nobody takes any more ends. a2wsgi lets the application's thread wait for ever
   when its task is cancelled (which is how the mesh cuts a response), and write into nothing
   when the client left; either way the thread would be lost to the pool. Here the next chunk
   raises `ConnectionAbortedError` in the application, as it does with WSGI servers, and the
   iterable is closed.
2. Headers with ``_`` in their name are dropped: the environ would make no difference between
   ``x_role`` and ``x-role``, but rules do.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from a2wsgi import WSGIMiddleware
from a2wsgi.wsgi import WSGIResponder

from mesh_middleware._types import Message, Receive, Scope, Send, WSGIApp

_QUEUE: Final = 10  # chunks that may wait for a slow client; then the application's thread waits

_NO_MORE: Final = {"type": "http.request", "body": b"", "more_body": False}


class ThreadedWSGI(WSGIMiddleware):
    """A WSGI application as an ASGI one, in `threads` threads: so many requests at a time."""

    def __init__(self, app: WSGIApp, threads: int) -> None:
        super().__init__(app, workers=threads, send_queue_size=_QUEUE)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        """Serve one scope; WebSockets are refused, there is nobody for them."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)  # type: ignore[arg-type]
            return
        headers = scope["headers"]
        if any(b"_" in name for name, _ in headers):
            scope["headers"] = [line for line in headers if b"_" not in line[0]]
        await _Response(self.app, self.executor).serve(scope, receive, send)


class _Response(WSGIResponder):
    """One request in a thread of the pool."""

    def __init__(self, app: Any, executor: ThreadPoolExecutor) -> None:
        super().__init__(app, executor, _QUEUE)
        self._gone = False

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = _Client(receive, self._leave)
        if not _has_body(scope):
            client.watch()
        try:
            await self(scope, client.receive, send)  # type: ignore[arg-type]
        except ConnectionAbortedError:
            if not self._gone:
                raise
        finally:
            client.forget()
            self._leave()

    def _leave(self) -> None:
        """Nobody takes the response any more: let the thread know with its next chunk."""
        self._gone = True
        while not self.send_queue.empty():  # it may wait for a place
            self.send_queue.get_nowait()

    def send(self, message: Any) -> None:
        """Called in the thread."""
        if self._gone:
            raise ConnectionAbortedError("nobody takes this response any more")
        super().send(message)


class _Client:
    """The receiving side: once the body is there, somebody waits for the client to leave."""

    def __init__(self, receive: Receive, left: Any) -> None:
        self._receive = receive
        self._left = left
        self._watcher: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        if self._watcher is not None:
            return _NO_MORE
        message = await self._receive()
        if not message.get("more_body", False):
            self.watch()
        return message

    def watch(self) -> None:
        self._watcher = asyncio.create_task(self._watch(), name="mesh-wsgi-client")

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def forget(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()


def _has_body(scope: Scope) -> bool:
    if not scope.get("http_version", "1.1").startswith("1"):
        return True  # HTTP/2 needs neither header for a body
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])

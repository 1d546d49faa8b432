"""httpx transports that call services of the mesh by name.

``httpx.AsyncClient(transport=AsyncMeshTransport(manager)).get("http://billing/invoices")``: the
instance is found, the connection made with our leaf, and the server's identity proven within the
TLS handshake, before the first byte of the request. The request itself is passed on untouched:
its Host header, and the URL on the response, stay the caller's.

A request is tried on another instance only when no connection could be made, so that not a byte
of it was sent; more only when the user allows it for idempotent methods. ``timeout.connect`` is
the limit for everything before the first byte: certificate, list of instances, all connecting.

Works with httpx and with httpx2 (``httpx=httpx2``), on asyncio, uvloop and trio.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import httpx

from mesh_middleware.state import MeshState, StateSource
from mesh_middleware.upstream.bodies import async_stream, sync_stream
from mesh_middleware.upstream.calls import Attempts, contexts_within
from mesh_middleware.upstream.children import Child, Connection
from mesh_middleware.upstream.endpoints import Endpoint
from mesh_middleware.upstream.names import UpstreamName
from mesh_middleware.upstream.requests import Requests
from mesh_middleware.upstream.resolver import ResolutionError, Resolver

T = TypeVar("T")

_THREADS = 16


class AsyncMeshTransport(httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient`: calls services of the mesh as the service of `mesh`.

    `mesh`: a started `MeshManager`, or the name of a service, whose manager is looked for with the
    first request (so that the client may be made anywhere, while a module is imported too) and
    started from the environment when there is none. `resolver`: who finds instances; the agent's
    catalogue by default. `upstreams`: what hosts mean that are no Consul names, or names with a
    tag, a datacenter or `failover`. `retry_idempotent`: also repeat GET, HEAD, OPTIONS, TRACE, PUT
    and DELETE that failed after they were sent, when their body can be sent again. `attempts`: most
    instances that one request is tried on. `httpx`: the library, httpx or httpx2. `options`: what
    ``httpx.AsyncHTTPTransport`` takes, such as ``http2`` and ``limits`` (for each instance).

    Raises the library's own errors: ConnectError and ConnectTimeout say what was looked for and
    what is registered; UnsupportedProtocol for a URL that is not of the mesh.
    """

    def __init__(
        self,
        mesh: StateSource | str,
        *,
        resolver: Resolver | None = None,
        upstreams: Mapping[str, UpstreamName | str] | None = None,
        retry_idempotent: bool = False,
        attempts: int = 3,
        httpx: ModuleType | None = None,
        **options: Any,
    ) -> None:
        self._requests = Requests(
            mesh,
            resolver=resolver,
            upstreams=upstreams,
            retry_idempotent=retry_idempotent,
            attempts=attempts,
            library=httpx,
            child="AsyncHTTPTransport",
            options=options,
        )
        self._stream = async_stream(self._requests.library)
        self._unsubscribe: Callable[[], object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._threads: anyio.CapacityLimiter | None = None  # needs a running loop

    async def handle_async_request(self, request: Any) -> Any:
        """Send one request; httpx calls this."""
        requests = self._requests
        name = requests.name(request)
        attempts = requests.attempts_for(name, request)
        if self._unsubscribe is None:
            if not requests.bound:
                await anyio.to_thread.run_sync(requests.bind)
            self._follow()
        try:
            if requests.mesh.state.contexts is None:
                await self._in_thread(contexts_within, requests.mesh, attempts.left)
            endpoints = requests.resolver.known(name)
            if endpoints is None:
                endpoints = await self._in_thread(requests.resolver.wait, name, attempts.left)
        except (ResolutionError, TimeoutError) as error:
            raise requests.translated(error, request) from error
        requests.noted(name, endpoints)
        if requests.children.retired:
            await self._sweep()
        while True:
            child = requests.next(attempts, endpoints, request)
            share = attempts.share(endpoints, requests.attempts)
            try:
                response = await child.transport.handle_async_request(
                    requests.forwarded(child, request, share)
                )
            except BaseException as error:
                if not await self._failed(child, attempts, request, error):
                    raise
                continue
            connection = requests.began(child, response, "ssl_object")
            response.stream = self._stream(response.stream, partial(self._ended, child, connection))
            return response

    async def _failed(
        self, child: Child, attempts: Attempts, request: Any, error: BaseException
    ) -> bool:
        again = self._requests.failed(child, attempts, request, error)
        if self._requests.children.retired:
            await self._sweep()
        return again

    def _ended(self, child: Child, connection: Connection | None) -> Awaitable[None] | None:
        self._requests.ended(child, connection)
        return self._sweep() if self._requests.children.retired else None

    async def _sweep(self) -> None:
        """Close what is done for."""
        transports, streams = self._requests.children.sweep()
        if transports or streams:
            with anyio.CancelScope(shield=True):
                for closable in (*streams, *transports):
                    await closable.aclose()

    async def _in_thread(
        self, call: Callable[[Any, float | None], T], subject: Any, seconds: float | None
    ) -> T:
        """``call(subject, seconds)`` in a thread; TimeoutError also when no thread was free.

        Threads of our own: many calls that wait for an agent must not take the application's.
        """
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(_THREADS)
        with anyio.move_on_after(seconds):
            return await anyio.to_thread.run_sync(
                call, subject, seconds, abandon_on_cancel=True, limiter=self._threads
            )
        raise TimeoutError(f"{subject}: no answer from the Consul agent within {seconds:.1f} s")

    # -- changes ------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Hear of changes from now on. Without asyncio they are noticed by the next request."""
        if self._unsubscribe is not None:  # another request was first
            return
        self._unsubscribe = _nothing
        with contextlib.suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
            requests = self._requests
            self._unsubscribe = _followed(
                (requests.mesh, self._changed), (requests.resolver, self._gone)
            )

    def _changed(self, state: MeshState) -> None:
        """In the manager's thread."""
        self._requests.children.retire(state.contexts)
        self._sweep_in_loop()

    def _gone(self, endpoints: frozenset[Endpoint]) -> None:
        """In the resolver's thread."""
        self._requests.gone(endpoints)
        self._sweep_in_loop()

    def _sweep_in_loop(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its connections
                self._loop.call_soon_threadsafe(self._sweep_soon)

    def _sweep_soon(self) -> None:
        task = asyncio.ensure_future(self._sweep())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        for transport in self._requests.children.clear():
            await transport.aclose()


class MeshTransport(httpx.BaseTransport):
    """For `httpx.Client`: `AsyncMeshTransport` for blocking code; safe from any thread."""

    def __init__(
        self,
        mesh: StateSource | str,
        *,
        resolver: Resolver | None = None,
        upstreams: Mapping[str, UpstreamName | str] | None = None,
        retry_idempotent: bool = False,
        attempts: int = 3,
        httpx: ModuleType | None = None,
        **options: Any,
    ) -> None:
        self._requests = Requests(
            mesh,
            resolver=resolver,
            upstreams=upstreams,
            retry_idempotent=retry_idempotent,
            attempts=attempts,
            library=httpx,
            child="HTTPTransport",
            options=options,
        )
        self._stream = sync_stream(self._requests.library)
        self._unsubscribe: Callable[[], object] | None = None
        self._following = threading.Lock()

    def handle_request(self, request: Any) -> Any:
        """Send one request; httpx calls this."""
        requests = self._requests
        name = requests.name(request)
        attempts = requests.attempts_for(name, request)
        if self._unsubscribe is None:
            self._follow()
        try:
            if requests.mesh.state.contexts is None:
                contexts_within(requests.mesh, attempts.left)
            endpoints = requests.resolver.known(name)
            if endpoints is None:
                endpoints = requests.resolver.wait(name, attempts.left)
        except (ResolutionError, TimeoutError) as error:
            raise requests.translated(error, request) from error
        requests.noted(name, endpoints)
        if requests.children.retired:
            self._sweep()
        while True:
            child = requests.next(attempts, endpoints, request)
            share = attempts.share(endpoints, requests.attempts)
            try:
                response = child.transport.handle_request(requests.forwarded(child, request, share))
            except BaseException as error:
                if not self._failed(child, attempts, request, error):
                    raise
                continue
            # "ssl_object" would be the one beneath Python's socket, which knows no peer
            connection = requests.began(child, response, "socket")
            response.stream = self._stream(response.stream, partial(self._ended, child, connection))
            return response

    def _failed(self, child: Child, attempts: Attempts, request: Any, error: BaseException) -> bool:
        again = self._requests.failed(child, attempts, request, error)
        if self._requests.children.retired:
            self._sweep()
        return again

    def _ended(self, child: Child, connection: Connection | None) -> None:
        self._requests.ended(child, connection)
        if self._requests.children.retired:
            self._sweep()

    def _sweep(self) -> None:
        transports, streams = self._requests.children.sweep()
        for closable in (*streams, *transports):
            closable.close()

    def _follow(self) -> None:
        """Hear of changes from now on."""
        self._requests.bind()
        with self._following:
            if self._unsubscribe is None:
                requests = self._requests
                self._unsubscribe = _followed(
                    (requests.mesh, self._changed), (requests.resolver, self._gone)
                )

    def _changed(self, state: MeshState) -> None:
        """In the manager's thread; closing a socket does not block."""
        self._requests.children.retire(state.contexts)
        self._sweep()

    def _gone(self, endpoints: frozenset[Endpoint]) -> None:
        """In the resolver's thread; closing a socket does not block."""
        self._requests.gone(endpoints)
        self._sweep()

    def close(self) -> None:
        """Close all connections."""
        with self._following:
            if self._unsubscribe is not None:
                self._unsubscribe()
                self._unsubscribe = None
        for transport in self._requests.children.clear():
            transport.close()


def _followed(*subjects: tuple[object, Callable[[Any], None]]) -> Callable[[], None]:
    """Tell each method what is new with its subject, where that has a `subscribe`; the way out."""
    ways: list[Callable[[], object]] = [
        subscribe(_weakly(method))
        for subject, method in subjects
        if (subscribe := getattr(subject, "subscribe", None)) is not None
    ]

    def unsubscribe() -> None:
        for way in ways:
            way()

    return unsubscribe


def _weakly(method: Callable[[T], None]) -> Callable[[T], None]:
    """`method` as a subscriber that does not keep its transport alive."""
    reference = weakref.WeakMethod(method)

    def call(news: T) -> None:
        found = reference()
        if found is not None:
            found(news)

    return call


def _nothing() -> None:
    """The way out of a subscription that there is not."""

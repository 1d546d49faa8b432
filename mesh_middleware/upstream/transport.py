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
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import anyio
import anyio.to_thread
import httpx

from mesh_middleware import runtime
from mesh_middleware.errors import ConfigError, MeshError
from mesh_middleware.state import MeshState, StateSource
from mesh_middleware.tls.contexts import MeshContext, TLSContexts
from mesh_middleware.upstream.balance import Balancer
from mesh_middleware.upstream.calls import Attempts, Names, contexts_within
from mesh_middleware.upstream.catalog import resolver_for
from mesh_middleware.upstream.children import Child, Children
from mesh_middleware.upstream.endpoints import Endpoints
from mesh_middleware.upstream.names import UpstreamName
from mesh_middleware.upstream.resolver import ResolutionError, Resolver

EXTENSION = "mesh_middleware"
"""Key in ``response.extensions`` of an `Outgoing`: who called whom."""

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Methods that may be sent twice (RFC 9110, 9.2.2)."""


class _Calls:
    """What both transports share. Safe from any thread."""

    def __init__(
        self,
        mesh: StateSource | str,
        *,
        resolver: Resolver | None,
        upstreams: Mapping[str, UpstreamName | str] | None,
        retry_idempotent: bool,
        attempts: int,
        library: ModuleType | None,
        child: str,
        options: dict[str, Any],
    ) -> None:
        if attempts < 1:
            raise ConfigError(f"attempts: {attempts} is not 1 or more, such as 3")
        self.mesh = runtime.manager_for(mesh) if isinstance(mesh, str) else mesh
        self.library: Any = library or httpx
        self.resolver = resolver or resolver_for(self.mesh)
        self.names = Names(upstreams or {})
        self.attempts = attempts
        self.retry_idempotent = retry_idempotent
        self.balancer = Balancer()
        make: Callable[..., Any] = getattr(self.library, child)
        self.children = Children(
            self.mesh, lambda context: make(verify=context, trust_env=False, **options)
        )
        self._seen: dict[UpstreamName, Endpoints] = {}
        # wrong options are found now, not at the first request
        make(verify=_no_context(), trust_env=False, **options)

    def name(self, request: Any) -> UpstreamName:
        url = request.url
        try:
            return self.names(url.scheme, url.host, url.port)
        except ConfigError as error:
            raise self.library.UnsupportedProtocol(str(error), request=request) from error

    def attempts_for(self, name: UpstreamName, request: Any) -> Attempts:
        return Attempts(name, (request.extensions.get("timeout") or {}).get("connect"))

    def noted(self, name: UpstreamName, endpoints: Endpoints) -> Endpoints:
        """`endpoints`, whose missing ones get no more requests."""
        before = self._seen.get(name)
        if before is not endpoints:
            if before is not None or endpoints.all:  # names that mean nothing come without end
                self._seen[name] = endpoints
            if before is not None:
                self.balancer.forget(list(self.children.retire_gone(before, endpoints)))
        return endpoints

    def next(self, attempts: Attempts, endpoints: Endpoints, request: Any) -> Child:
        """Where to send the request now; httpx's ConnectError when nothing is left."""
        endpoint = None
        if len(attempts.tried) < self.attempts and (not attempts.tried or attempts.left != 0.0):
            endpoint = self.balancer.pick(endpoints, attempts.tried)
        if endpoint is None:
            raise self.library.ConnectError(attempts.unreachable(endpoints), request=request)
        try:
            return self.children.take(endpoint)
        except MeshError as error:
            self.balancer.done(endpoint)
            raise self.translated(error, request) from error

    def began(self, child: Child, response: Any, peer_from: str) -> Any:
        """Note that a response began; returns the connection that it comes on."""
        stream = response.extensions.get("network_stream")
        self.children.answered(child, stream, peer_from)
        self.balancer.connected(child.endpoint)
        response.extensions[EXTENSION] = child.outgoing
        return stream

    def failed(self, child: Child, attempts: Attempts, request: Any, error: BaseException) -> bool:
        """Note that there was no response; returns whether to try another instance."""
        self.children.failed(child)
        self.balancer.done(child.endpoint)
        library = self.library
        if isinstance(error, (library.ConnectError, library.ConnectTimeout)):
            attempts.failed(child.endpoint, error)  # not a byte of the request was sent
            self.balancer.failed(child.endpoint)
            return True
        broken = (library.ReadError, library.WriteError, library.RemoteProtocolError)
        if isinstance(error, broken) and self.may_repeat(request, attempts):
            attempts.failed(child.endpoint, error)
            return True
        return False

    def ended(self, child: Child, stream: Any) -> None:
        """Note that a response was closed."""
        self.children.ended(child, stream)
        self.balancer.done(child.endpoint)

    def forwarded(self, child: Child, request: Any, seconds: float | None) -> Any:
        """The request as the child's library gets it: other URL, same target and headers."""
        timeout = {**(request.extensions.get("timeout") or {}), "connect": seconds}
        extensions = {
            "target": request.url.raw_path,
            **request.extensions,
            "timeout": timeout,
            "sni_hostname": child.server_name,
        }
        return self.library.Request(
            request.method,
            child.url,
            headers=request.headers,
            stream=request.stream,
            extensions=extensions,
        )

    def translated(self, error: Exception, request: Any) -> Exception:
        """Errors of finding, as the library's own."""
        kind = "ConnectTimeout" if isinstance(error, TimeoutError) else "ConnectError"
        found: Exception = getattr(self.library, kind)(str(error), request=request)
        return found

    def may_repeat(self, request: Any, attempts: Attempts) -> bool:
        """Whether a request that failed on its way may be sent again."""
        return (
            self.retry_idempotent
            and request.method in IDEMPOTENT
            and isinstance(request.stream, self.library.ByteStream)
            and len(attempts.tried) + 1 < self.attempts
        )


class AsyncMeshTransport(httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient`: calls services of the mesh as the service of `mesh`.

    `mesh`: a started `MeshManager`, or the name of a service, whose manager is started from the
    environment on first use. `resolver`: who finds instances; the agent's catalogue by default.
    `upstreams`: what hosts mean that are no Consul names, or names with a tag, a datacenter or
    `failover`. `retry_idempotent`: also repeat GET, HEAD, OPTIONS, TRACE, PUT and DELETE that
    failed after they were sent, when their body can be sent again. `attempts`: most instances
    that one request is tried on. `httpx`: the library, httpx or httpx2. `options`: what
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
        self._calls = _Calls(
            mesh,
            resolver=resolver,
            upstreams=upstreams,
            retry_idempotent=retry_idempotent,
            attempts=attempts,
            library=httpx,
            child="AsyncHTTPTransport",
            options=options,
        )
        self._stream = _async_stream(self._calls.library)
        self._unsubscribe: Callable[[], object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def handle_async_request(self, request: Any) -> Any:
        """Send one request; httpx calls this."""
        calls = self._calls
        name = calls.name(request)
        attempts = calls.attempts_for(name, request)
        self._follow()
        try:
            if calls.mesh.state.contexts is None:
                await self._in_thread(contexts_within, calls.mesh, attempts.left)
            endpoints = calls.resolver.known(name)
            if endpoints is None:
                endpoints = await self._in_thread(calls.resolver.wait, name, attempts.left)
        except (ResolutionError, TimeoutError) as error:
            raise calls.translated(error, request) from error
        calls.noted(name, endpoints)
        await self._sweep()
        while True:
            child = calls.next(attempts, endpoints, request)
            share = attempts.share(endpoints, calls.attempts)
            try:
                response = await child.transport.handle_async_request(
                    calls.forwarded(child, request, share)
                )
            except BaseException as error:
                if not calls.failed(child, attempts, request, error):
                    raise
                continue
            stream = calls.began(child, response, "ssl_object")
            response.stream = self._stream(response.stream, partial(self._ended, child, stream))
            return response

    async def _ended(self, child: Child, stream: Any) -> None:
        self._calls.ended(child, stream)
        await self._sweep()

    async def _sweep(self) -> None:
        """Close what is done for."""
        transports, streams = self._calls.children.sweep()
        if transports or streams:
            with anyio.CancelScope(shield=True):
                for closable in (*streams, *transports):
                    await closable.aclose()

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(call, *arguments, abandon_on_cancel=True)

    # -- changes ------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Hear of changes from now on. Without asyncio they are noticed by the next request."""
        if self._unsubscribe is not None:
            return
        subscribe = getattr(self._calls.mesh, "subscribe", None)
        self._unsubscribe = _nothing
        if subscribe is None:
            return
        with contextlib.suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
            self._unsubscribe = subscribe(_weakly(self._changed))

    def _changed(self, state: MeshState) -> None:
        """In the manager's thread."""
        self._calls.children.retire(state.contexts)
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
        for transport in self._calls.children.clear():
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
        self._calls = _Calls(
            mesh,
            resolver=resolver,
            upstreams=upstreams,
            retry_idempotent=retry_idempotent,
            attempts=attempts,
            library=httpx,
            child="HTTPTransport",
            options=options,
        )
        self._stream = _sync_stream(self._calls.library)
        subscribe = getattr(self._calls.mesh, "subscribe", None)
        self._unsubscribe: Callable[[], object] = (
            _nothing if subscribe is None else subscribe(_weakly(self._changed))
        )

    def handle_request(self, request: Any) -> Any:
        """Send one request; httpx calls this."""
        calls = self._calls
        name = calls.name(request)
        attempts = calls.attempts_for(name, request)
        try:
            if calls.mesh.state.contexts is None:
                contexts_within(calls.mesh, attempts.left)
            endpoints = calls.resolver.known(name)
            if endpoints is None:
                endpoints = calls.resolver.wait(name, attempts.left)
        except (ResolutionError, TimeoutError) as error:
            raise calls.translated(error, request) from error
        calls.noted(name, endpoints)
        self._sweep()
        while True:
            child = calls.next(attempts, endpoints, request)
            share = attempts.share(endpoints, calls.attempts)
            try:
                response = child.transport.handle_request(calls.forwarded(child, request, share))
            except BaseException as error:
                if not calls.failed(child, attempts, request, error):
                    raise
                continue
            # "ssl_object" would be the one beneath Python's socket, which knows no peer
            stream = calls.began(child, response, "socket")
            response.stream = self._stream(response.stream, partial(self._ended, child, stream))
            return response

    def _ended(self, child: Child, stream: Any) -> None:
        self._calls.ended(child, stream)
        self._sweep()

    def _sweep(self) -> None:
        transports, streams = self._calls.children.sweep()
        for closable in (*streams, *transports):
            closable.close()

    def _changed(self, state: MeshState) -> None:
        """In the manager's thread; closing a socket does not block."""
        self._calls.children.retire(state.contexts)
        self._sweep()

    def close(self) -> None:
        """Close all connections."""
        self._unsubscribe()
        for transport in self._calls.children.clear():
            transport.close()


def _no_context() -> MeshContext:
    def refuse() -> TLSContexts:
        raise ConfigError("this transport only checks options")

    return MeshContext.for_server(refuse)


def _weakly(method: Callable[[MeshState], None]) -> Callable[[MeshState], None]:
    """`method` as a subscriber that does not keep its transport alive."""
    reference = weakref.WeakMethod(method)

    def call(state: MeshState) -> None:
        found = reference()
        if found is not None:
            found(state)

    return call


def _nothing() -> None:
    """The way out of a subscription that there is not."""


_STREAMS: dict[tuple[str, str], Any] = {}


def _async_stream(library: Any) -> Any:
    """A response stream that says when it is closed, of the library's own kind.

    httpx asks for its own class (and httpx2 for its own), so there is one for each.
    """
    found = _STREAMS.get((library.__name__, "async"))
    if found is not None:
        return found

    class MeshStream(library.AsyncByteStream):  # type: ignore[misc]  # a class of a module argument
        def __init__(self, stream: Any, ended: Callable[[], Any]) -> None:
            self._stream, self._ended, self._open = stream, ended, True

        def __aiter__(self) -> AsyncIterator[bytes]:
            iterator: AsyncIterator[bytes] = self._stream.__aiter__()
            return iterator

        async def aclose(self) -> None:
            try:
                await self._stream.aclose()
            finally:
                if self._open:
                    self._open = False
                    await self._ended()

    return _STREAMS.setdefault((library.__name__, "async"), MeshStream)


def _sync_stream(library: Any) -> Any:
    """`_async_stream` for blocking code."""
    found = _STREAMS.get((library.__name__, "sync"))
    if found is not None:
        return found

    class MeshStream(library.SyncByteStream):  # type: ignore[misc]  # a class of a module argument
        def __init__(self, stream: Any, ended: Callable[[], Any]) -> None:
            self._stream, self._ended, self._open = stream, ended, True

        def __iter__(self) -> Iterator[bytes]:
            iterator: Iterator[bytes] = self._stream.__iter__()
            return iterator

        def close(self) -> None:
            try:
                self._stream.close()
            finally:
                if self._open:
                    self._open = False
                    self._ended()

    return _STREAMS.setdefault((library.__name__, "sync"), MeshStream)

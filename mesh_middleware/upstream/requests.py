"""The half of a mesh transport that is the same for asynchronous and blocking code.

Which instance, what is sent to it, whether to try another one, what to count: decided here,
without I/O. The transports do the sending.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import httpx

from mesh_middleware import runtime
from mesh_middleware.errors import ConfigError, MeshError
from mesh_middleware.state import StateSource
from mesh_middleware.tls.contexts import MeshContext, TLSContexts
from mesh_middleware.upstream.balance import Balancer
from mesh_middleware.upstream.bodies import request_class
from mesh_middleware.upstream.calls import Attempts, Names
from mesh_middleware.upstream.catalog import resolver_for
from mesh_middleware.upstream.children import Child, Children, Connection
from mesh_middleware.upstream.endpoints import Endpoint, Endpoints
from mesh_middleware.upstream.names import UpstreamName
from mesh_middleware.upstream.resolver import ResolutionError, Resolver

EXTENSION = "mesh_middleware"
"""Key in ``response.extensions`` of an `Outgoing`: who called whom."""

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Methods that may be sent twice (RFC 9110, 9.2.2)."""


class Requests:
    """What both transports share. Safe from any thread.

    `mesh` and `resolver` are there once `bind` was called.
    """

    mesh: StateSource
    resolver: Resolver

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
        self._given = mesh, resolver
        self._binding = threading.Lock()
        self.bound = False
        self.library: Any = library or httpx
        self._request = request_class(self.library)
        self.names = Names(upstreams or {})
        self.attempts = attempts
        self.retry_idempotent = retry_idempotent
        self.balancer = Balancer()
        make: Callable[..., Any] = getattr(self.library, child)
        self.children = Children(
            lambda: self.mesh.state.contexts,
            lambda context: make(verify=context, trust_env=False, **options),
            self.library.URL,
        )
        self._seen: dict[UpstreamName, Endpoints] = {}
        # wrong options are found now, not at the first request
        make(verify=_no_context(), trust_env=False, **options)
        if not isinstance(mesh, str):
            self.bind()

    def bind(self) -> None:
        """Find the mesh of a service that was given by name; for the first request.

        Not earlier: a client may be made while a module is imported, when the launcher has no
        manager yet, and in a test that gives the application rules and never calls. May block.
        ConfigError when a setting is wrong, or when nobody can look up instances; the next request
        tries again.
        """
        with self._binding:
            if self.bound:
                return
            given, resolver = self._given
            mesh = runtime.manager_for(given) if isinstance(given, str) else given
            self.resolver = resolver or resolver_for(mesh)
            self.mesh = mesh
            self.bound = True

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
                self.gone(before.all - endpoints.all)
        return endpoints

    def gone(self, endpoints: frozenset[Endpoint]) -> None:
        """Note that these instances are listed no longer."""
        self.children.retire_gone(endpoints)
        self.balancer.forget(endpoints)

    def next(self, attempts: Attempts, endpoints: Endpoints, request: Any) -> Child:
        """Where to send the request now; httpx's ConnectError when nothing is left."""
        endpoint = None
        if len(attempts.tried) < self.attempts and (not attempts.tried or attempts.left != 0.0):
            endpoint = self.balancer.pick(endpoints, attempts.tried)
        if endpoint is None:
            raise self.library.ConnectError(attempts.unreachable(endpoints), request=request)
        try:
            child = self.children.take(endpoint)
        except MeshError as error:
            self.balancer.done(endpoint)
            raise self.translated(error, request) from error
        if not child.looked_up:
            self._look_up(child, attempts.name)
        return child

    def _look_up(self, child: Child, name: UpstreamName) -> None:
        """Retire a new child whose instance left before it was there: nobody will say so again."""
        child.looked_up = True
        with contextlib.suppress(ResolutionError):
            newest = self.resolver.known(name)
            if newest is not None and child.endpoint not in newest.all:
                self.gone(frozenset({child.endpoint}))

    def began(self, child: Child, response: Any, peer_from: str) -> Connection | None:
        """Note that a response began; returns the connection that it comes on."""
        extensions = response.extensions
        connection = self.children.answered(child, extensions.get("network_stream"), peer_from)
        self.balancer.connected(child.endpoint)
        extensions[EXTENSION] = child.outgoing
        return connection

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

    def ended(self, child: Child, connection: Connection | None) -> None:
        """Note that a response was closed."""
        self.children.ended(child, connection)
        self.balancer.done(child.endpoint)

    def forwarded(self, child: Child, request: Any, seconds: float | None) -> Any:
        """The request as the child's library gets it: other URL, same target and headers."""
        given = request.extensions
        extensions = {
            "target": request.url.raw_path,
            **given,
            "timeout": {**(given.get("timeout") or {}), "connect": seconds},
            "sni_hostname": child.server_name,
        }
        return self._request(request, child.url, extensions)

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


def _no_context() -> MeshContext:
    def refuse() -> TLSContexts:
        raise ConfigError("this transport only checks options")

    return MeshContext.for_server(refuse)

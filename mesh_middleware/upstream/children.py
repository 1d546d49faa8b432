"""One connection pool for each instance, identity and generation.

HTTP libraries pool connections by scheme, host and port and know nothing of identities: two
services that share an address, one after the other, would share connections too, and a connection
of an older generation would serve for ever. So each instance has a child transport of its own,
made for one identity and one `TLSContexts`, and thrown away with them.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from mesh_middleware.policy.spiffe import ServiceIdentity
from mesh_middleware.tls.contexts import MeshContext, TLSContexts, verified_peer
from mesh_middleware.upstream.calls import Outgoing
from mesh_middleware.upstream.endpoints import Endpoint
from mesh_middleware.upstream.resolver import ResolutionError


class Connection:
    """One connection of a child. `stream`: the library's network stream, weakly.

    `busy`: responses that come on it and are not closed.
    """

    __slots__ = ("busy", "stream")

    def __init__(self, stream: Any) -> None:
        self.stream = weakref.ref(stream)
        self.busy = 0


class Child:
    """The connections to one instance, in one generation. Guarded by the lock of its `Children`.

    `active`: requests from their start until their response is closed. `retired`: gets no more of
    them, and is closed with the last one. `looked_up`: its instance was still listed when the child
    was there.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        contexts: TLSContexts,
        make: Callable[[MeshContext], Any],
        parse: Callable[[str], Any],
    ) -> None:
        trust_domain = contexts.svid.identity.trust_domain
        self.endpoint = endpoint
        self.contexts = contexts
        self.identity: ServiceIdentity = endpoint.identity(trust_domain)
        self.outgoing = Outgoing(str(contexts.svid.identity), str(self.identity), endpoint)
        self.server_name = endpoint.server_name(trust_domain).encode("ascii", "replace").decode()
        self.url: Any = parse(f"https://{endpoint.address}/")  # not once for each request
        # Fixed to these contexts: a newer generation gets a newer child.
        self.transport: Any = make(MeshContext.for_client(lambda: contexts, self.identity))
        self.active = 0
        self.waiting = 0
        self.retired = False
        self.looked_up = False
        self.expires = math.inf
        self._connections: dict[int, Connection] = {}

    def answered(self, stream: Any, peer_from: str) -> Connection | None:
        """A response began on `stream`, a network stream of the library's; its connection.

        `peer_from`: what the stream calls the object that went through our handshake.
        """
        self.waiting -= 1
        if stream is None:
            return None
        found = self._connections.get(id(stream))
        if found is None or found.stream() is not stream:
            found = self._met(stream, peer_from)
        found.busy += 1
        return found

    def _met(self, stream: Any, peer_from: str) -> Connection:
        peer = verified_peer(stream.get_extra_info(peer_from))
        if peer is not None:
            self.expires = min(self.expires, peer.certificate.not_after)
        left = {key: each for key, each in self._connections.items() if each.stream() is not None}
        found = left[id(stream)] = Connection(stream)
        self._connections = left
        return found

    def take_idle(self) -> list[Any]:
        """The streams that nobody uses, once; none while it cannot be said (some are waiting)."""
        if self.waiting:
            return []
        idle = {key: each for key, each in self._connections.items() if not each.busy}
        for key in idle:
            del self._connections[key]
        streams = [each.stream() for each in idle.values()]
        return [stream for stream in streams if stream is not None]


class Children:
    """The children of one transport.

    Safe from any thread; does no I/O itself. `contexts`: the newest ones of the calling service.
    `make`: a child transport for a TLS context. `parse`: makes URLs.
    """

    def __init__(
        self,
        contexts: Callable[[], TLSContexts | None],
        make: Callable[[MeshContext], Any],
        parse: Callable[[str], Any],
    ) -> None:
        self._contexts = contexts
        self._make = make
        self._parse = parse
        self._lock = threading.Lock()
        self._current: dict[Endpoint, Child] = {}
        self.retired: set[Child] = set()
        """Those that are to be swept."""

    def take(self, endpoint: Endpoint) -> Child:
        """The child for a request to `endpoint`, counted as active. Older ones are retired.

        ResolutionError when the mesh has no certificate for us any more; SpiffeIDError for an
        endpoint whose names cannot be in one.
        """
        with self._lock:
            # Read under the lock: a change that comes later finds this child when it retires.
            contexts = self._contexts()
            if contexts is None:
                raise ResolutionError("the mesh has no certificate for us any more")
            child = self._current.get(endpoint)
            if child is None or child.contexts is not contexts or child.expires < time.time():
                if child is not None:
                    self._retire(child)
                child = self._current[endpoint] = Child(endpoint, contexts, self._make, self._parse)
            child.active += 1
            child.waiting += 1
            return child

    def answered(self, child: Child, stream: Any, peer_from: str) -> Connection | None:
        """A response began."""
        with self._lock:
            return child.answered(stream, peer_from)

    def failed(self, child: Child) -> None:
        """A request ended without a response."""
        with self._lock:
            child.waiting -= 1
            child.active -= 1

    def ended(self, child: Child, connection: Connection | None) -> None:
        """A response was closed."""
        with self._lock:
            child.active -= 1
            if connection is not None:
                connection.busy -= 1

    def retire(self, contexts: TLSContexts | None) -> None:
        """No more requests to children of other contexts than these."""
        with self._lock:
            for child in list(self._current.values()):
                if child.contexts is not contexts:
                    self._retire(child)

    def retire_gone(self, gone: frozenset[Endpoint]) -> None:
        """No more requests to these instances, which are listed no longer."""
        with self._lock:
            for endpoint in gone & self._current.keys():
                self._retire(self._current[endpoint])

    def sweep(self) -> tuple[list[Any], list[Any]]:
        """What is to be closed now: transports that are done, and idle connections of others."""
        with self._lock:
            done = {child for child in self.retired if not child.active}
            self.retired -= done
            streams = [stream for child in self.retired for stream in child.take_idle()]
            return [child.transport for child in done], streams

    def clear(self) -> list[Any]:
        """Forget all children; their transports are to be closed."""
        with self._lock:
            found = [*self._current.values(), *self.retired]
            self._current.clear()
            self.retired.clear()
            return [child.transport for child in found]

    def _retire(self, child: Child) -> None:
        child.retired = True
        self.retired.add(child)
        if self._current.get(child.endpoint) is child:
            del self._current[child.endpoint]

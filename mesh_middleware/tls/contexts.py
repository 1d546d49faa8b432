"""TLS contexts that follow the mesh: immutable ones, and a facade that always uses the newest.

A context whose certificate or roots are changed in place is wrong in ways that cannot be mended:
roots cannot be removed, a failed load leaves it broken, sessions live on. So each generation has
its own contexts that never change (`TLSContexts`), and servers and clients are given a
`MeshContext`, a real `ssl.SSLContext` that does no TLS itself: each new connection is born wholly
in the newest generation, with its key, roots, options and session cache; older ones keep theirs.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, Self

from mesh_middleware.errors import ConfigError, DecodeError
from mesh_middleware.policy.spiffe import ServiceIdentity
from mesh_middleware.tls.certificates import X509SVID, TrustBundle
from mesh_middleware.tls.handshake import (
    Judge,
    JudgingContext,
    MeshSSLObject,
    MeshSSLSocket,
    PeerRejected,
    VerifiedPeer,
    verified_peer,
)
from mesh_middleware.tls.keys import load_svid

__all__ = ["MeshContext", "PeerRejected", "TLSContexts", "VerifiedPeer", "verified_peer"]

ALPN = tuple[str, ...]

PREPARED = 64
"""How many contexts a new generation makes ahead of their first use."""


class _SealedContext(JudgingContext):
    """An inner context: shared by many connections, so that nothing may change it any more."""

    _sealed = False

    def __setattr__(self, name: str, value: object) -> None:
        self._refuse_change()
        super().__setattr__(name, value)

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        self._refuse_change()
        super().set_alpn_protocols(alpn_protocols)

    def load_cert_chain(self, *args: Any, **kwargs: Any) -> None:
        self._refuse_change()
        super().load_cert_chain(*args, **kwargs)

    def load_verify_locations(self, *args: Any, **kwargs: Any) -> None:
        self._refuse_change()
        super().load_verify_locations(*args, **kwargs)

    def _refuse_change(self) -> None:
        if self._sealed:
            raise ConfigError("this TLS context is shared and never changes; use a MeshContext")


@dataclass(frozen=True, slots=True, eq=False)
class TLSContexts:
    """The TLS contexts of one generation: one leaf, one set of roots.

    `generation`: grows with each published change of the mesh state. `gateways`: whether the server
    side also takes mesh gateways of our trust domain. `root`: which of the roots the leaf leads to
    (`TrustBundle.root_of`), None when nobody has looked. DecodeError when leaf and roots are of
    different trust domains, or OpenSSL does not take them. Safe from any thread.

    `like`: the generation before. The contexts that were in use in it, `PREPARED` at most, are made
    now, in this thread: else the first connection would make each, in an event loop perhaps, in two
    or three milliseconds.
    """

    svid: X509SVID
    bundle: TrustBundle
    generation: int = field(kw_only=True)
    gateways: bool = field(default=False, kw_only=True)
    root: bytes | None = field(default=None, kw_only=True, repr=False)
    _cache: dict[tuple[ALPN, ServiceIdentity | None], ssl.SSLContext] = field(
        init=False, repr=False, default_factory=dict
    )
    _used: set[tuple[ALPN, ServiceIdentity | None]] = field(
        init=False, repr=False, default_factory=set
    )

    like: InitVar[TLSContexts | None] = field(default=None, kw_only=True)

    def __post_init__(self, like: TLSContexts | None) -> None:
        ours, theirs = self.svid.identity.trust_domain, self.bundle.trust_domain
        if ours != theirs:
            raise DecodeError(f"the leaf is of {ours}, the roots are of {theirs}", field="leaf")
        in_use = () if like is None else tuple(like._used)[:PREPARED]
        for alpn, expected in in_use:
            self._cached(alpn, expected)  # in use from now on: the next generation has them too
        if not in_use:
            # What OpenSSL does not take is found out now, not at the first connection.
            self._made((), None)

    def server(self, alpn: Iterable[str] = ()) -> ssl.SSLContext:
        """The context for callers: any service of our trust domain (`check_peer`)."""
        return self._cached(tuple(alpn), None)

    def client(self, expected: ServiceIdentity, alpn: Iterable[str] = ()) -> ssl.SSLContext:
        """The context for calling `expected`, and nobody else: compared as a value."""
        if not isinstance(expected, ServiceIdentity):
            raise ConfigError(f"expected must be a ServiceIdentity, not {expected!r}")
        return self._cached(tuple(alpn), expected)

    def _cached(self, alpn: ALPN, expected: ServiceIdentity | None) -> ssl.SSLContext:
        self._used.add((alpn, expected))
        return self._made(alpn, expected)

    def _made(self, alpn: ALPN, expected: ServiceIdentity | None) -> ssl.SSLContext:
        found = self._cache.get((alpn, expected))
        if found is None:  # two threads may both build one; the first one stays
            found = self._cache.setdefault((alpn, expected), self._build(alpn, expected))
        return found

    def _build(self, alpn: ALPN, expected: ServiceIdentity | None) -> ssl.SSLContext:
        server = expected is None
        context = _SealedContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        # No name but the URI is in the certificates, and the judge compares that one.
        # VERIFY_X509_STRICT stays off: Consul's intermediates have an empty subject since 1.11.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        # 1.3 is not forced: Envoy speaks no more than 1.2 to its upstreams by default.
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A resumed session skips the chain check: no tickets in 1.2 (option) nor in 1.3 (number).
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
        if server:
            context.num_tickets = 0
        load_svid(context, self.svid)
        context.load_verify_locations(cadata=self.bundle.der())
        if alpn:
            context.set_alpn_protocols(alpn)
        context.mesh_judge = Judge(
            self.bundle,
            self.generation,
            gateways=server and self.gateways,
            expected=expected,
            until=self.svid.not_after,
        )
        context._sealed = True
        return context


class MeshContext(JudgingContext):
    """A context for servers and clients that gives each new connection the newest generation.

    It goes wherever an `ssl.SSLContext` goes: asyncio, uvloop, uvicorn, httpx, blocking sockets.
    Make one for each server or client, by `for_server` or `for_client`; settings of one user
    (ALPN) must not reach another. When the mesh has no state yet, wrapping raises what `current`
    raises. Once the leaf has expired no handshake begins: a service that cannot prove itself
    neither takes connections nor makes them.
    """

    _current: Callable[[ALPN], ssl.SSLContext]
    _alpn: ALPN = ()

    def __new__(cls, protocol: int, current: Callable[[ALPN], ssl.SSLContext]) -> Self:
        self = super().__new__(cls, protocol)
        self._current = current
        # For code that looks: the inner contexts are set like this, and only they count.
        self.check_hostname = False
        self.verify_mode = ssl.CERT_REQUIRED
        return self

    @classmethod
    def for_server(
        cls, current: Callable[[], TLSContexts], *, alpn: Iterable[str] = ()
    ) -> MeshContext:
        """For a server. `current` gives the newest contexts; cheap, callable from any thread."""
        return cls._made(ssl.PROTOCOL_TLS_SERVER, lambda wanted: current().server(wanted), alpn)

    @classmethod
    def for_client(
        cls,
        current: Callable[[], TLSContexts],
        expected: ServiceIdentity,
        *,
        alpn: Iterable[str] = (),
    ) -> MeshContext:
        """For a client of the service `expected`; `current` as in `for_server`."""
        return cls._made(
            ssl.PROTOCOL_TLS_CLIENT, lambda wanted: current().client(expected, wanted), alpn
        )

    @classmethod
    def for_client_beside(
        cls, current: Callable[[], TLSContexts], service: str, *, alpn: Iterable[str] = ()
    ) -> MeshContext:
        """For a client of `service`, which is where the caller is: all but the name is the same.

        SpiffeIDError, when connecting, for a name that cannot be in a certificate.
        """

        def newest(wanted: ALPN) -> ssl.SSLContext:
            contexts = current()
            return contexts.client(replace(contexts.svid.identity, service=service), wanted)

        return cls._made(ssl.PROTOCOL_TLS_CLIENT, newest, alpn)

    @classmethod
    def _made(
        cls, protocol: int, current: Callable[[ALPN], ssl.SSLContext], alpn: Iterable[str]
    ) -> MeshContext:
        self = cls(protocol, current)
        if wanted := tuple(alpn):
            self.set_alpn_protocols(wanted)
        return self

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        """Offer these protocols on connections made from now on."""
        self._alpn = tuple(alpn_protocols)
        super().set_alpn_protocols(self._alpn)  # raises for a protocol that cannot be

    def load_cert_chain(self, *_args: Any, **_kwargs: Any) -> None:
        """ConfigError: the mesh gives the certificate."""
        raise ConfigError("the mesh gives this TLS context its certificate; none can be loaded")

    def load_verify_locations(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing: HTTP libraries add public roots on their own; only the mesh's are trusted."""

    def load_default_certs(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing, as in `load_verify_locations`."""

    def wrap_bio(self, *args: Any, **kwargs: Any) -> MeshSSLObject:
        """As in the base class, by the newest inner context."""
        return self._current(self._alpn).wrap_bio(*args, **kwargs)  # type: ignore[return-value]

    def wrap_socket(
        self, sock: socket.socket, server_side: bool = False, *args: Any, **kwargs: Any
    ) -> MeshSSLSocket:
        """As in the base class, by the newest inner context.

        A listening socket keeps this facade, which then wraps what the socket accepts.
        """
        wrap = super().wrap_socket
        if not (server_side and _unconnected(sock)):
            wrap = self._current(self._alpn).wrap_socket
        return wrap(sock, server_side, *args, **kwargs)  # type: ignore[return-value]


def _unconnected(sock: socket.socket) -> bool:
    """Whether `sock` listens, or soon will. One that is broken is left to the base class."""
    try:
        sock.getpeername()
    except OSError:
        return True
    return False

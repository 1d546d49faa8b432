"""Identities that a TLS terminator tells: Consul's Envoy sidecar, nginx, Apache. Off unless given.

    MeshMiddleware(app, service="web", identity_from=[ForwardedClientCert(trusted=["unix"])])

A header is the word of whoever sent it, so a source says whose word counts: `trusted` are addresses
of the *transport*: ``unix`` for a unix socket, an IP address, or a network such as 10.0.0.0/30. The
address is taken from the socket or, with ASGI, from ``scope["client"]``; one that a server took
from X-Forwarded-For is not the transport's, and does not count (run uvicorn with
``--no-proxy-headers``).

The terminator proves that the caller has the certificate's key. The certificate itself is verified
here against the mesh's roots (`peer.ChainVerifier`), as always, so that a removed root counts at
once. The source's headers are taken out of every request, whoever sent it; a caller whom the
connection itself proves needs no header.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import unquote

from cryptography.hazmat.primitives.serialization import Encoding

from mesh_middleware._types import Environ, Scope
from mesh_middleware.errors import ConfigError, PeerIdentityError, SpiffeIDError
from mesh_middleware.middleware.forwarded import last_element
from mesh_middleware.middleware.sockets import SOCKETS
from mesh_middleware.policy.spiffe import ServiceIdentity
from mesh_middleware.state import MeshState
from mesh_middleware.tls.certificates import PeerCertificate

Chain = tuple[bytes, ...]
"""DER certificates, the caller's first; empty: nobody is proven."""

UNIX: Final = "unix"

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_FORWARDED: Final = frozenset({b"x-forwarded-for", b"forwarded", b"x-real-ip"})


@dataclass(frozen=True, slots=True)
class Trusted:
    """Transport addresses whose word counts. ConfigError for none, and for everybody."""

    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    unix: bool

    @classmethod
    def of(cls, given: Iterable[str]) -> Trusted:
        """From ``unix``, addresses and networks."""
        if isinstance(given, str):
            raise ConfigError("trusted takes a list, such as ['unix'] or ['127.0.0.1']")
        names = list(given)
        try:
            networks = tuple(ipaddress.ip_network(name) for name in names if name != UNIX)
        except ValueError as error:
            raise ConfigError(f"trusted: {error}; write 'unix', an address or a network") from error
        if not names or any(network.prefixlen == 0 for network in networks):
            raise ConfigError(
                "trusted must name who may tell the caller: not nobody, not everybody"
            )
        return cls(networks, UNIX in names)

    def __contains__(self, address: str | None) -> bool:
        if address is None or address == UNIX:
            return address is not None and self.unix
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(found, "ipv4_mapped", None)  # ::ffff:127.0.0.1, on a dual-stack listener
        return any((mapped or found) in network for network in self.networks)


class IdentitySource(Protocol):
    """One way of being told. `headers`: the names that it reads, in lower case."""

    @property
    def headers(self) -> frozenset[bytes]:
        """Header names that the application never sees, in lower case."""
        ...

    def chain(self, told: Told) -> Chain:
        """The caller's certificates, or none."""
        ...


@dataclass(frozen=True, slots=True)
class Told:
    """A request's words about its caller: headers by name, the transport's address, the environ."""

    headers: Mapping[bytes, list[bytes]]
    transport: str | None
    environ: Mapping[str, Any]
    own: ServiceIdentity | None

    def one(self, name: bytes) -> str:
        """The value of a header that is there once; empty otherwise."""
        values = self.headers.get(name, [])
        return values[0].decode("latin-1") if len(values) == 1 else ""


@dataclass(frozen=True, slots=True)
class ForwardedClientCert:
    """``x-forwarded-client-cert`` of an Envoy, Consul's sidecar for one.

    Only the last element counts: it is the trusted Envoy's own, what comes before it a client may
    have sent. Its ``By`` must be our own identity, so that what Envoy says about another service's
    callers is not taken for ours; it must have ``Cert``, and ``URI`` and ``Hash`` must fit it.

    Source: Envoy, HTTP header manipulation; Consul sets Cert, Chain and URI.
    """

    trusted: Iterable[str]
    headers: frozenset[bytes] = frozenset({b"x-forwarded-client-cert"})
    _trusted: Trusted = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_trusted", Trusted.of(self.trusted))

    def chain(self, told: Told) -> Chain:
        """The caller's certificates, or none."""
        if told.transport not in self._trusted or told.own is None:
            return ()
        lines = told.headers.get(b"x-forwarded-client-cert", [])
        element = last_element(b",".join(lines).decode("latin-1"))
        if element is None or len(element["by"]) != 1 or len(element["cert"]) != 1:
            return ()
        if _identity(element["by"][0]) != told.own:
            return ()
        chain = _certificates(unquote(element["cert"][0]))
        if len(chain) != 1 or not _fits(chain[0], element):
            return ()
        return (*chain, *(der for pem in element["chain"] for der in _certificates(unquote(pem))))


@dataclass(frozen=True, slots=True)
class EscapedCertificate:
    """Headers that nginx makes of ``$ssl_client_escaped_cert`` and ``$ssl_client_verify``.

        proxy_set_header X-SSL-Client-Cert   $ssl_client_escaped_cert;
        proxy_set_header X-SSL-Client-Verify $ssl_client_verify;

    Both must be set for every request, so that nginx overwrites what a client sends. `verify` must
    say ``SUCCESS``.
    """

    trusted: Iterable[str]
    certificate: str = "x-ssl-client-cert"
    verify: str = "x-ssl-client-verify"
    _trusted: Trusted = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_trusted", Trusted.of(self.trusted))
        for name in (self.certificate, self.verify):
            if not re.fullmatch(r"[A-Za-z0-9-]+", name):
                raise ConfigError(f"header {name!r}: letters, digits and '-' only")

    @property
    def headers(self) -> frozenset[bytes]:
        """Both headers."""
        return frozenset({self.certificate.lower().encode(), self.verify.lower().encode()})

    def chain(self, told: Told) -> Chain:
        """The caller's certificates, or none."""
        if told.transport not in self._trusted:
            return ()
        if told.one(self.verify.lower().encode()) != "SUCCESS":
            return ()
        chain = _certificates(unquote(told.one(self.certificate.lower().encode())))
        return chain if len(chain) == 1 else ()


@dataclass(frozen=True, slots=True)
class ServerVariables:
    """``SSL_CLIENT_CERT`` and ``SSL_CLIENT_VERIFY`` of a WSGI environ: mod_wsgi with mod_ssl.

    The server itself puts them there (``SSLOptions +StdEnvVars +ExportCertData``); no header can,
    headers are ``HTTP_*``. Only for a server that sets or removes both for every request.
    """

    headers: frozenset[bytes] = frozenset()

    def chain(self, told: Told) -> Chain:
        """The caller's certificates, or none."""
        environ = told.environ
        if environ.get("SSL_CLIENT_VERIFY") != "SUCCESS":
            return ()
        names = ["SSL_CLIENT_CERT", *(f"SSL_CLIENT_CERT_CHAIN_{n}" for n in range(10))]
        return tuple(der for name in names for der in _certificates(str(environ.get(name, ""))))


class Sources:
    """The sources of one middleware; false when there are none."""

    def __init__(self, sources: Iterable[IdentitySource]) -> None:
        self._sources = tuple(sources)
        self._headers = frozenset(name for source in self._sources for name in source.headers)

    def __bool__(self) -> bool:
        return bool(self._sources)

    def tls(
        self, scope: Scope, state: MeshState, environ: Environ | None = None
    ) -> Mapping[str, Any] | None:
        """The value of a TLS extension with whom the sources tell, or None.

        Takes their headers out of `scope`. The first source that tells somebody counts.
        """
        told: dict[bytes, list[bytes]] = {}
        kept = []
        for name, value in scope["headers"]:
            if (plain := name.lower()) in self._headers:
                told.setdefault(plain, []).append(value)
            elif plain.replace(b"_", b"-") not in self._headers:
                kept.append((name, value))
        transport = transport_of(scope) if environ is None else environ_transport(environ)
        scope["headers"] = kept
        svid = state.svid
        words = Told(told, transport, environ or {}, None if svid is None else svid.identity)
        for source in self._sources:
            if chain := source.chain(words):
                # Terminators seldom pass intermediates on; those of our own leaf are likely his.
                ours = () if svid is None else svid.certificates[1:]
                more = tuple(each.public_bytes(Encoding.DER) for each in ours)
                return {"client_cert_chain": (*chain, *more)}
        return None


def transport_of(scope: Scope) -> str | None:
    """The transport's own address of the other end: an IP address, ``unix``, or None, unknown.

    Servers put an address from a header into ``client`` when told to. Then that address is in the
    header; so one that is there is not believed. Callers on the proxy's own machine: `UNIX`.
    """
    client, server = scope.get("client"), scope.get("server")
    if client is None:
        return UNIX if server and server[1] is None else None
    host = str(client[0])
    if not client[1] or host == UNIX:
        return None
    for name, value in scope["headers"]:
        if name.lower() in _FORWARDED and host.encode() in value:
            return None
    return host


def environ_transport(environ: Environ) -> str | None:
    """`transport_of` for WSGI: from the server's socket or the ASGI scope, never REMOTE_ADDR."""
    for key in SOCKETS:
        connection = environ.get(key)
        if isinstance(connection, socket.socket):
            if connection.family == socket.AF_UNIX:
                return UNIX
            try:
                return str(connection.getpeername()[0])
            except OSError:
                return None
    scope = environ.get("asgi.scope")
    return transport_of(scope) if scope and "headers" in scope else None


def _certificates(text: str) -> Chain:
    try:
        return tuple(ssl.PEM_cert_to_DER_cert(pem) for pem in _PEM.findall(text))
    except ValueError:
        return ()


def _fits(leaf: bytes, element: Mapping[str, list[str]]) -> bool:
    """Whether ``URI`` and ``Hash``, where they are said, are those of the certificate."""
    try:
        certificate = PeerCertificate.from_der(leaf)
    except PeerIdentityError:
        return False
    said, digests = element["uri"], element["hash"]
    return all(_identity(uri) == certificate.identity for uri in said) and all(
        digest.lower() == hashlib.sha256(leaf).hexdigest() for digest in digests
    )


def _identity(text: str) -> ServiceIdentity | None:
    try:
        return ServiceIdentity.from_string(unquote(text))
    except SpiffeIDError:
        return None

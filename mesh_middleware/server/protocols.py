"""How the proven caller gets from uvicorn's TLS connection into every scope.

uvicorn (0.54) puts nothing about TLS into a scope. Two hooks carry it there, once per connection:

1. `MeshHTTP`, given as ``Config(http=...)``, waits for the finished handshake, reads what our
   handshake hook proved and puts it into this connection's own copy of the application state.
   uvicorn copies that state into each request's ``scope["state"]`` and hands it on to its
   WebSocket and HTTP/2 protocols. Only then does it build uvicorn's real protocol.
2. `MeshScope`, the outermost ASGI application, moves it from the state into
   ``scope["extensions"]``, where an application or a client cannot have put anything.

The constructor contract ``(config, server_state, app_state, _loop)`` of uvicorn's protocols is
not documented; it is unchanged from 0.21 to 0.54, and tests/server holds each combination.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
import time
import weakref
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import quote

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.importer import ImportFromStringError, import_from_string

from mesh_middleware._types import ASGIApp, Receive, Scope, Send
from mesh_middleware.errors import ConfigError
from mesh_middleware.middleware.peer import EXTENSION, PEER_KEY
from mesh_middleware.server.bounds import bounded
from mesh_middleware.tls.contexts import verified_peer

TLS_KEY = "mesh_middleware.tls"
"""Where the TLS extension of a connection travels in the application state."""

_TLS_VERSIONS = MappingProxyType({"TLSv1.2": 0x0303, "TLSv1.3": 0x0304})

HANDSHAKE_SECONDS = 3.0
"""For so long a new connection may be in its handshake: nobody is told of one that failed."""

logger = logging.getLogger("mesh_middleware.server")

_handshakes: weakref.WeakSet[MeshHTTP] = weakref.WeakSet()
"""When a handshake is done, uvicorn's protocol takes over and nobody refers to ours any more."""


def shaking_hands() -> bool:
    """Whether this process has accepted connections whose handshake may be going on."""
    since = time.monotonic() - HANDSHAKE_SECONDS
    return any(connection.accepted > since for connection in tuple(_handshakes))


class MeshHTTP(asyncio.Protocol):
    """uvicorn's HTTP protocol, with the proven caller in its application state.

    The subclasses name the other implementations; `protocol_class` finds them.
    """

    implementation: ClassVar[str] = HTTP_PROTOCOLS["auto"]

    def __init__(
        self,
        config: Any,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._make = functools.partial(
            implementation(self.implementation),
            config=config,
            server_state=server_state,
            _loop=_loop,
        )
        self._app_state = app_state
        self.accepted = time.monotonic()
        _handshakes.add(self)

    def connection_made(self, transport: Any) -> None:
        """The handshake is done: let uvicorn's protocol take over, knowing who called.

        An exception that leaves this method kills the connection with a message that says
        nothing, so it is logged here and the connection closed.
        """
        try:
            protocol = self._make(
                app_state=connection_state(self._app_state, transport.get_extra_info("ssl_object"))
            )
            transport.set_protocol(protocol)
            protocol.connection_made(transport)
        except Exception:
            logger.exception("a connection could not be set up and was closed")
            transport.abort()


class MeshH11(MeshHTTP):
    """``http="h11"``."""

    implementation = HTTP_PROTOCOLS["h11"]


class MeshHTTPTools(MeshHTTP):
    """``http="httptools"``."""

    implementation = HTTP_PROTOCOLS["httptools"]


class MeshZttp(MeshHTTP):
    """``http="zttp"``: HTTP/1.1."""

    implementation = "uvicorn.protocols.http.zttp_impl:ZttpProtocol"


class MeshHTTP2(MeshHTTP):
    """``http="zttp", http2=True``: HTTP/2 and HTTP/1.1, chosen by ALPN."""

    implementation = "uvicorn.protocols.http.auto_zttp_impl:AutoZttpProtocol"
    alpn_protocols: ClassVar[list[str]] = ["h2", "http/1.1"]


_CLASSES: Mapping[str, type[MeshHTTP]] = MappingProxyType(
    {"auto": MeshHTTP, "h11": MeshH11, "httptools": MeshHTTPTools, "zttp": MeshZttp}
)


@functools.cache
def implementation(name: str) -> Callable[..., Any]:
    """The class of uvicorn that `name` (``module:Class``) means, with our bounds; made once."""
    base: type = import_from_string(name)
    if hasattr(base, "on_url"):
        base = type(base.__name__, (WireTarget, base), {})
    return bounded(base)


class WireTarget:
    """Mixed into uvicorn's protocol of httptools, which cuts a target before anybody sees it.

    A fragment is dropped, and so are scheme and authority of an absolute-form target; rules judge
    what was sent. Guarded by a test with a real socket (uvicorn 0.54).
    """

    url: bytes
    scope: dict[str, Any]

    def on_url(self, url: bytes) -> None:
        """As in the base class; the scope has the target so far, until `MeshScope` takes it."""
        super().on_url(url)  # type: ignore[misc]
        self.scope[_TARGET_KEY] = self.url


def protocol_class(http: str = "auto", *, http2: bool = False) -> type[MeshHTTP]:
    """The `MeshHTTP` to give to uvicorn in the place of its own `http` option.

    `http`: one of uvicorn's names (``auto``, ``h11``, ``httptools``, ``zttp``). ConfigError for
    another name, for `http2` without ``zttp``, and when the package behind the name is missing.
    """
    if http not in _CLASSES:
        raise ConfigError(
            f"--http {http}: a protocol class of your own would not carry the caller's identity; "
            f"use one of {', '.join(_CLASSES)}"
        )
    if http2 and http != "zttp":
        raise ConfigError("--http2 needs --http zttp (pip install zttp)")
    chosen = MeshHTTP2 if http2 else _CLASSES[http]
    try:
        implementation(chosen.implementation)
    except (ImportError, ImportFromStringError) as error:
        raise ConfigError(f"--http {http} needs a package that is missing: {error}") from error
    return chosen


def connection_state(app_state: dict[str, Any], ssl_object: ssl.SSLObject | None) -> dict[str, Any]:
    """A copy of `app_state` that says who is at the other end of this one connection.

    Without a caller that our own handshake proved the keys are absent, whatever the application
    put under them.
    """
    state = {key: value for key, value in app_state.items() if key not in (PEER_KEY, TLS_KEY)}
    if ssl_object is not None:
        peer = verified_peer(ssl_object)
        if peer is not None:
            state[PEER_KEY] = peer
            state[TLS_KEY] = tls_extension(ssl_object, peer.certificate.der)
    return state


def tls_extension(ssl_object: ssl.SSLObject, client_certificate: bytes) -> Mapping[str, Any]:
    """The value of ``scope["extensions"]["tls"]``. Source: ASGI TLS extension 0.2.

    `client_certificate` is DER. The chain holds the client's own certificate only; the server's
    certificate and the client's name (empty for SPIFFE) are None.
    """
    cipher = ssl_object.cipher()
    return MappingProxyType(
        {
            "server_cert": None,
            "client_cert_chain": (ssl.DER_cert_to_PEM_cert(client_certificate),),
            "client_cert_name": None,
            "client_cert_error": None,
            "tls_version": _TLS_VERSIONS.get(ssl_object.version() or ""),
            "cipher_suite": cipher_number(cipher[0]) if cipher else None,
        }
    )


@functools.cache
def cipher_number(name: str) -> int | None:
    """The IANA number of the cipher suite that OpenSSL calls `name`; None when unknown."""
    ciphers = ssl.create_default_context().get_ciphers()
    return next((int(c["id"]) & 0xFFFF for c in ciphers if c["name"] == name), None)


class MeshScope:
    """The outermost ASGI application: tells the inner ones who called, and with what target.

    For each request ``scope["extensions"]["mesh_middleware"]`` is ``{"peer": VerifiedPeer or
    None, "target": bytes}`` and ``scope["extensions"]["tls"]`` follows the ASGI TLS extension.
    The target is the request target as received: uvicorn puts its ``--root-path`` in front of
    ``raw_path``, which is taken away again here. Costs about a microsecond per request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope; lifespan passes as it is."""
        if scope["type"] != "lifespan":
            state = scope.get("state")
            peer, tls = (state.pop(PEER_KEY, None), state.pop(TLS_KEY, None)) if state else _NOBODY
            ours = {"peer": peer, "target": wire_target(scope)}
            extensions = scope.get("extensions")
            if extensions is None:
                scope["extensions"] = (
                    {EXTENSION: ours} if tls is None else {EXTENSION: ours, "tls": tls}
                )
            else:
                extensions[EXTENSION] = ours
                if tls is not None:
                    extensions["tls"] = tls
        await self.app(scope, receive, send)


_NOBODY = (None, None)
_TARGET_KEY = "mesh_middleware.target"


def wire_target(scope: Scope) -> bytes:
    """The request target as the client sent it, query included. Taken out of `scope`."""
    sent: bytes | None = scope.pop(_TARGET_KEY, None)
    if sent is not None:
        return sent
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        raw = quote(scope["path"], safe="/%:@!$&'()*+,;=~").encode("ascii")
    if root := scope.get("root_path"):
        raw = raw.removeprefix(root.encode("ascii", "replace"))
    query: bytes | None = scope.get("query_string")
    return raw + b"?" + query if query else raw

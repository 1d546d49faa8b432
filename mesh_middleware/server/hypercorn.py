"""hypercorn on the mesh: HTTP/1.1 and HTTP/2 with the mesh's certificates and the proven caller.

    import asyncio
    from hypercorn.asyncio import serve
    from mesh_middleware.server.hypercorn import HypercornConfig

    config = HypercornConfig("orders")
    config.bind = ["0.0.0.0:8443"]
    asyncio.run(serve(app, config))  # app: MeshMiddleware(..., service="orders")

hypercorn (0.18) has a hook for the TLS context but tells the application nothing of a connection.
So `create_ssl_context` also puts `MeshTCPServer` in the place of the class that serves one
connection; it does nothing for another `Config`. Should a later hypercorn no longer look there, no
request has a caller, and every one is refused.

WSGI applications go through ``mesh_middleware.server.wsgi.ThreadedWSGI``: hypercorn's own wrapper
tells them nothing of the scope.
"""

from __future__ import annotations

import ssl
from typing import Any

import hypercorn.asyncio.run
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config

from mesh_middleware.errors import ConfigError, NotReadyError
from mesh_middleware.middleware.peer import EXTENSION
from mesh_middleware.runtime import manager_for
from mesh_middleware.server.protocols import tls_extension
from mesh_middleware.tls.contexts import MeshContext, TLSContexts, VerifiedPeer, verified_peer


class HypercornConfig(Config):
    """hypercorn's settings for the service `service`: its name in Consul.

    Every address of `bind` is served with mTLS. ConfigError at start for ``insecure_bind``,
    ``quic_bind`` and the worker class ``trio``, none of which can tell who calls.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        if not service:
            raise ConfigError("service must be the name of a Consul service, not empty")
        self.mesh_service = service

    @property
    def ssl_enabled(self) -> bool:
        """True: there is no other way in."""
        return True

    def create_ssl_context(self) -> ssl.SSLContext:
        """The context that gives each new connection the newest certificate.

        Starts the process's manager; connections that come before its first leaf are dropped.
        """
        if self.insecure_bind or self.quic_bind:
            raise ConfigError("insecure_bind and quic_bind cannot tell who calls; leave them out")
        if self.worker_class not in ("asyncio", "uvloop"):
            raise ConfigError(f"worker_class {self.worker_class!r}: use asyncio or uvloop")
        hypercorn.asyncio.run.TCPServer = MeshTCPServer  # type: ignore[assignment,attr-defined]
        source = manager_for(self.mesh_service)

        def current() -> TLSContexts:
            contexts = source.state.contexts
            if contexts is None:
                raise NotReadyError(
                    f"no certificate for {self.mesh_service!r} yet", missing=source.state.missing()
                )
            return contexts

        return MeshContext.for_server(current, alpn=self.alpn_protocols)


class MeshTCPServer(TCPServer):
    """One connection of hypercorn; its application is told who is at the other end."""

    def __init__(self, app: Any, loop: Any, config: Config, *args: Any) -> None:
        super().__init__(app, loop, config, *args)
        connection = self.writer.get_extra_info("ssl_object")
        peer = verified_peer(connection)
        if isinstance(config, HypercornConfig) and peer is not None:
            told: Any = _Told(app, peer, connection)
            self.app = told


class _Told:
    """An application whose scopes say who calls. Headers cannot be where these extensions are."""

    def __init__(self, app: Any, peer: VerifiedPeer, connection: ssl.SSLObject) -> None:
        self.app = app
        self._peer = peer
        self._tls = tls_extension(connection, peer.certificate.der)

    async def __call__(self, scope: Any, *channel: Any) -> None:
        extensions = scope["extensions"]
        extensions[EXTENSION] = {"peer": self._peer}
        extensions["tls"] = self._tls
        await self.app(scope, *channel)

"""A mesh without an agent for tests of the serving side: contexts, servers in threads, clients."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.policy.spiffe import ServiceIdentity, TrustDomain
from mesh_middleware.server.protocols import MeshScope, protocol_class
from mesh_middleware.tls.certificates import X509SVID, TrustBundle
from mesh_middleware.tls.contexts import MeshContext, TLSContexts
from tests.support import wait_for


@dataclass(frozen=True)
class Mesh:
    """A certificate authority and the contexts of its services."""

    ca: CertificateAuthority

    @classmethod
    def new(cls) -> Mesh:
        return cls(CertificateAuthority())

    @property
    def bundle(self) -> TrustBundle:
        pems = [root["RootCert"] for root in self.ca.roots()]
        return TrustBundle.from_pem(TrustDomain(self.ca.trust_domain), pems)

    def identity(self, service: str) -> ServiceIdentity:
        return X509SVID.from_pem(*self.leaf(service)).identity

    def leaf(self, service: str) -> tuple[str, str]:
        leaf = self.ca.issue(service)
        return leaf.cert_pem, leaf.key_pem

    def contexts(self, service: str, generation: int = 1) -> TLSContexts:
        svid = X509SVID.from_pem(*self.leaf(service))
        return TLSContexts(svid, self.bundle, generation=generation)

    def server_context(self, service: str, alpn: tuple[str, ...] = ()) -> MeshContext:
        contexts = self.contexts(service)
        return MeshContext.for_server(lambda: contexts, alpn=alpn)

    def connect(
        self, port: int, caller: str, server: str, alpn: tuple[str, ...] = ()
    ) -> ssl.SSLSocket:
        """A TLS connection to `port` on loopback as `caller`, proving the server is `server`."""
        context = self.contexts(caller).client(self.identity(server), alpn)
        sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        return context.wrap_socket(sock, server_hostname="mesh")


@contextmanager
def serving(app: Any, context: ssl.SSLContext | None = None, **options: Any) -> Iterator[int]:
    """`app` behind the hooks on a free loopback port, by uvicorn in a thread; yields the port."""
    http_class = protocol_class(options.pop("http", "auto"), http2=options.pop("http2", False))
    if context is not None:
        options["ssl_context_factory"] = lambda _config, _default: context
    config = uvicorn.Config(
        MeshScope(app),
        http=http_class,
        proxy_headers=False,
        log_config=None,
        lifespan=options.pop("lifespan", "off"),
        timeout_graceful_shutdown=2,
        **options,
    )
    with running(uvicorn.Server(config)) as port:
        yield port


@contextmanager
def running(server: uvicorn.Server) -> Iterator[int]:
    """`server` in a thread on a free loopback port; stopped and joined at the end."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive(), message="uvicorn did not start")
        yield listener.getsockname()[1] if server.started else 0
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "uvicorn did not stop"
        listener.close()


def request(
    sock: socket.socket, target: str = "/", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """One GET on an open connection; the connection stays usable."""
    return request_last(sock, target, headers)[:2]


def request_last(
    sock: socket.socket, target: str = "/", headers: dict[str, str] | None = None
) -> tuple[int, bytes, bool]:
    """`request`, and whether the server wants it to be the last one on this connection."""
    lines = [f"GET {target} HTTP/1.1", "host: mesh"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    response = http.client.HTTPResponse(sock, method="GET")
    response.begin()
    return response.status, response.read(), response.will_close


def in_thread(coroutine: Callable[[], Any]) -> Any:
    """The result of `coroutine()`, run by its own loop."""
    return asyncio.run(coroutine())

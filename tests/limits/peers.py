"""A service with every limit in reach, and peers of it: allowed, refused, and strangers."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mesh_middleware._types import ASGIApp
from mesh_middleware.middleware.asgi import MeshMiddleware
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.policy.spiffe import TrustDomain
from mesh_middleware.state import MeshState, StaticState
from mesh_middleware.tls.contexts import MeshContext
from tests.server.mesh import Mesh, serving


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers, reads bodies to the end, holds ``/hold`` until the peer goes, echoes WebSockets."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        return
    while (message := await receive()).get("more_body"):
        pass
    if scope["path"] == "/hold":
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


@dataclass
class Service:
    """`port` of the service ``api``, which lets ``web`` in and nobody else."""

    mesh: Mesh
    port: int

    def connect(self, caller: str = "web", alpn: tuple[str, ...] = ()) -> ssl.SSLSocket:
        return self.mesh.connect(self.port, caller, "api", alpn)

    def plain(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


@contextlib.contextmanager
def service(
    http: str = "auto", *, http2: bool = False, app: ASGIApp = app, **options: Any
) -> Iterator[Service]:
    mesh = Mesh.new()
    contexts = mesh.contexts("api")
    policy = compile_policy(
        [Intention("web", "api", Action.ALLOW)],
        default_action=Action.DENY,
        trust_domain=TrustDomain(mesh.ca.trust_domain),
        service="api",
    )
    state = MeshState(
        "api", 1, svid=contexts.svid, bundle=contexts.bundle, contexts=contexts, policy=policy
    )
    alpn = ("h2", "http/1.1") if http2 else ()
    context = MeshContext.for_server(lambda: contexts, alpn=alpn)
    wrapped = MeshMiddleware(app, mesh=StaticState(state))
    with serving(wrapped, context, http=http, http2=http2, **options) as port:
        yield Service(mesh, port)


def ended(sock: socket.socket, seconds: float = 15.0) -> bytes:
    """What came until the other side ended the connection; TimeoutError when it did not."""
    sock.settimeout(seconds)
    data = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while more := sock.recv(65536):
            data += more
    return data

"""Applications that are guarded by name, as they stand in a user's module."""

from __future__ import annotations

import json
import os
from typing import Any

from mesh_middleware import MeshMiddleware, MeshWSGIMiddleware, PeerIdentityError, peer_identity
from mesh_middleware.middleware.proxies import EscapedCertificate, ForwardedClientCert
from mesh_middleware.server.wsgi import ThreadedWSGI
from tests.servers.wsgi_apps import whoami

wsgi = MeshWSGIMiddleware(whoami, service="api")


async def whoami_asgi(scope: Any, receive: Any, send: Any) -> None:
    """Says who calls, where, and over which protocol; echoes on a WebSocket."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    try:
        caller = peer_identity(scope).service
    except PeerIdentityError:
        caller = ""
    said = {
        "caller": caller,
        "path": scope["path"],
        "pid": os.getpid(),
        "http": scope["http_version"],
        "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
    }
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": json.dumps(said)})
        await receive()
        return
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})


asgi = MeshMiddleware(whoami_asgi, service="api")
threaded = MeshMiddleware(ThreadedWSGI(whoami, 4), service="api")

ENVOY = [ForwardedClientCert(trusted=["unix"])]
NGINX = [EscapedCertificate(trusted=["unix"])]
wsgi_behind_envoy = MeshWSGIMiddleware(whoami, service="api", identity_from=ENVOY)
wsgi_behind_nginx = MeshWSGIMiddleware(whoami, service="api", identity_from=NGINX)
asgi_behind_envoy = MeshMiddleware(whoami_asgi, service="api", identity_from=ENVOY)
asgi_behind_nginx = MeshMiddleware(whoami_asgi, service="api", identity_from=NGINX)

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from mesh_middleware import MeshConfig, MeshManager, MeshMiddleware, peer_identity
from tests.server.mesh import serving
from tests.upstream.world import World, new_world

INTENTIONS = [
    {
        "SourceName": "web",
        "DestinationName": "billing",
        "Permissions": [
            {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
            {"Action": "allow", "HTTP": {"PathPrefix": "/"}},
        ],
    },
    {"SourceName": "stranger", "DestinationName": "billing", "Action": "deny"},
]


async def whoami(scope: Any, receive: Any, send: Any) -> None:
    """Says who is calling, by which HTTP."""
    said = {"caller": peer_identity(scope).service, "http": scope["http_version"]}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """A plain service, behind somebody else's proxy; counts its requests."""
    hello.requests += 1  # type: ignore[attr-defined]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello from billing"})


@pytest.fixture
def world() -> Iterator[World]:
    """An agent with intentions for billing, and the manager of the caller web."""
    with new_world() as made:
        made.agent.put_intentions(INTENTIONS)
        yield made


@pytest.fixture
def backend() -> Iterator[int]:
    """A plain HTTP service; its port."""
    hello.requests = 0  # type: ignore[attr-defined]
    with serving(hello) as port:
        yield port


@dataclass
class Billing:
    """Our server of the service billing."""

    manager: MeshManager
    port: int


Serve = Callable[..., contextlib.AbstractContextManager[Billing]]


@contextlib.contextmanager
def serve_billing(address: str, *, http2: bool = False) -> Iterator[Billing]:
    """Our middleware and TLS in front of `whoami`, as the service billing of that agent."""
    with MeshManager(MeshConfig("billing", address=address)) as manager:
        manager.wait_ready(15)
        app = MeshMiddleware(whoami, mesh=manager)
        context = manager.server_context(("h2", "http/1.1") if http2 else ("http/1.1",))
        options: dict[str, Any] = {"http": "zttp", "http2": True} if http2 else {}
        with serving(app, context, **options) as port:
            yield Billing(manager, port)

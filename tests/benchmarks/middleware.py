"""What the launcher's wrapper and the middleware add to a request, in process."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mesh_middleware import MeshMiddleware
from mesh_middleware._types import ASGIApp, Receive, Scope, Send
from mesh_middleware.devagent.ca import CertificateAuthority
from mesh_middleware.middleware.peer import PEER_KEY
from mesh_middleware.policy.intentions import Action, Intention
from mesh_middleware.server.protocols import MeshScope
from mesh_middleware.state import MeshState, StaticState
from mesh_middleware.tls.certificates import X509SVID, PeerCertificate, TrustBundle
from mesh_middleware.tls.contexts import VerifiedPeer
from tests.benchmarks.decisions import HEADERS, HIT, l7, misses, policy
from tests.benchmarks.measure import table


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that does nothing."""


async def _never() -> dict[str, Any]:
    return {"type": "http.disconnect"}


async def _ignore(message: Any) -> None:
    pass


def scopes(peer: VerifiedPeer, count: int) -> list[Scope]:
    """Scopes as uvicorn makes them, the launcher's hook in its state."""
    return [
        {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 8443),
            "client": ("127.0.0.1", 50000),
            "scheme": "https",
            "method": "GET",
            "root_path": "",
            "path": "/v1/items/42",
            "raw_path": b"/v1/items/42",
            "query_string": b"verbose=1",
            "headers": HEADERS,
            "state": {PEER_KEY: peer},
        }
        for _ in range(count)
    ]


def cpu_per_request(app: ASGIApp, peer: VerifiedPeer, count: int, repeat: int) -> float:
    """CPU microseconds for one request through `app`, the best of `repeat` rounds.

    `count` scopes are prepared for a round: few, so that they are in the processor's cache as a
    scope is that uvicorn has just made.
    """

    async def round_of(prepared: list[Scope]) -> float:
        start = time.process_time()
        for scope in prepared:
            await app(scope, _never, _ignore)
        return (time.process_time() - start) / count * 1e6

    return min(asyncio.run(round_of(scopes(peer, count))) for _ in range(repeat))


def proven_peer() -> tuple[TrustBundle, VerifiedPeer]:
    """A caller as the handshake proves it, and the roots."""
    ca = CertificateAuthority("11111111-2222-3333-4444-555555555555.consul")
    leaf = ca.issue("web7")
    svid = X509SVID.from_pem(leaf.cert_pem, leaf.key_pem)
    bundle = TrustBundle.from_pem(
        svid.identity.trust_domain, [root["RootCert"] for root in ca.roots()]
    )
    certificate = PeerCertificate.from_certificate(svid.certificates[0])
    return bundle, VerifiedPeer(certificate, next(iter(bundle.fingerprints)), 1)


def report(*, short: bool = False) -> str:
    """The table of this file."""
    count, repeat = (50, 2) if short else (250, 400)
    bundle, peer = proven_peer()
    bare = cpu_per_request(nothing, peer, count, repeat)
    again = cpu_per_request(nothing, peer, count, repeat)
    rows: list[tuple[object, ...]] = [
        ("the application alone", bare, 0.0),
        ("the application alone, again", again, again - bare),
    ]
    for name, compiled in (
        ("launcher and middleware, L4", policy(Intention("web7", "api", Action.ALLOW))),
        ("launcher and middleware, 8 literal permissions", l7(*misses(7), HIT)),
    ):
        state = MeshState(service="api", generation=1, policy=compiled, bundle=bundle)
        app = MeshScope(MeshMiddleware(nothing, mesh=StaticState(state)))
        cost = cpu_per_request(app, peer, count, repeat)
        rows.append((name, cost, cost - bare))
    return table("Added to one request, CPU microseconds", ("what runs", "total", "added"), rows)

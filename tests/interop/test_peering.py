"""Callers of a peered cluster, who come through a real Envoy as mesh gateway."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh_middleware import (
    Action,
    MeshConfig,
    MeshManager,
    MeshMiddleware,
    decision_of,
    peer_identity,
)
from mesh_middleware.devagent.ca import CertificateAuthority, Leaf
from tests.interop.gateway import gateway, gateway_leaf
from tests.server.mesh import serving
from tests.support import wait_for
from tests.tls.mesh import foreign_context
from tests.upstream.world import World

ENTRY = {
    "Kind": "service-intentions",
    "Name": "billing",
    "Sources": [
        {
            "Name": "web",
            "Peer": "east",
            "Permissions": [
                {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
                {"Action": "allow", "HTTP": {"PathPrefix": "/"}},
            ],
        },
        {"Name": "shop", "Action": "allow"},
    ],
}


async def whoami(scope: Any, receive: Any, send: Any) -> None:
    """Says who calls, and what is left of the header that says it."""
    caller = peer_identity(scope)
    said = {
        "caller": str(caller),
        "peer": caller.peer,
        "xfcc": [name.decode() for name, _ in scope["headers"] if b"client-cert" in name],
        "reason": str(decision_of(scope).reason),
    }
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})


@pytest.fixture
def east() -> CertificateAuthority:
    """The peer's own CA."""
    return CertificateAuthority("22222222-aaaa-4bbb-8ccc-dddddddddddd.consul")


@pytest.fixture
def peers_file(east: CertificateAuthority, tmp_path: Path) -> Path:
    file = tmp_path / "peers.yaml"
    file.write_text(f"- PeerName: east\n  TrustDomain: {east.trust_domain}\n")
    return file


@contextlib.contextmanager
def billing(world: World, peers_file: Path | None) -> Iterator[int]:
    world.agent.put_intentions(ENTRY)
    config = MeshConfig(
        "billing",
        address=world.agent.address,
        peers_file=peers_file and str(peers_file),
        default_action=Action.DENY,
    )
    with MeshManager(config) as manager:
        manager.wait_ready(15)
        app = MeshMiddleware(whoami, mesh=manager)
        with serving(app, manager.server_context(("http/1.1",))) as port:
            yield port


def client(leaf: Leaf, trusted: CertificateAuthority, folder: Path, port: int) -> httpx.Client:
    context = foreign_context(ssl.PROTOCOL_TLS_CLIENT, leaf, [trusted], folder)
    return httpx.Client(verify=context, base_url=f"https://127.0.0.1:{port}", trust_env=False)


def xfcc(uri: str) -> dict[str, str]:
    return {"x-forwarded-client-cert": f"Hash=00;URI={uri}"}


def uri(ca: CertificateAuthority, service: str) -> str:
    return f"spiffe://{ca.trust_domain}/ns/default/dc/dc1/svc/{service}"


def test_a_peered_service_calls_through_a_gateway(
    world: World, east: CertificateAuthority, peers_file: Path, tmp_path: Path
) -> None:
    ours = world.agent.ca
    with billing(world, peers_file) as server, gateway(ours, east, server, tmp_path) as port:
        with client(east.issue("web"), ours, tmp_path, port) as web:
            answer = web.get("/x")
            assert answer.status_code == 200, answer.text
            assert answer.json() == {
                "caller": uri(east, "web"),
                "peer": "east",
                "xfcc": [],
                "reason": "permission_allow",
            }
            assert web.get("/admin/x").headers["x-mesh-refused"] == "permission_deny"
            # What the caller says of itself does not get past the gateway.
            told = web.get("/x", headers=xfcc(uri(ours, "shop")))
            assert told.json()["caller"] == uri(east, "web")
        with client(east.issue("other"), ours, tmp_path, port) as other:
            assert other.get("/x").headers["x-mesh-refused"] == "default_deny"
        with client(east.issue("shop"), ours, tmp_path, port) as shop:
            # The intention is about our shop, not about the peer's.
            assert shop.get("/x").headers["x-mesh-refused"] == "default_deny"
            world.agent.put_intentions({**ENTRY, "Sources": [{"Name": "*", "Action": "allow"}]})
            local = client(ours.issue("any"), ours, tmp_path, server)
            with local:
                wait_for(lambda: local.get("/x").status_code == 200)
            assert shop.get("/x").headers["x-mesh-refused"] == "default_deny"


def test_nobody_but_a_gateway_is_believed(
    world: World, east: CertificateAuthority, peers_file: Path, tmp_path: Path
) -> None:
    ours, claim = world.agent.ca, xfcc(uri(east, "web"))
    with billing(world, peers_file) as server:
        with client(gateway_leaf(ours), ours, tmp_path, server) as ours_gateway:
            assert ours_gateway.get("/x", headers=claim).json()["peer"] == "east"
            # A gateway that names nobody, or two, or somebody who is no peer's, is nobody itself.
            for headers in (
                {},
                [*claim.items(), *claim.items()],
                xfcc(uri(ours, "shop")),
                xfcc(uri(CertificateAuthority("33333333-other.consul"), "web")),
            ):
                refused = ours_gateway.get("/x", headers=headers)
                assert refused.headers["x-mesh-refused"] == "not_a_service"
        with client(ours.issue("shop"), ours, tmp_path, server) as shop:
            said = shop.get("/x", headers=claim).json()
            assert (said["caller"], said["peer"], said["xfcc"]) == (uri(ours, "shop"), "", [])
        with client(ours.issue("stranger"), ours, tmp_path, server) as stranger:
            refused = stranger.get("/x", headers=claim)
            assert refused.headers["x-mesh-refused"] == "default_deny"
        elsewhere = ours.issue_raw([f"spiffe://{east.trust_domain}/gateway/mesh/dc/dc1"])
        for nobody in (elsewhere, gateway_leaf(east)):
            with (
                client(nobody, ours, tmp_path, server) as foreign,
                pytest.raises(httpx.TransportError),
            ):
                foreign.get("/x", headers=claim)


def test_without_peers_a_gateway_does_not_get_in(
    world: World, east: CertificateAuthority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = world.agent.ca
    with (
        billing(world, None) as server,
        client(gateway_leaf(ours), ours, tmp_path, server) as ours_gateway,
    ):
        with pytest.raises(httpx.TransportError):
            ours_gateway.get("/x", headers=xfcc(uri(east, "web")))
        wait_for(lambda: "not_a_service" in caplog.text)
        assert caplog.text.count("no trust bundle is configured for peer 'east'") == 1

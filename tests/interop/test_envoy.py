"""A real Envoy, set up as Consul's sidecars are, at the other end: as server and as client."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx
import pytest

from mesh_middleware import AsyncMeshTransport, MeshConfig, MeshManager, MeshTransport
from mesh_middleware.tls.handshake import refusals
from tests.interop.conftest import hello, serve_billing
from tests.interop.sds import Secrets
from tests.interop.sidecar import counters, inbound, outbound
from tests.support import free_port, wait_for
from tests.upstream.world import World

pytestmark = pytest.mark.anyio

ROUTES = {"/kept": "kept", "/": "fresh"}
OLD_ROOT = ("client", "root_not_trusted")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def register_sidecar(world: World, port: int, service: str = "billing") -> None:
    proxy = {"DestinationServiceName": service}
    name = f"{service}-sidecar-proxy"
    world.register(name, port, Kind="connect-proxy", Proxy=proxy, Connect={})


def call(manager: MeshManager) -> tuple[int, str]:
    with httpx.Client(transport=MeshTransport(manager)) as client:
        answer = client.get("http://billing/")
        return answer.status_code, answer.text


async def test_our_client_calls_a_sidecar(world: World, backend: int, tmp_path: Path) -> None:
    """RBAC on our URI lets web in and nobody else; blocking and asynchronous, HTTP/1.1 and 2."""
    with inbound(world.agent.ca, backend, tmp_path, allowed="web") as port:
        register_sidecar(world, port)
        assert call(world.manager) == (200, "hello from billing")
        for http2 in (False, True):
            transport = AsyncMeshTransport(world.manager, http2=http2)
            async with httpx.AsyncClient(transport=transport) as client:
                answer = await client.get("http://billing/")
            assert answer.status_code == 200
            assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        with MeshManager(MeshConfig("stranger", address=world.agent.address)) as stranger:
            await stranger.ready(15)
            assert call(stranger)[0] == 403


def test_a_sidecar_of_another_service_gets_no_request(
    world: World, backend: int, tmp_path: Path
) -> None:
    with inbound(world.agent.ca, backend, tmp_path, allowed="web") as port:
        register_sidecar(world, port, "ledger")
        transport = MeshTransport(world.manager)
        with httpx.Client(transport=transport) as client, pytest.raises(httpx.ConnectError) as e:
            client.get("http://ledger/")
    assert "/svc/billing, expected was" in str(e.value)
    assert hello.requests == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_a_sidecar_calls_our_server(world: World, tmp_path: Path, http2: bool) -> None:
    ca = world.agent.ca
    with (
        serve_billing(world.agent.address, http2=http2) as billing,
        outbound(ca, billing.port, tmp_path, http2=http2) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        for _ in range(3):  # a new connection each
            assert client.get("/").json() == {"caller": "web", "http": "2" if http2 else "1.1"}
        refused = client.get("/admin/users")
        assert (refused.status_code, refused.headers["x-mesh-refused"]) == (403, "permission_deny")


def test_a_sidecar_of_a_denied_service_is_refused(world: World, tmp_path: Path) -> None:
    with (
        serve_billing(world.agent.address) as billing,
        outbound(world.agent.ca, billing.port, tmp_path, caller="stranger") as port,
    ):
        assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 403


def test_a_sidecar_resumes_nothing_once_its_root_is_gone(world: World, tmp_path: Path) -> None:
    """Envoy speaks TLS 1.2 to upstreams and resumes each connection if it can.

    It is told of nothing: what it resumes by is forgotten with each new certificate or root.
    """
    agent, admin = world.agent, free_port()
    secrets = Secrets(agent.ca, "web", tmp_path)
    with (
        serve_billing(agent.address) as billing,
        outbound(
            *(agent.ca, billing.port, tmp_path), secrets=secrets, routes=ROUTES, admin=admin
        ) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        for path in ("/", "/", "/kept"):
            assert client.get(path).status_code == 200
        agent.rotate_ca()
        wait_for(lambda: len(billing.manager.state.bundle.roots) == 2)  # type: ignore[union-attr]
        for path in ("/", "/", "/kept"):
            assert client.get(path).status_code == 200
        resumed, refused = counters(admin)["ssl.session_reused"], refusals.counts().get(OLD_ROOT, 0)
        assert resumed >= 1
        agent.remove_inactive_roots()
        wait_for(lambda: len(billing.manager.state.bundle.roots) == 1)  # type: ignore[union-attr]
        kept = client.get("/kept")  # still on its connection of before: it is the last answer
        assert (kept.status_code, kept.headers["x-mesh-refused"]) == (403, "root_not_trusted")
        for path in ("/", "/", "/kept", "/kept"):
            assert client.get(path).status_code == 503
        assert counters(admin)["ssl.session_reused"] == resumed
        assert refusals.counts()[OLD_ROOT] == refused + 4  # by us, not by Envoy
        secrets.renew()
        wait_for(lambda: client.get("/kept").status_code == 200)
        assert client.get("/").status_code == 200


def test_a_sidecar_that_keeps_the_leaf_of_a_removed_root_gets_no_request(
    world: World, backend: int, tmp_path: Path
) -> None:
    secrets = Secrets(world.agent.ca, "billing", tmp_path)
    with (
        inbound(world.agent.ca, backend, tmp_path, allowed="web", secrets=secrets) as port,
        httpx.Client(transport=MeshTransport(world.manager)) as client,
    ):
        register_sidecar(world, port)
        assert client.get("http://billing/").status_code == 200
        world.rotated()
        secrets.renew_roots()
        assert client.get("http://billing/").status_code == 200
        world.agent.remove_inactive_roots()
        wait_for(lambda: len(world.manager.state.bundle.roots) == 1)  # type: ignore[union-attr]
        before = hello.requests  # type: ignore[attr-defined]
        with pytest.raises(httpx.ConnectError):
            client.get("http://billing/")
        assert hello.requests == before  # type: ignore[attr-defined]
        secrets.renew()

        def answered() -> bool:
            with contextlib.suppress(httpx.ConnectError):
                return client.get("http://billing/").status_code == 200
            return False

        wait_for(answered)

"""As `test_rotation`, with a real Envoy at the other end, which is given new certificates as well.

Envoy calls our server by TLS 1.2 and resumes where it can: a part of the load has a connection for
each request, the rest is in its pool, which keeps a busy connection for as long as the server does.
Our clients call an Envoy in front of a plain server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mesh_middleware import AsyncMeshTransport, MeshTransport
from mesh_middleware.config import MeshConfig
from mesh_middleware.consul import blocking
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.devagent import DevAgent
from mesh_middleware.devagent.ca import Leaf
from tests.interop.sds import Secrets
from tests.interop.sidecar import counters, inbound, outbound
from tests.interop.test_envoy import register_sidecar
from tests.server.mesh import request, serving
from tests.soak.app import CHUNK, app
from tests.soak.load import DOWNLOAD_CHUNKS, PAUSE_SECONDS, Callers, Load
from tests.soak.service import LEAVING, RATE, launched
from tests.soak.test_rotation import LONG, remove_old_roots, rotate
from tests.support import free_port, wait_for
from tests.upstream.world import new_world

ROTATIONS = 1000 if LONG else 200
REMOVE_EVERY = 15
ROUTES = {"/new": "fresh", "/echo": "fresh", "/": "kept"}


@pytest.fixture(autouse=True)
def hastened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "RATE", RATE)
    monkeypatch.setattr(blocking, "BURST", RATE)


# -- Envoy calls ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800 if LONG else 400)
def test_no_request_of_an_envoy_fails_while_everything_rotates(tmp_path: Path) -> None:
    admin = free_port()
    with (
        DevAgent(default_action="allow") as agent,
        launched(
            agent, service="billing", app="tests.soak.app:remembering", first=LEAVING
        ) as server,
    ):
        server.serves()
        secrets = Secrets(agent.ca, "web", tmp_path)
        with (
            outbound(
                *(agent.ca, server.port, tmp_path), secrets=secrets, routes=ROUTES, admin=admin
            ) as port,
            MeshManager(MeshConfig("client", address=agent.address)) as manager,
        ):
            manager.wait_ready(20)
            direct = Load(manager, "billing", server.port)
            with Callers(port) as load:
                for number in range(1, ROTATIONS + 1):
                    root = number % 3 != 0
                    leaf = rotate_both(agent, manager, direct, secrets, load, root=root)
                    if number % REMOVE_EVERY == 0:
                        everybody_left(load, server.port, leaf)
                        remove_old_roots(agent, manager, load)
                        secrets.renew_roots()
                    assert not load.failures, (number, load.failures[:5], server.log[-3000:])
            assert not load.failures, load.failures[:5]
            assert set(load.done) == set(load.sessions())
            found = counters(admin)
            shown = ("ssl.handshake", "ssl.session_reused", "upstream_cx_total")
            counted = {name: found[name] for name in shown}
            print(f"\n{ROTATIONS} rotations: {load.done}, {counted}")
            assert found["ssl.versions.TLSv1.2"] == found["ssl.handshake"]
            assert found["ssl.session_reused"] > ROTATIONS
            assert found["upstream_rq_retry"] == 0
        assert server.stop() == 0
        assert "Traceback" not in server.log, server.log[-3000:]
        assert "refused" not in server.log, server.log[-3000:]


def rotate_both(
    agent: DevAgent,
    manager: MeshManager,
    direct: Load,
    secrets: Secrets,
    load: Callers,
    *,
    root: bool,
) -> x509.Certificate:
    """One rotation; returns when our server shows it, and Envoy to our server. Envoy's leaf."""
    given: list[Leaf] = []
    rotate(agent, manager, direct, root=root, also=lambda: given.append(secrets.renew()))
    leaf = x509.load_pem_x509_certificate(given[0].cert_pem.encode())
    pem = leaf.public_bytes(Encoding.PEM).decode()
    wait_for(lambda: pem in callers(load).values(), 30, "Envoy does not rotate")
    return leaf


def everybody_left(load: Callers, server: int, leaf: x509.Certificate) -> None:
    """All connections are of the root of `leaf`; a pool would keep its busy ones for ever."""
    wait_for(load.nobody_is_older(), 30, "a caller does not reconnect")

    def left() -> bool:
        known = callers(load)
        return all(issuer(known.get(port)) == leaf.issuer for port in connected(server))

    wait_for(left, 30, "a connection of an old root stays")


def callers(load: Callers) -> dict[str, str]:
    """Which certificate the server has last seen from which port, through Envoy."""
    with closing(load.connect()) as sock:
        status, body = request(sock, "/new/callers")
    assert status == 200, body
    found: dict[str, str] = json.loads(body)
    return found


def issuer(pem: str | None) -> x509.Name | None:
    """None for a connection that was not in use for long."""
    return None if pem is None else x509.load_pem_x509_certificate(pem.encode()).issuer


def connected(server: int) -> set[str]:
    """The ports of all who are connected to `server` (proc(5), net/tcp: 01 is ESTABLISHED)."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = (row[2] for row in rows if row[1].endswith(f":{server:04X}") and row[3] == "01")
    return {str(int(remote.rpartition(":")[2], 16)) for remote in ours}


# -- Envoy serves ---------------------------------------------------------------------------------


class Transports(Load):
    """Callers by our transports too, with a request and a download at a time."""

    def sessions(self) -> dict[str, Callable[[], None]]:
        return {
            **super().sessions(),
            "MeshTransport": self.blocking,
            "AsyncMeshTransport": lambda: asyncio.run(self.asynchronous(http2=False)),
            "AsyncMeshTransport, HTTP/2": lambda: asyncio.run(self.asynchronous(http2=True)),
        }

    def blocking(self) -> None:
        with httpx.Client(transport=MeshTransport(self.manager), timeout=20) as client:
            for _ in self._while_fresh():
                answer = client.get("http://billing/hello")
                self._count("MeshTransport", answer.status_code == 200)

    async def asynchronous(self, *, http2: bool) -> None:
        name = "AsyncMeshTransport, HTTP/2" if http2 else "AsyncMeshTransport"
        transport = AsyncMeshTransport(self.manager, http2=http2)
        async with httpx.AsyncClient(transport=transport, timeout=20) as client:
            while self._fresh() and not self._ending.is_set():
                download = asyncio.create_task(
                    client.get(f"http://billing/download?chunks={DOWNLOAD_CHUNKS}")
                )
                while not download.done():
                    answer = await client.get("http://billing/hello")
                    self._count(name, answer.status_code == 200)
                    await asyncio.sleep(PAUSE_SECONDS)
                self._count(name, len((await download).content) == DOWNLOAD_CHUNKS * len(CHUNK))


@pytest.mark.slow
@pytest.mark.timeout(1800 if LONG else 400)
def test_no_request_to_an_envoy_fails_while_everything_rotates(tmp_path: Path) -> None:
    with new_world() as world, serving(app) as backend:
        agent, manager = world.agent, world.manager
        secrets = Secrets(agent.ca, "billing", tmp_path)
        with inbound(agent.ca, backend, tmp_path, allowed="web", secrets=secrets) as port:
            register_sidecar(world, port)
            with Transports(manager, "billing", port) as load:
                for number in range(1, ROTATIONS + 1):
                    rotate(agent, manager, load, root=number % 3 != 0, also=secrets.renew)
                    if number % REMOVE_EVERY == 0:
                        remove_old_roots(agent, manager, load)
                        secrets.renew_roots()
                    assert not load.failures, (number, load.failures[:5])
            assert not load.failures, load.failures[:5]
            print(f"\n{ROTATIONS} rotations: {load.done}")
            assert set(load.done) == set(load.sessions())

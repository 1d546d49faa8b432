"""What the agent does to a service that runs: rotation, restart, outage, expiry."""

from __future__ import annotations

import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from mesh_middleware.devagent import DevAgent
from mesh_middleware.devagent.ca import Leaf
from mesh_middleware.tls.certificates import X509SVID
from mesh_middleware.tls.contexts import verified_peer
from tests.e2e.conftest import Site
from tests.e2e.launch import REFUSED, Caller, Launched, health, refused, rotate
from tests.faults.proxy import Answer, Exchange, FaultProxy, well
from tests.server.mesh import request
from tests.support import free_port, wait_for


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[DevAgent, Launched]]:
    """A development agent and a service that every caller may use."""
    with (
        DevAgent(default_action="allow") as agent,
        Launched(agent.address, env={"MESH_DEFAULT_ACTION": "allow"}) as launched,
    ):
        yield agent, launched.serves()


def root_shown(caller: Caller, port: int) -> bytes | None:
    """The root that the server's certificate leads to."""
    with closing(caller.connect(port)) as sock:
        peer = verified_peer(sock)
        return peer.root if peer else None


def test_a_rotation_reaches_new_connections_and_keeps_open_ones(own_site: Site) -> None:
    before = own_site.allow("steady")
    with closing(before.connect(own_site.port)) as connection:
        old_root = root_shown(before, own_site.port)
        rotate(own_site.agent.address)

        def rotated() -> bool:
            now = own_site.caller("steady")
            return len(now.bundle.roots) == 2 and root_shown(now, own_site.port) != old_root

        wait_for(rotated, 60, "the server still shows a leaf of the old root")
        assert request(connection, "/whoami")[0] == 200
        assert own_site.caller("steady").get(own_site.port)[0] == 200


def test_a_removed_root_ends_old_clients_and_their_open_connections() -> None:
    """Send, remove the root, send the same again."""
    with (
        DevAgent(default_action="allow") as agent,
        Launched(agent.address, env={"MESH_DEFAULT_ACTION": "allow"}) as launched,
    ):
        launched.serves()
        old = Caller.of(agent.address, "client")
        with closing(old.connect(launched.port)) as connection:
            assert request(connection, "/whoami")[0] == 200
            agent.rotate_ca()
            agent.remove_inactive_roots()
            wait_for(lambda: refused(old, launched.port), message="a removed root still counts")
            assert open_connection_is_refused(connection)
        fresh = Caller.of(agent.address, "client")
        wait_for(lambda: not refused(fresh, launched.port))


def open_connection_is_refused(connection: object) -> bool:
    try:
        status, _ = request(connection, "/whoami")  # type: ignore[arg-type]
    except REFUSED:
        return True
    return status == 403


def test_an_expired_leaf_is_refused_on_new_and_on_open_connections(
    shared: tuple[DevAgent, Launched],
) -> None:
    agent, launched = shared
    leaf = agent.ca.issue("brief", not_after=time.time() + 2)
    caller = Caller(
        X509SVID.from_pem(leaf.cert_pem, leaf.key_pem), Caller.of(agent.address, "brief").bundle
    )
    with closing(caller.connect(launched.port)) as connection:
        assert request(connection, "/whoami")[0] == 200
        wait_for(lambda: time.time() > leaf.not_after + 0.05)
        assert open_connection_is_refused(connection)
    assert refused(caller, launched.port)


def test_the_service_is_registered_again_after_an_agent_restart(own_site: Site) -> None:
    own_site.allow("early")
    own_site.agent.restart()
    own_site.launched.says("registering it again")
    wait_for(lambda: health(own_site.agent.address, "web", passing=True), 20, "not passing again")
    assert own_site.allow("late").get(own_site.port)[0] == 200


def test_an_agent_outage_changes_nothing_for_callers(
    shared: tuple[DevAgent, Launched],
) -> None:
    agent, launched = shared
    caller = Caller.of(agent.address, "patient")
    agent.stop()
    try:
        launched.says("no answer from the Consul agent")
        for _ in range(3):
            assert caller.get(launched.port)[0] == 200
    finally:
        agent.start()
    launched.says("agent: well again")
    assert caller.get(launched.port)[0] == 200


def test_a_service_whose_certificate_expired_takes_nobody_until_it_has_a_new_one() -> None:
    """The agent gives everything but a leaf. A caller that does not look is refused, too."""

    async def no_leaf(exchange: Exchange) -> None:
        answer = Answer(500, {}, b"no") if "/ca/leaf/" in exchange.path else await exchange.fetch()
        await exchange.send(answer)

    ops = free_port()
    with (
        DevAgent(default_action="allow", leaf_ttl_seconds=8) as agent,
        FaultProxy(agent.address) as proxy,
        Launched(
            proxy.address, "--ops-port", str(ops), env={"MESH_DEFAULT_ACTION": "allow"}
        ) as launched,
    ):
        launched.serves()
        leaf = agent.ca.issue("careless", not_after=time.time() + 3600)
        caller = careless(leaf)
        assert answers(caller, launched.port)
        proxy.set(no_leaf)
        launched.says("our certificate expired", 30)
        assert not answers(caller, launched.port)
        wait_for(lambda: check(agent) == "critical", 20, "the check still passes")
        with pytest.raises(httpx.HTTPStatusError, match="503") as ready:
            httpx.get(f"http://127.0.0.1:{ops}/health/ready", trust_env=False).raise_for_status()
        assert "leaf" in ready.value.response.text
        proxy.set(well)
        wait_for(lambda: answers(caller, launched.port), 20, "nobody is taken with a new leaf")
        wait_for(lambda: check(agent) == "passing", 20, "the check does not pass again")


def careless(leaf: Leaf) -> ssl.SSLContext:
    """A caller with a good certificate that takes any server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(leaf.cert_pem + leaf.key_pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def answers(context: ssl.SSLContext, port: int) -> bool:
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="web") as sock,
        ):
            return request(sock, "/whoami")[0] == 200
    except REFUSED:
        return False


def check(agent: DevAgent) -> str:
    checks = httpx.get(f"{agent.address}/v1/agent/checks", trust_env=False).json()
    (found,) = (each["Status"] for each in checks.values() if each["ServiceName"] == "web")
    return str(found)

"""What the agent does to a service that runs: rotation, restart, outage, expiry."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from mesh_middleware.devagent import DevAgent
from mesh_middleware.tls.certificates import X509SVID
from mesh_middleware.tls.contexts import verified_peer
from tests.e2e.conftest import Site
from tests.e2e.launch import REFUSED, Caller, Launched, health, refused, rotate
from tests.server.mesh import request
from tests.support import wait_for


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

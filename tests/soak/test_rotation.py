"""Leaves and roots change, again and again, while callers use every kind of connection.

200 rotations in an ordinary run, ``MESH_SOAK=1``: 1,000. One in three is a new leaf alone, the
others are a new root; a root is removed when everybody has had the time to reconnect.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul import blocking
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.devagent import DevAgent
from tests.benchmarks import rotation
from tests.soak.load import Load
from tests.soak.service import RATE, launched, renew_leaves
from tests.support import wait_for

LONG = bool(os.environ.get("MESH_SOAK"))
ROTATIONS = 1000 if LONG else 200
REMOVE_EVERY = 20


@pytest.mark.slow
@pytest.mark.timeout(1800 if LONG else 240)
def test_no_request_fails_while_everything_rotates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "RATE", RATE)
    monkeypatch.setattr(blocking, "BURST", RATE)
    with DevAgent(default_action="allow") as agent, launched(agent) as server:
        server.serves()
        with MeshManager(MeshConfig("client", address=agent.address)) as manager:
            manager.wait_ready(20)
            roots, removals = len(agent.ca.roots()), 0
            with Load(manager, "web", server.port) as load:
                for number in range(1, ROTATIONS + 1):
                    rotate(agent, manager, load, root=number % 3 != 0)
                    roots += number % 3 != 0
                    if number % REMOVE_EVERY == 0:
                        remove_old_roots(agent, manager, load)
                        removals += 1
                    assert not load.failures, (number, load.failures[:5])
            assert not load.failures, load.failures[:5]
            print(f"\n{ROTATIONS} rotations, {roots} roots, {removals} removals: {load.done}")
            assert set(load.done) == {
                *("keep-alive", "new connection", "WebSocket", "download", "upload", "httpx")
            }
            assert len(agent.ca.roots()) == 1
        assert server.stop() == 0
        assert "Traceback" not in server.log, server.log[-3000:]
        assert "refused" not in server.log, server.log[-3000:]


def rotate(
    agent: DevAgent,
    manager: MeshManager,
    load: Load,
    *,
    root: bool,
    also: Callable[[], object] = lambda: None,
) -> None:
    """One rotation; returns when the client has it and the server shows it.

    `also`: tells those of it that do not ask the agent.
    """
    before, served = manager.state, load.server_now().certificate.der
    if root:
        agent.rotate_ca()
    else:
        renew_leaves(agent)
    also()
    wanted = len(agent.ca.roots())

    def has_it() -> bool:
        state = manager.state
        assert state.bundle is not None
        return state.svid is not before.svid and len(state.bundle.roots) == wanted

    wait_for(has_it, 30, f"the client does not rotate: {dict(manager.last_errors)}")
    wait_for(lambda: load.server_now().certificate.der != served, 30, "the server does not rotate")


def remove_old_roots(agent: DevAgent, manager: MeshManager, load: Load) -> None:
    """As Consul does, long after a rotation: nobody has a connection of the old root any more."""
    wait_for(load.nobody_is_older(), 30, "a caller does not reconnect")
    agent.remove_inactive_roots()
    wait_for(lambda: manager.state.bundle and len(manager.state.bundle.roots) == 1)


def test_the_benchmark_of_a_rotation() -> None:
    assert "| a new root and a new leaf |" in rotation.report(short=True)

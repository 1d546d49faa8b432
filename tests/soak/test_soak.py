"""A long life in a short time: connections, rotations and changes of intentions, and no growth.

A *round* is 100 connections, a rotation and 10 changes. An ordinary run has a few of them;
``MESH_SOAK=1`` has 500, which makes 50,000 connections, 500 rotations and 5,000 changes.
"""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul import blocking
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.devagent import DevAgent
from tests.server.mesh import request
from tests.soak.load import Load
from tests.soak.service import RATE, launched
from tests.soak.test_rotation import LONG, rotate
from tests.support import wait_for

WARM_UP = 30 if LONG else 4
ROUNDS = 500 if LONG else 6
CONNECTIONS = 100
CHANGES = 10

BOUNDS = {
    "resident": 24 * 1024 if LONG else 12 * 1024,  # KiB
    "threads": 0,
    "tasks": 2,
    "files": 3,
    "objects": 4000 if LONG else 2000,
}
"""How much more of each a process may hold after all rounds than after the warm-up."""


@pytest.mark.slow
@pytest.mark.timeout(3600 if LONG else 240)
def test_nothing_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "RATE", RATE)
    monkeypatch.setattr(blocking, "BURST", RATE)
    with (
        DevAgent(default_action="allow") as agent,
        launched(agent) as server,
        MeshManager(MeshConfig("client", address=agent.address)) as manager,
        ThreadPoolExecutor(4) as callers,
    ):
        server.serves()
        manager.wait_ready(20)
        load = Load(manager, "web", server.port)
        for number in range(WARM_UP):
            one_round(agent, manager, load, callers, number)
        before, threads, files = held(load), threading.active_count(), open_files()
        for number in range(ROUNDS):
            one_round(agent, manager, load, callers, number)

        def settled() -> bool:
            after = held(load)
            return all(after[name] - before[name] <= bound for name, bound in BOUNDS.items())

        try:
            wait_for(settled, 20)
        finally:
            after = held(load)
            growth = {name: after[name] - before[name] for name in BOUNDS}
            print(f"\n{ROUNDS} rounds; before {before}, growth {growth}")
        # the calling side has a manager, too
        assert threading.active_count() <= threads
        wait_for(lambda: open_files() <= files + BOUNDS["files"])
        assert server.stop() == 0
        assert "Traceback" not in server.log, server.log[-3000:]


def one_round(
    agent: DevAgent, manager: MeshManager, load: Load, callers: ThreadPoolExecutor, number: int
) -> None:
    asked = [callers.submit(one_connection, load) for _ in range(CONNECTIONS)]
    for change in range(CHANGES):
        agent.put_intentions(rows(number * CHANGES + change))
    for each in asked:
        assert each.result(60) == 200
    rotate(agent, manager, load, root=True)
    if number % 3 == 2:
        agent.remove_inactive_roots()
        wait_for(lambda: manager.state.bundle and len(manager.state.bundle.roots) == 1)


def rows(number: int) -> list[dict[str, object]]:
    """Other intentions each time, and of a constant size."""
    return [
        {"SourceName": f"s{number % 97}", "DestinationName": "web", "Action": "deny"},
        {
            "SourceName": f"t{number % 89}",
            "DestinationName": "web",
            "Permissions": [{"Action": "allow", "HTTP": {"PathRegex": f"/v{number % 83}/.*"}}],
        },
    ]


def one_connection(load: Load) -> int:
    with closing(load.connect()) as sock:
        return request(sock)[0]


def held(load: Load) -> dict[str, int]:
    """What the serving process holds."""
    with closing(load.connect()) as sock:
        status, body = request(sock, "/process")
    assert status == 200
    found: dict[str, int] = json.loads(body)
    return found


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths

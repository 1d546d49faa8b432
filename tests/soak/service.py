"""A service by our launcher whose agent may change things more often than a real one does."""

from __future__ import annotations

import sys

from mesh_middleware.consul import blocking
from mesh_middleware.devagent import DevAgent
from tests.e2e.launch import Launched

RATE = 200.0
"""Requests a second that a watch may make here: 2, and a test of rotations would take hours."""

PROGRAM = (
    "from mesh_middleware.consul import blocking\n"
    f"blocking.RATE = blocking.BURST = {RATE}\n"
    "from mesh_middleware.cli import main\n"
    "main()\n"
)


LEAVING = (
    "from mesh_middleware.tls import handshake\n"
    "handshake.LEAVE_SECONDS = 0.1\n"  # after a rotation a busy connection stays for a minute
)


def launched(
    agent: DevAgent,
    *arguments: str,
    service: str = "web",
    app: str = "tests.soak.app:app",
    first: str = "",
) -> Launched:
    """The soak application, every caller allowed unless an intention says otherwise.

    `first`: what the process executes before it starts, such as `LEAVING`.
    """
    run = Launched(
        agent.address,
        *("--no-access-log", "--ops-port", "0"),
        *arguments,
        app=app,
        service=service,
        env={"MESH_DEFAULT_ACTION": "allow"},
    )
    run.command = [sys.executable, "-c", first + PROGRAM, *run.command[3:]]
    return run


def hasten() -> tuple[float, float]:
    """The same for the managers of this process; gives what it was."""
    before = blocking.RATE, blocking.BURST
    blocking.RATE = blocking.BURST = RATE
    return before


def renew_leaves(agent: DevAgent) -> None:
    """New leaves for everybody from the same root, as at 60 to 90 percent of their lives."""
    store = agent._store
    with store.lock:
        store.leaves._issued.clear()
        store.wake()

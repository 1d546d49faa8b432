"""Several workers, and reloading: each process has its own manager, one has the registration."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mesh_middleware.devagent import DevAgent
from tests.e2e.launch import PLAIN, ROOT, Caller, Launched, health, worker_pids
from tests.server.mesh import request
from tests.support import wait_for


@pytest.fixture(scope="module")
def agent() -> Iterator[DevAgent]:
    with DevAgent(default_action="allow") as running:
        yield running


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_share_the_port_and_one_registration(agent: DevAgent) -> None:
    launched = Launched(
        agent.address, "--workers", "2", env={"MESH_DEFAULT_ACTION": "allow"}, service="team"
    )
    with launched:
        launched.serves()
        launched.says("Application startup complete", times=2)
        caller = Caller.of(agent.address, "client")

        def answering() -> int:
            with_server = caller.connect(launched.port, "team")
            with with_server as sock:
                sock.sendall(b"GET /whoami HTTP/1.1\r\nhost: mesh\r\nconnection: close\r\n\r\n")
                reply = b"".join(iter(lambda: sock.recv(4096), b""))
            return int(reply.rpartition(b'"pid":')[2].rstrip(b"}"))

        pids = worker_pids(launched.log)
        assert len(pids) == 2
        seen: set[int] = set()
        wait_for(lambda: seen.add(answering()) or seen == pids, 20)
        assert len(health(agent.address, "team", passing=True)) == 1

        # a worker that dies is replaced, and nobody has to look elsewhere meanwhile
        victim = min(pids)
        os.kill(victim, signal.SIGKILL)
        launched.says("starting another")
        launched.says("Application startup complete", times=3)
        assert answering() != victim
        assert len(health(agent.address, "team", passing=True)) == 1

        assert launched.stop() == 0
        assert not any(alive(pid) for pid in worker_pids(launched.log))
    assert not health(agent.address, "team")


def test_workers_end_when_their_parent_is_killed(agent: DevAgent) -> None:
    launched = Launched(agent.address, "--workers", "2", "--no-register", app=PLAIN)
    with launched:
        launched.says("Application startup complete", times=2)
        pids = worker_pids(launched.log)
        launched.signal(signal.SIGKILL)
        launched.ends()
        wait_for(lambda: not any(alive(pid) for pid in pids), 15, "workers live on")


def test_the_reason_of_a_worker_is_that_of_the_launcher(agent: DevAgent) -> None:
    env = {"E2E_BREAK_STARTUP": "1"}
    with Launched(agent.address, "--workers", "2", env=env) as launched:
        assert launched.ends() == 3


def test_a_changed_file_is_served_and_the_registration_stays(
    agent: DevAgent, tmp_path: Path
) -> None:
    source = (ROOT / "tests/e2e/app.py").read_text()
    module = tmp_path / "changing.py"
    module.write_text(source)
    launched = Launched(
        agent.address,
        *("--reload", "--reload-delay", "0.05", "--timeout-keep-alive", "60"),
        app="changing:app",
        service="fresh",
        env={"MESH_DEFAULT_ACTION": "allow"},
        cwd=tmp_path,
    )
    with launched:
        launched.serves()
        caller = Caller.of(agent.address, "client")

        def answer() -> bytes:
            with caller.connect(launched.port, "fresh") as sock:
                sock.sendall(b"GET /whoami HTTP/1.1\r\nhost: mesh\r\nconnection: close\r\n\r\n")
                return b"".join(iter(lambda: sock.recv(4096), b""))

        assert b'"caller":"client"' in answer()
        with closing(caller.connect(launched.port, "fresh")) as idle:  # nobody waits for it
            assert request(idle, "/whoami")[0] == 200
            module.write_text(source.replace('"caller":', '"visitor":'))
            launched.says("Application startup complete", times=2)
        assert b'"visitor":"client"' in answer()
        wait_for(lambda: health(agent.address, "fresh", passing=True))
        assert launched.log.count("registered as fresh-") == 1
        assert launched.stop() == 0
    assert not health(agent.address, "fresh")

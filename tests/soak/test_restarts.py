"""Services that are restarted under load: nobody notices who looks in the catalogue."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Self

import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.manager import MeshManager
from mesh_middleware.devagent import DevAgent
from tests.e2e.launch import Caller, Launched, health, worker_pids
from tests.server.mesh import request
from tests.soak.load import Load
from tests.support import wait_for


@pytest.fixture(scope="module")
def agent() -> Iterator[DevAgent]:
    with DevAgent(default_action="allow") as running:
        yield running


def launch(agent: DevAgent, *arguments: str, service: str, kind: type[Launched] = Launched) -> Any:
    return kind(
        agent.address,
        *("--no-access-log", *arguments),
        app="tests.soak.app:app",
        service=service,
        env={"MESH_DEFAULT_ACTION": "allow"},
    )


class Handed(Launched):
    """A launch that inherits a listening socket."""

    listener: socket.socket

    def __enter__(self) -> Self:
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=output,
                env=self._env,
                cwd=self._cwd,
                pass_fds=(self.listener.fileno(),),
            )
        return self


@contextmanager
def repeated(call: Callable[[], object]) -> Iterator[list[str]]:
    """`call`, again and again in a thread, and what failed of it."""
    failures: list[str] = []
    counted, ending = threading.Semaphore(0), threading.Event()

    def go_on() -> None:
        while not ending.wait(0.005):
            try:
                assert call()
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")
            counted.release()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        assert all(counted.acquire(timeout=20) for _ in range(5))
        yield failures
        assert all(counted.acquire(timeout=20) for _ in range(5))
    finally:
        ending.set()
        thread.join(30)


@pytest.mark.slow
def test_two_instances_restart_one_after_the_other_and_no_request_fails(agent: DevAgent) -> None:
    """As an orchestrator does it; the caller asks the catalogue before each request."""
    with ExitStack() as stack:
        running = [
            stack.enter_context(launch(agent, "--grace", "1", service="twin")).serves()
            for _ in range(2)
        ]
        caller = Caller.of(agent.address, "client")
        turn = iter(range(10**9))

        def ask() -> bool:
            found = health(agent.address, "twin", passing=True)
            port = found[next(turn) % len(found)]["Service"]["Port"]
            with closing(caller.connect(port, "twin")) as sock:
                return request(sock)[0] == 200

        with repeated(ask) as failures:
            for old in running:
                assert old.stop() == 0
                stack.enter_context(launch(agent, "--grace", "1", service="twin")).serves()
        assert not failures, failures[:3]
        assert len(health(agent.address, "twin", passing=True)) == 2


@pytest.mark.slow
def test_a_killed_worker_leaves_no_gap_in_the_check(agent: DevAgent) -> None:
    with launch(agent, "--workers", "2", service="pair") as server:
        server.serves()
        server.says("Application startup complete", times=2)
        with repeated(lambda: health(agent.address, "pair", passing=True)) as failures:
            os.kill(min(worker_pids(server.log)), signal.SIGKILL)
            server.says("starting another")
            server.says("Application startup complete", times=3)
        assert not failures, failures[:3]
        assert "health check critical" not in server.log


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "loop"), [("1", "asyncio"), ("2", "uvloop")])
def test_sighup_replaces_the_workers_and_no_request_fails(
    agent: DevAgent, workers: str, loop: str
) -> None:
    """Callers on every kind of connection, two restarts, and nothing is sent twice."""
    options = ("--workers", workers, "--loop", loop, "--timeout-keep-alive", "2")
    with ExitStack() as stack:
        server = stack.enter_context(launch(agent, *options, service="rolled")).serves()
        server.says("Application startup complete", times=int(workers))
        manager = stack.enter_context(MeshManager(MeshConfig("client", address=agent.address)))
        manager.wait_ready(20)
        missing = stack.enter_context(
            repeated(lambda: len(health(agent.address, "rolled", passing=True)) == 1)
        )
        loads = [stack.enter_context(Load(manager, "rolled", server.port)) for _ in range(2)]
        for turn in (1, 2):
            server.signal(signal.SIGHUP)
            server.says("all workers are restarted", 60, times=turn)
        wait_for(lambda: all(len(load.done) == 6 for load in loads))
        failures = [failure for load in loads for failure in load.failures]
        done = sum((load.done for load in loads), Counter[str]())
        print(f"\n{workers} workers, {loop}: {done.total()} requests, {done}, failed {failures}")
        assert not failures, failures[:5]
        assert not missing, missing[:3]
        assert len(worker_pids(server.log)) == 3 * int(workers)
        assert server.log.count("registered as") == 1
        assert "health check critical" not in server.log
        assert "Traceback" not in server.log, server.log


def test_a_socket_that_is_handed_over_outlives_the_server(agent: DevAgent) -> None:
    """``--fd``: whoever holds the socket starts the next server on it; callers wait, none fails."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port = listener.getsockname()[1]

        def server() -> Launched:
            run = launch(agent, "--fd", str(listener.fileno()), service="handed", kind=Handed)
            run.listener = listener
            return run

        with ExitStack() as stack:
            manager = stack.enter_context(MeshManager(MeshConfig("client", address=agent.address)))
            manager.wait_ready(20)
            first = stack.enter_context(server()).serves()
            with Load(manager, "handed", port) as load:
                wait_for(lambda: len(load.done) == 6)
                assert first.stop() == 0
                before = load.done.copy()
                second = stack.enter_context(server()).serves()
                wait_for(lambda: all(load.done[kind] > before[kind] for kind in before))
            print(f"\n{load.done.total()} requests, failed {load.failures}")
            assert not load.failures, load.failures[:5]
            assert second.stop() == 0

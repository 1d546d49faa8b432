"""Services that are restarted under load: nobody notices who looks in the catalogue."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Self

import pytest

from mesh_middleware.devagent import DevAgent
from tests.e2e.launch import Caller, Launched, health, worker_pids
from tests.server.mesh import request
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


def test_a_socket_that_is_handed_over_outlives_the_server(agent: DevAgent) -> None:
    """``--fd``: whoever holds the socket starts the next server on it; callers wait, none fails."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port = listener.getsockname()[1]

        def server() -> Launched:
            run = launch(agent, "--fd", str(listener.fileno()), service="handed", kind=Handed)
            run.listener = listener
            return run

        caller = Caller.of(agent.address, "client")

        def ask() -> bool:
            with closing(caller.connect(port, "handed")) as sock:
                return request(sock)[0] == 200

        with server() as first:
            first.serves()
            assert ask()
            assert first.stop() == 0
        waiting = socket.create_connection(("127.0.0.1", port), timeout=20)
        with closing(waiting), server() as second:
            second.serves()
            with closing(caller.context("handed").wrap_socket(waiting, server_hostname="x")) as s:
                assert request(s)[0] == 200
            wait_for(ask)
            assert second.stop() == 0

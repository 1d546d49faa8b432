"""How a service stops: in which order, and with which exit code."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest
from websockets.exceptions import ConnectionClosed

from mesh_middleware.devagent import DevAgent
from tests.e2e.launch import PLAIN, Caller, Launched, health, worker_pids
from tests.server.mesh import request
from tests.support import wait_for


@pytest.fixture(scope="module")
def agent() -> Iterator[DevAgent]:
    with DevAgent(default_action="allow") as running:
        yield running


def launch(agent: DevAgent, *arguments: str) -> Launched:
    return Launched(agent.address, *arguments, env={"MESH_DEFAULT_ACTION": "allow"})


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_stop_goes_from_the_check_to_the_catalogue_and_exits_0(agent: DevAgent) -> None:
    with launch(agent, "--grace", "1") as launched:
        launched.serves()
        caller = Caller.of(agent.address, "client")
        with (
            caller.websocket(launched.port) as websocket,
            closing(caller.connect(launched.port)) as slow,
            concurrent.futures.ThreadPoolExecutor() as pool,
        ):
            websocket.send("hello")
            assert websocket.recv(10) == "client: hello"
            answer = pool.submit(request, slow, "/slow?seconds=2")
            launched.signal()
            # 1. critical, while the listener still takes connections
            wait_for(lambda: not health(agent.address, "web", passing=True))
            assert health(agent.address, "web")
            assert accepts(launched.port)
            assert caller.get(launched.port)[0] == 200
            # 2. listeners closed, 3. WebSockets told, while 4. open requests go on
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(10)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
            assert not accepts(launched.port)
            assert not answer.done()
            assert answer.result(10) == (200, b'"done"')
        # 5. gone from the catalogue, 6. success
        assert launched.ends() == 0
        assert not health(agent.address, "web")
        assert launched.log.rstrip().endswith("stopped")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait_for_open_requests(
    agent: DevAgent, signum: signal.Signals
) -> None:
    with launch(agent, "--grace", "30") as launched:
        launched.serves()
        with closing(Caller.of(agent.address, "client").connect(launched.port)) as slow:
            slow.sendall(b"GET /slow?seconds=60 HTTP/1.1\r\nhost: mesh\r\n\r\n")
            launched.signal(signum)
            launched.says("check is critical")
            launched.signal(signum)
            assert launched.ends(10) in (0, 1)
        launched.says("second signal")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_to_the_whole_group_is_one_stop(agent: DevAgent, workers: str) -> None:
    """As service managers send it: workers must not take it for theirs, nor be replaced."""
    with launch(agent, "--workers", workers, "--grace", "1") as launched:
        launched.says("Application startup complete", times=int(workers))
        launched.serves()
        with closing(Caller.of(agent.address, "client").connect(launched.port)) as slow:
            slow.sendall(b"GET /slow?seconds=3 HTTP/1.1\r\nhost: mesh\r\n\r\n")
            for pid in worker_pids(launched.log):
                os.kill(pid, signal.SIGTERM)
            launched.signal()
            launched.says("check is critical")
            with closing(Caller.of(agent.address, "client").connect(launched.port)) as late:
                assert request(late, "/whoami")[0] == 200  # within the grace
            assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert launched.ends() == 0
        assert len(worker_pids(launched.log)) == int(workers)
        assert "Traceback" not in launched.log


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_client_that_does_not_read_its_idle_connection_holds_no_stop(
    agent: DevAgent, loop: str
) -> None:
    """As httpx and requests keep theirs; the loops wait 30 s for the client's close_notify."""
    with launch(agent, "--loop", loop) as launched:
        launched.serves()
        with closing(Caller.of(agent.address, "client").connect(launched.port)) as idle:
            assert request(idle, "/whoami")[0] == 200
            launched.signal()
            assert launched.ends(10) == 0


def test_a_stop_while_waiting_for_the_agent_is_a_clean_one() -> None:
    with Launched("http://127.0.0.1:1", "--wait", "forever", app=PLAIN) as launched:
        launched.says("still waiting")
        assert launched.stop() == 0


def test_open_requests_are_cut_after_the_time_to_drain(agent: DevAgent) -> None:
    with launch(agent, "--timeout-graceful-shutdown", "1", "--no-register") as launched:
        launched.says("Application startup complete")
        with closing(Caller.of(agent.address, "client").connect(launched.port)) as slow:
            slow.sendall(b"GET /slow?seconds=60 HTTP/1.1\r\nhost: mesh\r\n\r\n")
            assert launched.stop() == 0
    assert not health(agent.address, "web")


def test_run_from_python_is_a_whole_program(agent: DevAgent) -> None:
    launched = launch(agent)
    program = (
        "import mesh_middleware\n"
        "from tests.server.apps import hello\n"
        f"mesh_middleware.run(hello, service='py', port={launched.port}, grace=0)\n"
        "print('after the stop')"
    )
    launched.command = [sys.executable, "-c", program]
    with launched:
        launched.serves()
        with closing(Caller.of(agent.address, "web").connect(launched.port, "py")) as sock:
            assert request(sock) == (200, b"hello")
        assert launched.stop() == 0
        assert launched.log.rstrip().endswith("after the stop")

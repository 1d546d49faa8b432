"""What is open on real WSGI servers when an intention goes ends, and never looks complete."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Iterator
from contextlib import closing, suppress

import h2.connection
import h2.events
import pytest

from mesh_middleware.devagent import DevAgent
from tests.e2e.launch import REFUSED, Caller
from tests.servers import http2
from tests.servers.conftest import ENTRY
from tests.servers.processes import Process, gunicorn
from tests.support import free_port, wait_for

APP = "tests.servers.apps:wsgi"
LINES = {
    "sync": (),
    "gthread": ('worker_class = "gthread"', "threads = 4", 'http_protocols = "h2,h1"'),
}


def werkzeug(agent: DevAgent) -> Process:
    port = free_port()
    command = [sys.executable, "-m", "tests.servers.serve", "werkzeug", "wsgi", str(port)]
    return Process(command, port=port, agent=agent.address)


@pytest.fixture(scope="module", params=[*LINES, "werkzeug"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[DevAgent, Process]]:
    with DevAgent(intentions=[ENTRY]) as agent:
        conf = tmp_path_factory.mktemp("gunicorn") / "gunicorn.conf.py"
        lines = (*LINES.get(request.param, ()), 'loglevel = "debug"')
        kind = request.param
        process = (
            werkzeug(agent)
            if kind == "werkzeug"
            else gunicorn(agent.address, APP, conf, "workers = 2", *lines)
        )
        with process:
            yield agent, process.answers("web")


@pytest.fixture
def server(running: tuple[DevAgent, Process]) -> tuple[DevAgent, Process, Caller]:
    """Shared by a module; every test begins with the caller allowed in both workers."""
    agent, process = running
    agent.put_intentions([ENTRY])
    caller = Caller.of(agent.address, "web")
    wait_for(lambda: all(process.status(caller) == 200 for _ in range(10)))
    return agent, process, caller


def ends(response: http.client.HTTPResponse) -> None:
    """Read until the body ends early; AssertionError when it ends as if it were complete."""
    with suppress(REFUSED):
        while response.read1(65536):
            pass
        assert response.length, "the body looks complete"


@pytest.mark.parametrize("path", ["/endless", "/file"])
def test_a_response_is_cut(server: tuple[DevAgent, Process, Caller], path: str) -> None:
    agent, process, caller = server
    with closing(caller.connect(process.port, "api")) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nhost: api\r\n\r\n".encode())
        response = http.client.HTTPResponse(sock, method="GET")
        response.begin()
        assert response.status == 200
        assert response.read1(100)
        agent.delete_intentions("api")
        ends(response)
    process.says("ended GET " + path)
    assert "Traceback" not in process.log


def test_an_upload_is_refused(server: tuple[DevAgent, Process, Caller]) -> None:
    agent, process, caller = server
    with closing(caller.connect(process.port, "api")) as sock:
        sock.sendall(b"POST /upload HTTP/1.1\r\nhost: api\r\ncontent-length: 1000000\r\n\r\n")
        sock.sendall(b"x" * 500_000)
        process.says("reading")
        agent.delete_intentions("api")
        wait_for(lambda: process.status(caller) == 403)
        sock.sendall(b"x" * 500_000)
        response = http.client.HTTPResponse(sock, method="POST")
        response.begin()
        assert response.status == 403
        assert response.headers["x-mesh-refused"] == "default_deny"


@pytest.mark.parametrize("running", ["gthread"], indirect=True)
def test_a_response_over_http2_is_reset(server: tuple[DevAgent, Process, Caller]) -> None:
    agent, process, caller = server
    with closing(http2.connect(caller, process.port)) as sock:
        client = h2.connection.H2Connection()
        client.initiate_connection()
        head = [(":method", "GET"), (":authority", "api"), (":scheme", "https")]
        client.send_headers(1, [*head, (":path", "/endless")], end_stream=True)
        sock.sendall(client.data_to_send())
        got, over = 0, False
        while not over:
            try:
                received = sock.recv(65536)
            except REFUSED:
                break
            if not received:
                break
            for event in client.receive_data(received):
                if isinstance(event, h2.events.DataReceived):
                    client.acknowledge_received_data(event.flow_controlled_length, 1)
                    got += len(event.data)
                assert not isinstance(event, h2.events.StreamEnded), "it looks complete"
                over = over or isinstance(event, h2.events.StreamReset)
            sock.sendall(client.data_to_send())
            if got > 100_000:
                agent.delete_intentions("api")
        assert got > 100_000

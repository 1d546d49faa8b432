"""The catalogue's entry follows the heartbeat board."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.consul.registration import ServiceRegistration
from mesh_middleware.devagent import DevAgent
from mesh_middleware.errors import ConfigError
from mesh_middleware.server.heartbeat import STALE_SECONDS, Board, Phase
from mesh_middleware.server.presence import Presence, registration_of
from tests.server.test_heartbeat import Clock
from tests.support import free_port, wait_for

ENTRY = ServiceRegistration("api", 8443, "127.0.0.1", id="api-1")


@pytest.fixture(scope="module")
def agent() -> Iterator[DevAgent]:
    with DevAgent() as running:
        yield running


def presence(address: str, board: Board, refused: list[str] | None = None) -> Presence:
    said: list[str] = [] if refused is None else refused
    return Presence(MeshConfig("api", address=address), ENTRY, board, said.append)


def status(agent: DevAgent) -> str | None:
    return agent.statuses.get(ENTRY.check_id)


def test_the_check_follows_what_the_service_can_do(agent: DevAgent) -> None:
    clock = Clock()
    board = Board(1, clock=clock)
    with presence(agent.address, board) as present:
        assert "api-1" in repr(present)
        assert status(agent) is None
        board.beat(0, Phase.STARTING)
        wait_for(lambda: status(agent) == "critical", message="registers before it serves")
        board.beat(0, Phase.SERVING)
        wait_for(lambda: status(agent) == "passing")
        board.beat(0, Phase.SERVING, ("leaf",))
        wait_for(lambda: status(agent) == "critical", 3, "no certificate, and still passing")
        board.beat(0, Phase.SERVING)
        wait_for(lambda: status(agent) == "passing", 3)
        clock.now += STALE_SECONDS + 1
        wait_for(lambda: status(agent) == "critical", 3, "the loop hangs, and still passing")
        board.beat(0, Phase.SERVING)
        wait_for(lambda: status(agent) == "passing", 3)
        assert present.withdraw()
        assert status(agent) == "critical"
        assert not present.withdraw()
    assert agent.services == {}


def test_a_service_that_never_starts_is_never_registered(agent: DevAgent) -> None:
    with presence(agent.address, Board(1)) as present:
        assert not present.withdraw()
    assert agent.services == {}


def test_it_registers_once_the_agent_is_there(caplog: pytest.LogCaptureFixture) -> None:
    board = Board(1)
    board.beat(0, Phase.SERVING)
    port = free_port()
    with caplog.at_level(logging.INFO), presence(f"http://127.0.0.1:{port}", board):
        wait_for(lambda: "is not registered yet: no answer from the Consul agent" in caplog.text)
        with DevAgent(port) as agent:
            wait_for(lambda: status(agent) == "passing")
    assert caplog.text.count("is not registered yet") == 1


def test_an_agent_that_is_gone_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    board = Board(1)
    board.beat(0, Phase.SERVING)
    with DevAgent() as agent:
        present = presence(agent.address, board)
        present.__enter__()
        wait_for(lambda: status(agent) == "passing")
    assert not present.withdraw()
    present.__exit__()
    assert "the agent could not be told" in caplog.text


@contextlib.contextmanager
def refusing_agent() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_error(403, "Permission denied")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_refusal_by_acl_is_told_once() -> None:
    board, told = Board(1), list[str]()
    board.beat(0, Phase.SERVING)
    with refusing_agent() as address, presence(address, board, told):
        wait_for(lambda: told)
    assert len(told) == 1
    assert "does not register the service" in told[0]
    assert 'service "api" { policy = "write" }' in told[0]


@pytest.mark.parametrize(
    ("host", "advertise", "address"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "10.0.0.7", "10.0.0.7"),
        ("0.0.0.0", None, None),
        ("0.0.0.0", "10.0.0.7", "10.0.0.7"),
    ],
)
def test_the_address_is_a_concrete_one_or_left_to_the_agent(
    host: str, advertise: str | None, address: str | None
) -> None:
    with socket.create_server((host, 0)) as listener:
        entry = registration_of(
            MeshConfig("api"), listener, advertise=advertise, tags=("a",), meta={"b": "c"}
        )
        assert entry.port == listener.getsockname()[1]
    assert entry.address == address
    assert entry.tags == ("a",)
    assert entry.meta == {"b": "c"}


def test_a_unix_socket_cannot_be_registered() -> None:
    with (
        socket.socket(socket.AF_UNIX) as listener,
        pytest.raises(ConfigError, match="unix socket"),
    ):
        registration_of(MeshConfig("api"), listener)

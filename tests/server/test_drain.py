"""How open connections end with the server: not one request is lost, and nobody holds it up."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
import uvicorn

from mesh_middleware._types import ASGIApp
from mesh_middleware.server import linger, protocols
from mesh_middleware.server.goaway import GoAway
from mesh_middleware.server.heartbeat import Phase
from mesh_middleware.server.protocols import protocol_class, shaking_hands
from mesh_middleware.server.worker import UvicornServer
from tests.server.apps import hello
from tests.server.mesh import Mesh, request, running
from tests.support import wait_for

HTTP = ("h11", "httptools", "zttp")
LARGE = 30_000_000
LONG = 60
"""Longer than a test waits for the server to stop."""


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return Mesh.new()


async def large(_scope: Any, _receive: Any, send: Any) -> None:
    """More than kernels hold, in one piece."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x" * LARGE})


class Stopping:
    """A server on a port of loopback, and what it beat."""

    def __init__(
        self,
        app: ASGIApp,
        context: Any,
        *,
        http: Any,
        loop: Any,
        keep_alive: int,
        patient: bool,
    ) -> None:
        self.beats: list[Phase] = []
        goaway = GoAway(app)
        config = uvicorn.Config(
            goaway,
            http=protocol_class(http),
            ssl_context_factory=lambda *_: context,
            interface="asgi3",
            proxy_headers=False,
            lifespan="off",
            log_config=None,
            loop=loop,
            timeout_keep_alive=keep_alive,
            timeout_graceful_shutdown=LONG,
        )
        self.server = UvicornServer(config, goaway, self.beats.append, patient=patient)
        self.port = 0

    def stop(self) -> None:
        """Return when the end has begun; a look at the listener would be a handshake that fails."""
        self.server.should_exit = True
        wait_for(lambda: Phase.STOPPING in self.beats)


@contextmanager
def serving(
    mesh: Mesh,
    *,
    app: ASGIApp = hello,
    http: str = "httptools",
    loop: str = "asyncio",
    keep_alive: int = LONG,
    patient: bool = True,
) -> Iterator[Stopping]:
    """Stopped at the end, within ten seconds."""
    context = mesh.server_context("web")
    stopping = Stopping(app, context, http=http, loop=loop, keep_alive=keep_alive, patient=patient)
    with running(stopping.server) as stopping.port:
        yield stopping


def last_answer(sock: socket.socket) -> http.client.HTTPResponse:
    """One GET; the connection must be closed behind the answer."""
    sock.sendall(b"GET / HTTP/1.1\r\nhost: mesh\r\n\r\n")
    response = http.client.HTTPResponse(sock, method="GET")
    response.begin()
    assert (response.status, response.read()) == (200, b"hello")
    assert sock.recv(1) == b""
    return response


def test_who_is_nobodys_worker_outlives_whoever_started_it(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that a script put into the background has another parent soon."""
    with serving(mesh, patient=False) as server:
        monkeypatch.setattr("os.getppid", lambda: 1)
        seen = len(server.beats)
        wait_for(lambda: len(server.beats) >= seen + 2)
        assert not server.server.should_exit


async def endless(_scope: Any, receive: Any, send: Any) -> None:
    """A WebSocket that does nothing by itself."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nhost: mesh\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def test_a_websocket_whose_client_says_no_goodbye_holds_up_nobody(mesh: Mesh) -> None:
    """uvicorn before 0.52.1 tried to close it a second time, which failed, and the stop with it."""
    with (
        serving(mesh, app=endless) as server,
        closing(mesh.connect(server.port, "client", "web")) as silent,
    ):
        silent.sendall(HANDSHAKE)
        assert silent.recv(1000).startswith(b"HTTP/1.1 101 ")
        server.stop()
        wait_for(lambda: not server.server.server_state.connections, 10)


@pytest.mark.parametrize("http", HTTP)
def test_an_idle_connection_stays_for_one_more_request(mesh: Mesh, http: str) -> None:
    with serving(mesh, http=http) as server:
        with closing(mesh.connect(server.port, "client", "web")) as sock:
            assert request(sock) == (200, b"hello")
            server.stop()
            assert last_answer(sock).getheader("connection") == "close"
        wait_for(lambda: server.beats[-1] is Phase.STOPPING)


@pytest.mark.parametrize("used", [True, False])
def test_an_idle_connection_is_closed_after_the_time_to_keep_it(mesh: Mesh, *, used: bool) -> None:
    with ExitStack() as stack:
        with serving(mesh, keep_alive=1) as server:
            # a client that looks at it when the server is gone
            sock = stack.enter_context(closing(mesh.connect(server.port, "client", "web")))
            if used:
                request(sock)
            server.stop()
        assert sock.recv(1) == b""


@pytest.mark.parametrize("late", [True, False])
def test_a_slow_reader_gets_all_of_its_last_answer(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    monkeypatch.setattr(linger, "LINGER_SECONDS", 0.1)
    with (
        serving(mesh, app=large, keep_alive=1) as server,
        closing(mesh.connect(server.port, "client", "web")) as sock,
    ):
        assert len(request(sock)[1]) == LARGE
        if late:
            server.stop()
        sock.sendall(b"GET / HTTP/1.1\r\nhost: mesh\r\n\r\n")
        server.stop()
        beats = server.beats.count(Phase.STOPPING)
        wait_for(lambda: server.beats.count(Phase.STOPPING) > beats + 1)  # more than a second
        response = http.client.HTTPResponse(sock, method="GET")
        response.begin()
        assert len(response.read()) == LARGE
    # uvicorn has what is left of the time to drain
    limit = server.server.config.timeout_graceful_shutdown
    assert limit is not None
    assert 0 < limit < LONG


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_connection_whose_handshake_is_not_done_is_served(mesh: Mesh, loop: str) -> None:
    context = mesh.contexts("client").client(mesh.identity("web"))
    with (
        serving(mesh, loop=loop) as server,
        closing(socket.create_connection(("127.0.0.1", server.port), timeout=10)) as early,
    ):
        wait_for(shaking_hands)
        server.stop()
        # the heart goes on: the server still waits
        wait_for(lambda: server.beats.count(Phase.STOPPING) > 1)
        with closing(context.wrap_socket(early, server_hostname="mesh")) as sock:
            last_answer(sock)


def test_a_failed_handshake_is_forgotten(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "HANDSHAKE_SECONDS", 1.0)
    with serving(mesh) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            wait_for(shaking_hands)
            sock.sendall(b"this is no TLS\r\n\r\n")
        wait_for(lambda: not shaking_hands())


@pytest.mark.parametrize("patient", [True, False])
def test_nobody_is_waited_for_when_forced_or_impatient(mesh: Mesh, *, patient: bool) -> None:
    with (
        serving(mesh, patient=patient) as server,
        closing(mesh.connect(server.port, "client", "web")) as sock,
    ):
        request(sock)
        server.stop()
        if patient:
            server.server.force_exit = True
        assert sock.recv(1) == b""

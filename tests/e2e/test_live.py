"""What is open when the mesh changes ends within a second: real TLS, the launcher, an agent."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import h2.config
import h2.connection
import h2.events
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from mesh_middleware.devagent import DevAgent
from mesh_middleware.tls.certificates import X509SVID
from mesh_middleware.tls.contexts import TLSContexts
from tests.e2e.launch import REFUSED, Caller, Launched
from tests.server.mesh import request
from tests.support import wait_for

APP = "tests.e2e.live_app:app"
WITHIN = 3.0
"""Seconds; it takes well under one, but the machine may be busy."""


def allow(*sources: str) -> list[dict[str, object]]:
    rows = [{"Name": source, "Action": "allow"} for source in sources]
    return [{"Kind": "service-intentions", "Name": "web", "Sources": rows}]


class Place:
    """An agent and a service, and callers that are allowed."""

    def __init__(self, agent: DevAgent, launched: Launched) -> None:
        self.agent = agent
        self.launched = launched
        self.allow()

    @property
    def port(self) -> int:
        return self.launched.port

    def allow(self) -> None:
        self.agent.put_intentions(allow("caller"))
        wait_for(lambda: self.caller().get(self.port, "/ping")[0] == 200)

    def deny(self) -> None:
        self.agent.delete_intentions("web")

    def caller(self, life: float = 3600.0) -> Caller:
        leaf = self.agent.ca.issue("caller", not_after=time.time() + life)
        return Caller(
            X509SVID.from_pem(leaf.cert_pem, leaf.key_pem),
            Caller.of(self.agent.address, "caller").bundle,
        )


@contextmanager
def placed(*arguments: str) -> Iterator[Place]:
    with (
        DevAgent(default_action="deny") as agent,
        Launched(agent.address, *arguments, app=APP) as launched,
    ):
        yield Place(agent, launched.serves())


@pytest.fixture(
    scope="module",
    params=[("--http", "httptools"), ("--http", "h11", "--ws", "wsproto")],
    ids=["httptools", "h11"],
)
def shared(request: pytest.FixtureRequest) -> Iterator[Place]:
    with placed(*request.param) as place:
        yield place


@pytest.fixture
def place(shared: Place) -> Place:
    """Shared by a module; every test begins with the caller allowed."""
    shared.allow()
    return shared


def open_stream(sock: ssl.SSLSocket, target: str) -> http.client.HTTPResponse:
    sock.sendall(f"GET {target} HTTP/1.1\r\nhost: mesh\r\n\r\n".encode())
    response = http.client.HTTPResponse(sock, method="GET")
    response.begin()
    assert response.status == 200
    return response


def cut(response: http.client.HTTPResponse) -> float:
    """Seconds until the body ends early; AssertionError when it ends as if it were complete."""
    began = time.monotonic()
    try:
        while response.read1(65536):
            pass
    except REFUSED:
        return time.monotonic() - began
    raise AssertionError("the body looks complete")


def closed(connection: ClientConnection) -> tuple[int, str]:
    """Code and reason with which the server closes."""
    try:
        while True:
            connection.recv(WITHIN)
    except ConnectionClosed as end:
        return (end.rcvd.code, end.rcvd.reason) if end.rcvd else (1006, "no close frame")


# -- an intention changes ----------------------------------------------------------------------


def test_a_websocket_is_closed_with_1008_and_the_reason(place: Place) -> None:
    with place.caller().websocket(place.port) as connection:
        connection.send("hello")
        assert connection.recv(10) == "hello"
        place.deny()
        began = time.monotonic()
        assert closed(connection) == (1008, "default_deny")
        assert time.monotonic() - began < WITHIN


@pytest.mark.parametrize("target", ["/feed", "/silent"])
def test_a_download_is_cut(place: Place, target: str) -> None:
    with closing(place.caller().connect(place.port)) as sock:
        response = open_stream(sock, target)
        assert response.read1(5)
        place.deny()
        assert cut(response) < WITHIN
    place.launched.says(f"ended GET {target} from spiffe://")


def test_an_upload_is_refused_and_its_connection_closed(place: Place) -> None:
    with closing(place.caller().connect(place.port)) as sock:
        head = "POST /upload HTTP/1.1\r\nhost: mesh\r\ncontent-length: 1000000\r\n\r\n"
        sock.sendall(head.encode() + b"x" * 1000)
        # Answered after the upload has begun, which came first; then the change finds it open.
        assert place.caller().get(place.port, "/ping")[0] == 200
        place.deny()
        response = http.client.HTTPResponse(sock, method="POST")
        response.begin()
        assert response.status == 403
        assert b"default_deny" in response.read()
        assert response.getheader("connection") == "close"
        assert sock.recv(1) == b""


def test_the_next_request_of_a_connection_is_refused(place: Place) -> None:
    with closing(place.caller().connect(place.port)) as sock:
        assert request(sock, "/ping")[0] == 200
        place.deny()
        wait_for(lambda: request(sock, "/ping")[0] == 403, WITHIN)


def test_what_stays_allowed_stays_open(place: Place) -> None:
    with (
        closing(place.caller().connect(place.port)) as sock,
        place.caller().websocket(place.port) as connection,
    ):
        response = open_stream(sock, "/feed")
        place.agent.put_intentions(allow("caller", "another"))
        another = Caller.of(place.agent.address, "another")
        wait_for(lambda: another.get(place.port, "/ping")[0] == 200)
        began = time.monotonic()
        while time.monotonic() - began < 0.6:
            assert response.read1(5)
        connection.send("still here")
        assert connection.recv(10) == "still here"
        place.deny()
        cut(response)


# -- a certificate ends, a root is removed -----------------------------------------------------


def test_an_expired_certificate_ends_what_it_opened(place: Place) -> None:
    brief = place.caller(life=4)
    with (
        closing(brief.connect(place.port)) as download,
        closing(brief.connect(place.port)) as idle,
        brief.websocket(place.port) as connection,
    ):
        response = open_stream(download, "/silent")
        assert request(idle, "/ping")[0] == 200
        response.read1(6)
        cut(response)
        assert closed(connection) == (1008, "certificate_expired")
        assert brief.svid.not_after <= time.time() < brief.svid.not_after + WITHIN
        assert request(idle, "/ping")[0] == 403


def test_a_removed_root_ends_what_it_opened() -> None:
    with placed() as place:
        old = place.caller()
        with (
            closing(old.connect(place.port)) as download,
            closing(old.connect(place.port)) as idle,
            old.websocket(place.port) as connection,
        ):
            response = open_stream(download, "/feed")
            place.agent.rotate_ca()
            wait_for(lambda: place.caller().get(place.port, "/ping")[0] == 200)
            assert response.read1(5)
            connection.send("rotated")
            assert connection.recv(10) == "rotated"
            place.agent.remove_inactive_roots()
            cut(response)
            assert closed(connection) == (1008, "root_not_trusted")
            assert request(idle, "/ping")[0] == 403


# -- drain, audit, HTTP/2 ----------------------------------------------------------------------


def test_drain_lets_go_on_for_so_long() -> None:
    with (
        placed("--revoked-drain", "1.5") as place,
        closing(place.caller().connect(place.port)) as sock,
    ):
        response = open_stream(sock, "/feed")
        with closing(place.caller().connect(place.port)) as idle:
            place.deny()
            wait_for(lambda: request(idle, "/ping")[0] == 403)
        assert 0.5 < cut(response) < 1.5 + WITHIN


def test_audit_says_so_and_passes_on() -> None:
    with placed("--enforcement", "audit", "--debug-headers") as place:
        place.launched.says("AUDIT MODE", times=2)
        stranger = Caller.of(place.agent.address, "stranger")
        with closing(stranger.connect(place.port)) as sock:
            sock.sendall(b"GET /ping HTTP/1.1\r\nhost: mesh\r\n\r\n")
            response = http.client.HTTPResponse(sock, method="GET")
            response.begin()
            assert (response.status, response.read()) == (200, b'"pong"')
            assert response.getheader("x-mesh-audit") == "default_deny"
        place.launched.says("audit: would refuse GET /ping from spiffe://")
        with closing(socket.create_connection(("127.0.0.1", place.port), 10)) as plain:
            plain.sendall(b"GET /ping HTTP/1.1\r\nhost: mesh\r\n\r\n")
            assert not drained(plain).startswith(b"HTTP/1.1 200")


def drained(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1000)
    except OSError:
        return b""


def test_audit_is_no_matter_of_the_environment() -> None:
    names = ("MESH_ENFORCEMENT", "MESH_MIDDLEWARE_ENFORCEMENT", "UVICORN_ENFORCEMENT")
    names += ("MESH_MIDDLEWARE_RUN_ENFORCEMENT", "ENFORCEMENT", "MESH_AUDIT")
    with (
        DevAgent(default_action="deny") as agent,
        Launched(agent.address, app=APP, env=dict.fromkeys(names, "audit")) as launched,
    ):
        stranger = Caller.of(agent.address, "stranger")
        assert stranger.get(launched.serves().port, "/ping")[0] == 403


def test_a_stream_of_http_2_is_reset_and_its_connection_lives() -> None:
    with placed("--http", "zttp", "--http2") as place:
        caller = place.caller()
        context = TLSContexts(caller.svid, caller.bundle, generation=1)
        server = Caller.of(place.agent.address, "web").svid.identity
        sock = socket.create_connection(("127.0.0.1", place.port), timeout=10)
        tls = context.client(server, ("h2",)).wrap_socket(sock, server_hostname="mesh")
        with closing(tls):
            connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
            connection.initiate_connection()
            get(connection, 1, "/feed")
            tls.sendall(connection.data_to_send())
            receive_until(tls, connection, lambda event: isinstance(event, h2.events.DataReceived))
            place.deny()
            receive_until(tls, connection, lambda event: isinstance(event, h2.events.StreamReset))
            get(connection, 3, "/ping")
            tls.sendall(connection.data_to_send())
            answer = receive_until(
                tls,
                connection,
                lambda event: (
                    isinstance(event, h2.events.ResponseReceived) and event.stream_id == 3
                ),
            )
            assert isinstance(answer, h2.events.ResponseReceived)
            assert dict(answer.headers or ())[b":status"] == b"403"


def get(connection: h2.connection.H2Connection, stream: int, path: str) -> None:
    pseudo = {":method": "GET", ":scheme": "https", ":authority": "mesh", ":path": path}
    connection.send_headers(stream, list(pseudo.items()), end_stream=True)


def receive_until(
    sock: ssl.SSLSocket,
    connection: h2.connection.H2Connection,
    wanted: Callable[[h2.events.Event], bool],
) -> h2.events.Event:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        data = sock.recv(65536)
        assert data, "the connection was closed"
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if wanted(event):
                return event
        sock.sendall(connection.data_to_send())
    raise AssertionError("it did not come")

"""Refusals on real sockets: connections stay usable, and what rules see is what was sent."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from mesh_middleware._types import ASGIApp, Receive, Scope, Send
from mesh_middleware.middleware import MeshMiddleware
from mesh_middleware.policy.intentions import Action
from mesh_middleware.server.protocols import MeshScope
from mesh_middleware.testing import static_mesh
from tests.middleware.calls import WEB_MAY, rule, verified, web_permissions
from tests.support import wait_for


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


@contextmanager
def served(app: ASGIApp, **options: Any) -> Iterator[socket.socket]:
    """A connection to `app` behind uvicorn, without TLS."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_config=None, **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        with socket.create_connection(listener.getsockname(), timeout=10) as connection:
            yield connection
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    with connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        headers = {}
        while line := stream.readline().strip().decode("latin-1"):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, stream.read(int(headers.get("content-length", "0")))


REFUSING = MeshMiddleware(hello, mesh=static_mesh("api"), exempt_paths=["/live"])


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 300000\r\n\r\n" + b"x" * 300000,
        b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
    ids=["long body", "chunked", "no body"],
)
def test_a_connection_is_usable_after_a_refused_request(http: str, request_bytes: bytes) -> None:
    with served(REFUSING, http=http) as connection:
        connection.sendall(request_bytes)
        status, headers, body = read_answer(connection)
        assert (status, headers["x-mesh-refused"]) == (403, "no_identity")
        assert b'"no_identity"' in body
        connection.sendall(b"GET /live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert read_answer(connection)[0] == 200


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_client_that_waits_with_its_body_is_told_to_come_again(http: str) -> None:
    """It gets no ``100 Continue``, and what it sends next cannot be taken for something else."""
    with served(REFUSING, http=http) as connection:
        connection.sendall(
            b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 40\r\nexpect: 100-continue\r\n\r\n"
        )
        status, headers, _ = read_answer(connection)
        assert (status, headers["connection"]) == (403, "close")
        assert connection.recv(1) == b""


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_head_is_refused_without_a_body(http: str) -> None:
    with served(REFUSING, http=http) as connection:
        connection.sendall(b"HEAD /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65536), b""))
        assert received.startswith(b"HTTP/1.1 403")
        assert received.endswith(b"\r\n\r\n")
        assert received.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto"])
def test_a_websocket_handshake_is_refused_with_a_status(ws: str) -> None:
    with served(REFUSING, ws=ws) as connection:
        connection.sendall(
            b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        status, headers, _ = read_answer(connection)
        assert (status, headers["x-mesh-refused"]) == (403, "no_identity")


def with_peer(app: ASGIApp) -> ASGIApp:
    """Puts a proven caller where the protocol hook puts it, on a plaintext connection."""

    async def proven(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["mesh_middleware.peer"] = verified()
        await app(scope, receive, send)

    return proven


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize(
    ("target", "status"),
    [(b"/ok", 200), (b"/ok?x=%zz", 200), (b"/%6fk", 200), (b"/api/ok", 403), (b"/admin", 403)],
)
def test_under_uvicorns_root_path_rules_see_what_was_sent(
    http: str, target: bytes, status: int
) -> None:
    mesh = static_mesh("api", web_permissions(rule(Action.ALLOW, path_prefix="/ok")))
    app = with_peer(MeshScope(MeshMiddleware(hello, mesh=mesh)))
    with served(app, http=http, root_path="/api") as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nhost: a\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 %d" % status)


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize(
    "target", [b"admin", b"?x", b"/a%zz", b"/a%00", b"*", b"/caf%e9", b"//a/../admin"]
)
def test_odd_targets_never_reach_the_application(http: str, target: bytes) -> None:
    mesh = static_mesh(
        "api",
        web_permissions(
            rule(Action.DENY, path_prefix="/admin"), rule(Action.ALLOW, path_prefix="/")
        ),
    )
    app = with_peer(MeshScope(MeshMiddleware(hello, mesh=mesh)))
    with served(app, http=http) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert read_answer(connection)[0] in {400, 403}


def test_the_whole_stack_lets_a_proven_caller_through() -> None:
    app = with_peer(MeshScope(MeshMiddleware(hello, mesh=static_mesh("api", WEB_MAY))))
    with served(app) as connection:
        connection.sendall(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("http", ["h11", "httptools", "zttp"])
def test_trailers_do_not_become_headers(http: str) -> None:
    """What comes after the body has been seen by no rule and by no stripping."""
    started = threading.Event()

    async def headers_after_the_body(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        while (await receive()).get("more_body"):
            pass
        body = b" ".join(name for name, _ in scope["headers"])
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})

    enforced = MeshMiddleware(headers_after_the_body, mesh=static_mesh("api", WEB_MAY))

    async def with_caller(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"] = {"mesh_middleware": {"peer": verified()}}
        await enforced(scope, receive, send)

    with served(with_caller, http=protocol(http)) as connection:
        connection.sendall(b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        wait_for(started.is_set)
        trailers = b"x-forwarded-client-cert: URI=spiffe://x\r\nx-role: admin\r\n"
        connection.sendall(b"2\r\nhi\r\n0\r\n" + trailers + b"\r\n")
        status, _, body = read_answer(connection)
    assert (status, body) == (200, b"host transfer-encoding")


def protocol(http: str) -> str:
    return "uvicorn.protocols.http.zttp_impl:ZttpProtocol" if http == "zttp" else http

"""The hooks carry the proven caller into every scope, over every protocol uvicorn has."""

from __future__ import annotations

import itertools
import json
import logging
import socket
import ssl
from contextlib import closing
from typing import Any

import pytest
import uvicorn
import zttp
from websockets.sync.client import connect as websocket_connect

from mesh_middleware.errors import ConfigError
from mesh_middleware.middleware import MeshMiddleware
from mesh_middleware.middleware.peer import EXTENSION, PEER_KEY
from mesh_middleware.middleware.refusal import LAST
from mesh_middleware.policy.engine import compile_policy
from mesh_middleware.policy.intentions import Action
from mesh_middleware.server import protocols
from mesh_middleware.server.protocols import (
    TLS_KEY,
    MeshHTTP,
    MeshScope,
    cipher_number,
    protocol_class,
    wire_target,
)
from mesh_middleware.state import MeshState, StaticState
from mesh_middleware.tls.contexts import VerifiedPeer
from tests.server.mesh import Mesh, request, serving


def seen(scope: dict[str, Any]) -> dict[str, Any]:
    """What a scope says of its caller, as JSON."""
    ours = scope["extensions"]["mesh_middleware"]
    peer = ours["peer"]
    tls = scope["extensions"].get("tls", {})
    assert peer is None or type(peer) is VerifiedPeer
    return {
        "caller": str(peer.certificate.identity) if peer else None,
        "target": ours["target"].decode("latin-1"),
        "leftovers": [key for key in (PEER_KEY, TLS_KEY) if key in scope.get("state", {})],
        "lifespan": scope.get("state", {}).get("lifespan"),
        "pem": [pem[:27] for pem in tls.get("client_cert_chain", ())],
        "tls_version": tls.get("tls_version"),
        "cipher_suite": tls.get("cipher_suite"),
        "http_version": scope["http_version"],
    }


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        scope["state"]["lifespan"] = "kept"
        scope["state"][PEER_KEY] = "forged"
        scope["state"][TLS_KEY] = {"client_cert_chain": ("forged",)}
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = json.dumps(seen(scope))
    if scope["type"] == "websocket":
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": body})
        await send({"type": "websocket.close"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body.encode()})


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return Mesh.new()


async def leaving(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"2"), LAST]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize("http", ["h11", "httptools", "zttp"])
def test_a_response_that_says_so_is_the_last_of_its_connection(mesh: Mesh, http: str) -> None:
    """The middleware leans on it."""
    with (
        serving(leaving, mesh.server_context("api"), http=http) as port,
        closing(mesh.connect(port, "web", "api")) as sock,
    ):
        assert request(sock) == (200, b"ok")
        assert sock.recv(1) == b""


def expected(mesh: Mesh, target: str, *, http_version: str = "1.1") -> dict[str, Any]:
    return {
        "caller": str(mesh.identity("web")),
        "target": target,
        "leftovers": [],
        "lifespan": "kept",
        "pem": ["-----BEGIN CERTIFICATE-----"],
        "tls_version": 0x0304,
        "cipher_suite": 0x1302,
        "http_version": http_version,
    }


HTTP = ("h11", "httptools", "zttp")
WS = ("websockets", "websockets-sansio", "wsproto")
LOOPS = ("asyncio", "uvloop")


@pytest.mark.filterwarnings("ignore:remove second argument:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*is deprecated:uvicorn.config.UvicornDeprecationWarning")
@pytest.mark.parametrize(("http", "ws", "loop"), list(itertools.product(HTTP, WS, LOOPS)))
def test_http_and_websocket_scopes_name_the_proven_caller(
    mesh: Mesh, http: str, ws: str, loop: str
) -> None:
    options = {"http": http, "ws": ws, "loop": loop, "lifespan": "on", "root_path": "/outer"}
    with serving(app, mesh.server_context("api"), **options) as port:
        with mesh.connect(port, "web", "api") as sock:
            for target in ("/a%2fb?q=1", "/second"):  # the same connection, its own copy each
                status, body = request(sock, target)
                assert (status, json.loads(body)) == (200, expected(mesh, target))
        sock = mesh.connect(port, "web", "api")
        with websocket_connect("ws://mesh/ws%2f?x=y", sock=sock, proxy=None) as websocket:
            assert json.loads(websocket.recv(10)) == expected(mesh, "/ws%2f?x=y")


@pytest.mark.parametrize("loop", LOOPS)
def test_http2_streams_name_the_proven_caller(mesh: Mesh, loop: str) -> None:
    alpn = tuple(protocol_class("zttp", http2=True).alpn_protocols)  # type: ignore[attr-defined]
    context = mesh.server_context("api", alpn)
    with serving(app, context, http="zttp", http2=True, loop=loop, lifespan="on") as port:
        with mesh.connect(port, "web", "api", ("h2",)) as sock:
            assert sock.selected_alpn_protocol() == "h2"
            assert json.loads(http2_get(sock, "/two?x")) == expected(
                mesh, "/two?x", http_version="2"
            )
        with mesh.connect(port, "web", "api", ("http/1.1",)) as sock:
            assert json.loads(request(sock, "/one")[1]) == expected(mesh, "/one")


def http2_get(sock: ssl.SSLSocket, target: str) -> bytes:
    connection = zttp.Connection(zttp.CLIENT, protocol=zttp.HTTP2)
    connection.initiate_connection()
    stream = connection.send_request(b"GET", target.encode(), b"2", [(b"host", b"mesh")])
    stream.end_message()
    sock.sendall(connection.data_to_send())
    body = b""
    while True:
        event = connection.next_event()
        if event is zttp.NEED_DATA:
            sock.sendall(connection.data_to_send())
            connection.receive_data(sock.recv(65536))
        elif isinstance(event, zttp.Data):
            body += event.data
        elif isinstance(event, zttp.EndOfMessage):
            return body


@pytest.mark.parametrize("http", HTTP)
def test_plaintext_has_no_caller_whatever_the_application_put_into_its_state(http: str) -> None:
    with serving(app, http=http, lifespan="on") as port:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            answer = json.loads(request(sock, "/x")[1])
        assert answer["caller"] is None
        assert answer["pem"] == []
        assert answer["leftovers"] == []
        with websocket_connect(f"ws://127.0.0.1:{port}/w", proxy=None) as websocket:
            assert json.loads(websocket.recv(10))["caller"] is None


def test_a_context_that_is_not_ours_proves_nobody(mesh: Mesh, tmp_path: Any) -> None:
    """A plain server context without client certificates: TLS, and no caller."""
    certificate, key = mesh.leaf("api")
    (tmp_path / "leaf.pem").write_text(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "leaf.pem")
    with serving(app, context, lifespan="on") as port, mesh.connect(port, "web", "api") as sock:
        answer = json.loads(request(sock, "/x")[1])
    assert answer["caller"] is None
    assert answer["pem"] == []


def test_a_failing_hook_is_logged_and_closes_the_connection(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_connection: Any) -> None:
        raise RuntimeError("cannot read the peer")

    monkeypatch.setattr(protocols, "verified_peer", broken)
    with (
        caplog.at_level(logging.ERROR, "mesh_middleware.server"),
        serving(app, mesh.server_context("api"), lifespan="on") as port,
        mesh.connect(port, "web", "api") as sock,
    ):
        sock.sendall(b"GET / HTTP/1.1\r\nhost: mesh\r\n\r\n")
        assert closed(sock)
    assert "cannot read the peer" in caplog.text


def closed(sock: ssl.SSLSocket) -> bool:
    """True when nothing comes any more: an end of file or a reset, whichever the loop does."""
    try:
        return sock.recv(100) == b""
    except ConnectionError:
        return True


def test_the_tls_extension_is_made_once_per_connection(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = protocols.tls_extension
    monkeypatch.setattr(protocols, "tls_extension", lambda *a: calls.append(a) or real(*a))
    context = mesh.server_context("api")
    with serving(app, context, lifespan="on") as port, mesh.connect(port, "web", "api") as sock:
        for _ in range(3):
            request(sock, "/x")
    assert len(calls) == 1


def test_the_configured_protocol_is_found_when_configured_not_per_connection() -> None:
    config = uvicorn.Config(app, http=protocol_class("h11"), log_config=None)
    config.load()
    assert issubclass(config.http_protocol_class, MeshHTTP)


@pytest.mark.parametrize(
    ("http", "http2", "message"),
    [
        ("mine:Protocol", False, "use one of auto, h11, httptools, zttp"),
        ("h11", True, "--http2 needs --http zttp"),
    ],
)
def test_protocols_that_cannot_carry_the_caller_are_refused(
    http: str, http2: bool, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        protocol_class(http, http2=http2)


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize(
    ("target", "status"), [("/a#b", 400), ("/a?x#b", 400), ("/a", 200), ("/a?x=1", 200)]
)
def test_a_fragment_in_a_target_is_malformed(
    mesh: Mesh, http: str, target: str, status: int
) -> None:
    """httptools drops it, so that rules and the application would see another target."""
    policy = compile_policy([], default_action=Action.ALLOW, trust_domain=mesh.ca.trust_domain)
    state = MeshState("api", generation=1, bundle=mesh.bundle, policy=policy)
    guarded = MeshMiddleware(leaving, mesh=StaticState(state))
    with (
        serving(guarded, mesh.server_context("api"), http=http) as port,
        closing(mesh.connect(port, "web", "api")) as sock,
    ):
        assert request(sock, target)[0] == status


def test_the_target_is_recorded_whole_and_taken_out_of_the_scope(mesh: Mesh) -> None:
    seen_scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen_scopes.append(scope)
        await leaving(scope, receive, send)

    with (
        serving(app, mesh.server_context("api"), http="httptools") as port,
        closing(mesh.connect(port, "web", "api")) as sock,
    ):
        request(sock, "http://mesh/a%2Fb?x=1")
    (scope,) = seen_scopes
    assert scope["extensions"][EXTENSION]["target"] == b"http://mesh/a%2Fb?x=1"
    assert scope["path"] == "/a/b"
    assert not [key for key in scope if key.startswith("mesh_middleware")]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols.MeshZttp, "implementation", "no_such_package:Protocol")
    with pytest.raises(ConfigError, match="--http zttp needs a package that is missing"):
        protocol_class("zttp")


@pytest.mark.parametrize(
    ("scope", "target"),
    [
        ({"raw_path": b"/a%2Fb", "query_string": b"x=1"}, b"/a%2Fb?x=1"),
        ({"raw_path": b"/api/a", "root_path": "/api"}, b"/a"),
        ({"raw_path": b"/api/api/a", "root_path": "/api"}, b"/api/a"),
        ({"raw_path": None, "path": "/ä b"}, b"/%C3%A4%20b"),
        ({"raw_path": b"*", "query_string": b""}, b"*"),
    ],
)
def test_the_wire_target_is_what_the_client_sent(scope: dict[str, Any], target: bytes) -> None:
    assert wire_target(scope) == target


def test_an_unknown_cipher_has_no_number() -> None:
    assert cipher_number("TLS_AES_256_GCM_SHA384") == 0x1302
    assert cipher_number("NO-SUCH-CIPHER") is None


def test_lifespan_scopes_pass_unchanged() -> None:
    got = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        got.append(dict(scope))

    coroutine = MeshScope(inner)({"type": "lifespan", "state": {"a": 1}}, None, None)  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert got == [{"type": "lifespan", "state": {"a": 1}}]

"""WSGI applications under the launcher: recognised, in threads, and never waiting for nobody."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from mesh_middleware.config import MeshConfig
from mesh_middleware.errors import ConfigError
from mesh_middleware.middleware.wsgi import MeshWSGIMiddleware
from mesh_middleware.server.exits import ExitCode, LaunchError
from mesh_middleware.server.interface import is_wsgi
from mesh_middleware.server.launcher import serve
from mesh_middleware.server.worker import Settings, load_app
from mesh_middleware.server.wsgi import ThreadedWSGI
from mesh_middleware.testing import static_mesh
from tests.middleware.calls import call, http_scope
from tests.server.apps import hello, legacy, wsgi
from tests.server.mesh import request, serving
from tests.servers.wsgi_apps import closed, whoami
from tests.support import await_for


class Callable3:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Callable2:
    async def __call__(self, environ: Any, start_response: Any) -> None: ...


@pytest.mark.parametrize(
    ("app", "yes"),
    [
        (wsgi, True),
        (Flask("x"), True),
        (Flask("x").wsgi_app, True),
        (MeshWSGIMiddleware(wsgi, mesh=static_mesh("api")), True),
        (lambda environ, start_response, extra=1: [], True),
        (hello, False),
        (legacy, False),
        (Callable3(), False),
        (Callable2(), False),
        (dict, False),
        (Callable3, False),
        ("tests.server.apps:wsgi", False),
        (lambda *arguments: None, False),
    ],
)
def test_a_wsgi_application_is_recognised(app: object, yes: bool) -> None:
    assert is_wsgi(app) is yes


def test_what_has_no_signature_is_not_wsgi() -> None:
    class Odd:
        __signature__ = "none"

        def __call__(self) -> None: ...

    assert not is_wsgi(Odd())


@pytest.mark.parametrize("options", [{}, {"interface": "wsgi"}, {"interface": "auto"}])
def test_it_is_served_in_threads_of_the_wanted_number(options: dict[str, str]) -> None:
    app = load_app(Settings("tests.server.apps:wsgi", MeshConfig("api"), options, wsgi_threads=3))
    assert isinstance(app, ThreadedWSGI)
    assert app.executor._max_workers == 3
    assert call(app, http_scope()).body == b"hello"


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mesh_middleware.server.wsgi", None)
    with pytest.raises(LaunchError, match=r"mesh-middleware\[wsgi\]") as raised:
        load_app(Settings("tests.server.apps:wsgi", MeshConfig("api"), {}))
    assert raised.value.code is ExitCode.APP_IMPORT


def test_no_threads_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="wsgi_threads"):
        serve(hello, service="api", wsgi_threads=0)


# -- headers --------------------------------------------------------------------------------------


def test_headers_with_underscores_are_dropped() -> None:
    with (
        serving(ThreadedWSGI(whoami, 2)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
    ):
        status, body = request(sock, "/", {"x-role": "user", "x_role": "admin", "x_other": "1"})
    assert status == 200
    assert b'"headers": {"HTTP_X_ROLE": "user"}' in body


def test_a_body_arrives() -> None:
    with (
        serving(ThreadedWSGI(whoami, 2)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
    ):
        for _ in range(2):  # the connection stays usable
            sock.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 300000\r\n\r\n")
            sock.sendall(b"x" * 300000)
            response = http.client.HTTPResponse(sock)
            response.begin()
            assert json.loads(response.read())["body"] == 300000


def test_websockets_find_nobody() -> None:
    sent = call(ThreadedWSGI(whoami, 1), http_scope(kind="websocket")).sent
    assert sent == [{"type": "websocket.close", "code": 1000}]


# -- nobody takes the response ---------------------------------------------------------------------


@pytest.fixture
def one_thread() -> Iterator[int]:
    """A server whose application has one thread: one that hangs stops everything."""
    with serving(ThreadedWSGI(whoami, 1)) as port:
        yield port


def start_endless(port: int, head: bytes = b"GET /endless HTTP/1.1\r\nhost: a\r\n") -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(head + b"\r\n")
        assert sock.recv(10) == b"HTTP/1.1 2"


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_client_that_leaves_ends_the_response(one_thread: int, method: bytes) -> None:
    start_endless(one_thread, method + b" /endless HTTP/1.1\r\nhost: a\r\n")
    assert closed.wait(10)
    with socket.create_connection(("127.0.0.1", one_thread), timeout=10) as sock:
        assert request(sock)[0] == 200


def test_a_cancelled_response_gives_its_thread_back() -> None:
    """The client stops reading; then the task is cancelled, as when the mesh cuts a stream."""
    app = ThreadedWSGI(whoami, 1)

    async def story() -> None:
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) > 3:
                await asyncio.Event().wait()

        task = asyncio.create_task(app(http_scope("/endless"), receive, send))
        await await_for(lambda: len(sent) > 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        # While this loop runs: its end would wake the thread, too.
        assert await asyncio.to_thread(closed.wait, 10)

    asyncio.run(story())
    assert call_again(app) == 200


def call_again(app: Any) -> int:
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(call(app, http_scope()).status))
    thread.start()
    thread.join(10)
    assert statuses, "the only thread is lost"
    return statuses[0]


def test_an_error_of_the_application_is_its_own() -> None:
    def broken(environ: Any, start_response: Any) -> list[bytes]:
        raise ConnectionAbortedError("a database's")

    with pytest.raises(ConnectionAbortedError, match="a database's"):
        call(ThreadedWSGI(broken, 1), http_scope())

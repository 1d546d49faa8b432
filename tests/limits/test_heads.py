"""How long a request's head may be, and how long it may take, with each HTTP implementation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from websockets.sync.client import connect as websocket_connect

from mesh_middleware.server import awaited
from tests.limits.peers import Service, ended, service
from tests.server.mesh import request
from tests.support import wait_for

KINDS = ["httptools", "h11", "zttp", "zttp with http2"]
START = b"GET / HTTP/1.1\r\nhost: mesh\r\n"


@pytest.fixture(scope="module", params=KINDS)
def api(request: pytest.FixtureRequest) -> Iterator[Service]:
    http, _, http2 = request.param.partition(" with ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(awaited, "HEAD_SECONDS", 1.0)
        with service(http, http2=bool(http2)) as running:
            yield running


PIECES = {
    "many": b"x-a: " + b"a" * 1000 + b"\r\n",
    "one name": b"x-endless",
    "target": b"/long/target",
}


@pytest.mark.parametrize("kind", PIECES)
@pytest.mark.parametrize("caller", ["web", "refused"])
def test_a_head_without_end_is_cut(api: Service, kind: str, caller: str) -> None:
    with closing(api.connect(caller)) as sock:
        sock.sendall(b"GET /" if kind == "target" else START)

        def cut() -> bool:
            """An error status, or the end; what is sent after that is read and thrown away."""
            sock.settimeout(10)
            try:
                sock.sendall(PIECES[kind] * 64)
                sock.settimeout(0.005)
                answer = sock.recv(4096)
            except TimeoutError:
                return False
            except OSError:
                return True
            assert answer[:10] in (b"", b"HTTP/1.1 4")
            return True

        wait_for(cut, 15, "it is still being read")


@pytest.mark.parametrize("begin", [b"", b"GET", START], ids=["nothing", "method", "headers"])
def test_a_head_that_does_not_come_is_not_awaited(api: Service, begin: bytes) -> None:
    with closing(api.connect()) as sock:
        sock.sendall(begin)
        ended(sock)


def test_nor_is_one_that_comes_a_byte_at_a_time(api: Service) -> None:
    with closing(api.connect()) as sock:
        sock.sendall(START)

        def cut() -> bool:
            try:
                sock.sendall(b"x")
            except OSError:
                return True
            return False

        wait_for(cut, 15)


def test_nor_is_a_second_one(api: Service) -> None:
    with closing(api.connect()) as sock:
        assert request(sock)[0] == 200
        sock.sendall(START)
        ended(sock)


def test_whoever_is_quick_is_not_cut(api: Service) -> None:
    """Longer than the bound in time: requests, a body that is slow, an open WebSocket."""
    with (
        closing(api.connect()) as busy,
        closing(api.connect()) as slow,
        closing(api.connect()) as upgraded,
        websocket_connect("ws://mesh/", sock=upgraded, proxy=None) as websocket,
    ):
        slow.sendall(b"POST / HTTP/1.1\r\nhost: mesh\r\ncontent-length: 100\r\n\r\n")
        for _ in range(100):
            assert request(busy)[0] == 200
            slow.sendall(b"x")
            websocket.send("still here")
            assert websocket.recv(10) == "still here"
            end = time.monotonic() + 0.02
            wait_for(lambda end=end: time.monotonic() > end)
        assert slow.recv(4096).startswith(b"HTTP/1.1 200")

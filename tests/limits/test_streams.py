"""HTTP/2: how long a request may take to come, and what one connection may ask for at a time."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import httpx
import pytest

from mesh_middleware.server import awaited, streams
from mesh_middleware.server.streams import UNSENT_BYTES
from mesh_middleware.tls.contexts import MeshContext
from tests.limits.frames import (
    CANCEL,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    HELLO,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    NO_ERROR,
    PREFACE,
    REFUSED_STREAM,
    Frame,
    Kind,
    error,
    error_code,
    frame,
    frames,
    get,
    last_stream,
)
from tests.limits.peers import Service, app, ended, service
from tests.limits.test_floods import resident
from tests.support import wait_for

PING = frame(Kind.PING, payload=b"still us")
HALF = get(1)[:12]


LOOPS = ["asyncio", "uvloop"]


@pytest.fixture(scope="module", params=LOOPS)
def patient(request: pytest.FixtureRequest) -> Iterator[Service]:
    """uvicorn's own limit on idle connections is out of the way."""
    with service("zttp", http2=True, timeout_keep_alive=60, loop=request.param) as running:
        yield running


@pytest.fixture
def api(patient: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(awaited, "HEAD_SECONDS", 0.4)
    return patient


def connect(api: Service) -> ssl.SSLSocket:
    sock = api.connect(alpn=("h2",))
    assert sock.selected_alpn_protocol() == "h2"
    return sock


def received(sock: ssl.SSLSocket, found: list[Frame]) -> list[Frame]:
    """`found`, with what came since."""
    sock.settimeout(0.05)
    with suppress(TimeoutError):
        found += frames(sock.recv(65536))
    sock.settimeout(10)
    return found


def still(value: Callable[[], object]) -> None:
    """Wait until `value` has not changed for a while."""
    last, since = value(), time.monotonic()

    def quiet() -> bool:
        nonlocal last, since
        if value() != last:
            last, since = value(), time.monotonic()
        return time.monotonic() - since > 0.3

    wait_for(quiet)


def credit(stream: int, size: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, 0, stream, struct.pack(">I", size))


def reset(stream: int) -> bytes:
    return error(Kind.RST_STREAM, stream, CANCEL)


def answer(sock: ssl.SSLSocket, stream: int) -> list[Frame]:
    """What came until `stream` was answered in full."""
    data, found = b"", []
    while not any(f.stream == stream and f.flags & END_STREAM for f in found[-100:]):
        more = sock.recv(65536)
        assert more, "the connection ended"
        data += more
        new = list(frames(data))
        data = data[sum(9 + len(f.payload) for f in new) :]
        found += new
    return found


BEGINNINGS = {
    "nothing": b"",
    "half the preface": PREFACE[:10],
    "preface": PREFACE,
    "preface and settings": HELLO,
    "half a head": HELLO + HALF,
    "a head without its end": HELLO + get(1, flags=0),
}


@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
def test_a_request_that_does_not_come_is_not_awaited(api: Service, begin: bytes) -> None:
    with closing(connect(api)) as sock:
        sock.sendall(begin)
        last = list(frames(ended(sock)))[-1]
        assert last.kind == Kind.GOAWAY


def test_its_goodbye_is_not_awaited_either(api: Service) -> None:
    """The loops would wait for the other side's close_notify for half a minute."""
    with closing(connect(api)) as sock, socket.socket(fileno=os.dup(sock.fileno())) as below:
        assert frames(ended(sock))
        assert ended(below) == b""


@pytest.mark.parametrize("piece", [PING, b"\0"], ids=["pings", "a head, byte by byte"])
@pytest.mark.parametrize("served", [False, True], ids=["first", "later"])
def test_nor_is_one_of_which_there_is_always_a_little_more(
    api: Service, piece: bytes, served: bool
) -> None:
    with closing(connect(api)) as sock:
        sock.sendall(HELLO)
        if served:
            sock.sendall(get(1))
            answer(sock, 1)
        if piece != PING:
            sock.sendall(frame(Kind.HEADERS, END_HEADERS | END_STREAM, 3, b"\0" * 10_000)[:9])

        def cut() -> bool:
            try:
                sock.sendall(piece)
            except OSError:
                return True
            return False

        wait_for(cut, 15)


def test_whoever_has_a_request_open_is_not_cut(api: Service) -> None:
    """Longer than the bound in time: a request that is slow, and one after the other."""
    with closing(connect(api)) as slow, closing(connect(api)) as busy:
        slow.sendall(HELLO + get(1, flags=END_HEADERS))
        busy.sendall(HELLO)
        for number in range(40):
            busy.sendall(PING + get(1 + 2 * number))
            answer(busy, 1 + 2 * number)
            end = time.monotonic() + 0.02
            wait_for(lambda end=end: time.monotonic() > end)
        slow.sendall(frame(Kind.DATA, END_STREAM, 1, b"x"))
        answer(slow, 1)


@pytest.fixture(scope="module", params=LOOPS)
def streaming(request: pytest.FixtureRequest) -> Iterator[tuple[Service, Counter[str]]]:
    """A service with its own limits, and what its application was asked for and has sent."""
    counted: Counter[str] = Counter()

    async def streams(scope: Any, receive: Any, send: Any) -> None:
        counted[scope["path"]] += 1
        if scope["path"] not in ("/stream", "/whole"):
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/whole":
            await send({"type": "http.response.body", "body": WHOLE})
            return
        for _ in range(PIECES):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            counted["bytes"] += len(PIECE)
        await send({"type": "http.response.body"})

    with service(
        "zttp", http2=True, app=streams, loop=request.param, timeout_keep_alive=60
    ) as running:
        yield running, counted


WHOLE = b"x" * 10_000_000
PIECE, PIECES = b"x" * 16384, 100


@pytest.mark.parametrize("window", [65535, 2**30], ids=["of HTTP/2", "of TCP"])
def test_a_client_that_is_slow_to_take_a_response_is_not_cut(
    streaming: tuple[Service, Counter[str]], monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """The request is over for uvicorn, and a ping begins no other one."""
    monkeypatch.setattr(awaited, "HEAD_SECONDS", 0.2)
    api, _ = streaming
    grant = frame(Kind.SETTINGS, payload=struct.pack(">HI", INITIAL_WINDOW_SIZE, window))
    with closing(connect(api)) as sock:
        sock.sendall(PREFACE + grant)
        if window > 65535:
            sock.sendall(credit(0, window))
        sock.sendall(get(1, "/whole"))
        for _ in range(30):
            sock.sendall(PING)
            end = time.monotonic() + 0.02
            wait_for(lambda end=end: time.monotonic() > end)
        if window == 65535:
            sock.sendall(credit(0, len(WHOLE)) + credit(1, len(WHOLE)))
        body = [f.payload for f in answer(sock, 1) if f.kind == Kind.DATA]
        assert b"".join(body) == WHOLE


def test_nor_is_one_whose_connection_is_used_up(
    streaming: tuple[Service, Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STREAMS", 2)
    api, _ = streaming
    with closing(connect(api)) as sock:
        sock.sendall(HELLO + get(1, "/whole"))
        found = list(frames(sock.recv(65536)))
        sock.sendall(credit(0, len(WHOLE)) + credit(1, len(WHOLE)))
        found += answer(sock, 1)
        assert not any(f.kind == Kind.GOAWAY for f in found)
        sock.sendall(get(3))
        found = [*answer(sock, 3), *frames(ended(sock))]
        assert found[-1].kind == Kind.GOAWAY


def test_what_is_no_http2_is_not_listened_to(
    streaming: tuple[Service, Counter[str]], caplog: pytest.LogCaptureFixture
) -> None:
    api, _ = streaming
    with closing(connect(api)) as sock:
        sock.sendall(HELLO + frame(Kind.DATA, 0, 0, b"of no stream"))

        def cut() -> bool:
            try:
                sock.sendall(PING * 100)
            except OSError:
                return True
            return False

        wait_for(cut, 15)
    assert sum("Invalid HTTP/2" in r.getMessage() for r in caplog.records) == 1


def test_streams_beyond_those_announced_are_refused(
    streaming: tuple[Service, Counter[str]],
) -> None:
    """With RFC 9113 8.7's word for it that nothing was done about them."""
    api, _ = streaming
    with closing(connect(api)) as sock:
        sock.sendall(HELLO + b"".join(get(1 + 2 * n, "/hold") for n in range(130)))
        found: list[Frame] = []
        wait_for(lambda: len([f for f in received(sock, found) if f.kind == Kind.RST_STREAM]) == 2)
        settings = next(f for f in found if f.kind == Kind.SETTINGS).payload
        announced = dict(struct.iter_unpack(">HI", settings))[MAX_CONCURRENT_STREAMS]
        refused = {f.stream: error_code(f) for f in found if f.kind == Kind.RST_STREAM}
        assert announced == 128
        assert refused == dict.fromkeys((257, 259), REFUSED_STREAM)
        sock.sendall(reset(1) + get(261))
        answer(sock, 261)


def test_rapid_resets_end_the_connection(streaming: tuple[Service, Counter[str]]) -> None:
    """Each open stream is one less, but the application was called: CVE-2023-44487."""
    api, counted = streaming
    before, asked = resident(), counted["/hold"]
    with closing(connect(api)) as sock:
        sock.sendall(HELLO)
        with suppress(OSError):
            for number in range(10_000):
                sock.sendall(get(1 + 2 * number, "/hold") + reset(1 + 2 * number))
        found = list(frames(ended(sock)))
        goaways = [error_code(f) for f in found if f.kind == Kind.GOAWAY]
        assert goaways
    assert counted["/hold"] - asked <= 257
    assert resident() - before < 16 * 1024
    with closing(connect(api)) as sock:
        sock.sendall(HELLO + get(1))
        answer(sock, 1)


def test_a_head_of_many_frames_is_cut(streaming: tuple[Service, Counter[str]]) -> None:
    api, _ = streaming
    with closing(connect(api)) as sock:
        sock.sendall(HELLO + get(1, flags=END_STREAM))
        with suppress(OSError):
            for _ in range(10_000):
                sock.sendall(frame(Kind.CONTINUATION, 0, 1, LITERAL))
        last = list(frames(ended(sock)))[-1]
        assert (last.kind, error_code(last)) == (Kind.GOAWAY, ENHANCE_YOUR_CALM)


LITERAL = b"\0\1a\x7f\x81\x01" + b"a" * 256  # RFC 7541 6.2.2: not indexed; RFC 7541 5.1: 256


def test_a_connection_ends_between_two_requests(
    streaming: tuple[Service, Counter[str]],
) -> None:
    """zttp breaks it off with the 4,097th, and what is open with it."""
    api, _ = streaming
    with closing(connect(api)) as sock:
        sock.sendall(HELLO)
        found: list[Frame] = []
        for number in range(2048):
            sock.sendall(get(1 + 2 * number))
            found += answer(sock, 1 + 2 * number)
        found += frames(ended(sock))
    (goaway,) = (f for f in found if f.kind == Kind.GOAWAY)
    assert (error_code(goaway), last_stream(goaway)) == (NO_ERROR, 4095)


def test_one_that_always_has_a_request_open_is_asked_to_end(
    monkeypatch: pytest.MonkeyPatch, streaming: tuple[Service, Counter[str]]
) -> None:
    monkeypatch.setattr(streams, "STREAMS", 64)
    api, _ = streaming
    with closing(connect(api)) as sock:
        sock.sendall(HELLO + get(1, "/hold"))
        found: list[Frame] = []
        for number in range(1, 100):  # it has not read yet what is asked of it
            sock.sendall(get(1 + 2 * number))
            found += answer(sock, 1 + 2 * number)
        sock.sendall(reset(1))
        found += frames(ended(sock))
    asked, last = (f for f in found if f.kind == Kind.GOAWAY)
    assert [error_code(asked), error_code(last)] == [NO_ERROR, NO_ERROR]
    assert [last_stream(asked), last_stream(last)] == [2**31 - 1, 199]


def test_whoever_resets_many_streams_loses_none(
    streaming: tuple[Service, Counter[str]],
) -> None:
    """A client that gave up waiting so often is none that is malicious."""
    api, _ = streaming
    with closing(connect(api)) as sock:
        sock.sendall(HELLO)
        for number in range(128):
            sock.sendall(get(1 + 2 * number, "/hold") + reset(1 + 2 * number))
        (goaway,) = (f for f in frames(ended(sock)) if f.kind == Kind.GOAWAY)
    assert (error_code(goaway), last_stream(goaway)) == (NO_ERROR, 255)


def test_no_request_of_a_client_is_lost_when_its_connection_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "STREAMS", 6)
    with service("zttp", http2=True) as api:
        contexts = api.mesh.contexts("web")
        context = MeshContext.for_client(lambda: contexts, api.mesh.identity("api"))
        with httpx.Client(verify=context, http2=True, timeout=10, trust_env=False) as client:
            for _ in range(20):
                response = client.get(f"https://127.0.0.1:{api.port}/")
                assert (response.status_code, response.http_version) == (200, "HTTP/2")


def test_a_response_waits_for_a_client_that_takes_none_of_it(
    streaming: tuple[Service, Counter[str]],
) -> None:
    api, counted = streaming
    window = struct.pack(">HI", INITIAL_WINDOW_SIZE, 0)
    with closing(connect(api)) as sock:
        before, memory = counted["bytes"], resident()
        sock.sendall(PREFACE + frame(Kind.SETTINGS, payload=window) + get(1, "/stream"))
        wait_for(lambda: counted["bytes"] > before)
        still(lambda: counted["bytes"])
        assert counted["bytes"] - before <= UNSENT_BYTES + len(PIECE)
        assert resident() - memory < 4 * 1024

        size = PIECES * len(PIECE)
        sock.sendall(credit(0, size) + credit(1, size))
        body = [f.payload for f in answer(sock, 1) if f.kind == Kind.DATA]
        assert sum(map(len, body)) == size


@pytest.mark.parametrize("end", ["reset", "gone"])
def test_nobody_waits_for_a_client_that_left(
    streaming: tuple[Service, Counter[str]], end: str
) -> None:
    api, counted = streaming
    window = struct.pack(">HI", INITIAL_WINDOW_SIZE, 0)
    before = counted["bytes"]
    with closing(connect(api)) as sock:
        sock.sendall(PREFACE + frame(Kind.SETTINGS, payload=window) + get(1, "/stream"))
        wait_for(lambda: counted["bytes"] > before)
        still(lambda: counted["bytes"])
        if end == "reset":
            sock.sendall(reset(1))
            wait_for(lambda: counted["bytes"] - before == PIECES * len(PIECE))
    wait_for(lambda: counted["bytes"] - before == PIECES * len(PIECE))


def test_who_asks_and_reads_no_answer_is_not_read_from(
    streaming: tuple[Service, Counter[str]],
) -> None:
    """CVE-2019-9512: each ping is answered, each answer kept."""
    api, _ = streaming
    with closing(connect(api)) as sock:
        sock.sendall(HELLO)
        before, sent = resident(), 0
        sock.settimeout(2)
        with suppress(TimeoutError):
            while sent < 3_000_000:
                sock.sendall(PING * 1000)
                sent += 1000
        assert sent < 3_000_000
        assert resident() - before < 16 * 1024

        answers = 0  # once the client reads, it is read from again
        while answers < sent * len(PING):
            more = sock.recv(65536)
            assert more
            answers += len(more)

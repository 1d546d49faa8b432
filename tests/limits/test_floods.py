"""Many peers at once, or none that finishes: others are served, log and memory do not grow."""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from mesh_middleware.config import MeshConfig
from mesh_middleware.devagent import DevAgent
from mesh_middleware.server.worker import Settings
from mesh_middleware.tls import handshake
from mesh_middleware.tls.handshake import RefusalLog
from tests.e2e.launch import PLAIN, Caller, Launched
from tests.limits.peers import Service, ended, service
from tests.server.mesh import request
from tests.support import wait_for

CLIENT_HELLO = bytes.fromhex("160301 00ff 010000fb 0303") + b"\0" * 40
"""The beginning of one; the rest never comes."""


@pytest.fixture(scope="module")
def api() -> Iterator[Service]:
    with service() as running:
        yield running


def resident() -> int:
    """KiB of this process, which serves, too."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths


def anonymous(api: Service) -> bool:
    """A handshake without a certificate; True when it was refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with context.wrap_socket(api.plain(), server_hostname="mesh") as sock:
            return ended(sock) == b""
    except OSError:
        return True


def test_a_flood_of_refused_handshakes_is_a_few_lines(
    api: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "refusals", RefusalLog(burst=5, per_second=0))
    caplog.set_level(logging.INFO)
    for _ in range(20):
        assert anonymous(api)
    files, before = open_files(), resident()
    for _ in range(200):
        assert anonymous(api)
    assert sum("refused in the TLS handshake" in r.getMessage() for r in caplog.records) == 5
    assert len(caplog.records) < 20
    assert resident() - before < 8 * 1024
    wait_for(lambda: open_files() <= files + 2)
    with closing(api.connect()) as sock:
        assert request(sock)[0] == 200


@pytest.mark.parametrize("hello", [b"", CLIENT_HELLO], ids=["half open", "slow handshake"])
def test_handshakes_that_never_end_keep_nobody_out(api: Service, hello: bytes) -> None:
    with ExitStack() as stack:
        before = resident()
        for _ in range(300):
            sock = stack.enter_context(api.plain())
            sock.sendall(hello)
        with closing(api.connect()) as allowed:
            assert request(allowed)[0] == 200
        assert resident() - before < 300 * 256  # each has its buffers of up to 256 KiB
    with closing(api.connect()) as allowed:
        assert request(allowed)[0] == 200


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_slow_handshake_is_ended(loop: str) -> None:
    options = ("--timeout-handshake", "1.5", "--loop", loop)
    with DevAgent() as agent, Launched(agent.address, *options, app=PLAIN) as launched:
        launched.serves()
        with ExitStack() as stack:
            for hello in (b"", CLIENT_HELLO):
                sock = stack.enter_context(
                    socket.create_connection(("127.0.0.1", launched.port), timeout=10)
                )
                sock.sendall(hello)
                assert ended(sock, 8) == b""  # before the default would
        with closing(Caller.of(agent.address, "web").connect(launched.port)) as sock:
            assert request(sock)[0] == 403


def test_ten_seconds_are_enough_for_a_handshake() -> None:
    assert Settings(PLAIN, MeshConfig("api"), {}).handshake_seconds == 10.0


def test_a_refused_caller_is_refused_a_thousand_times_in_a_few_lines(
    api: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with closing(api.connect("refused")) as sock:
        for number in range(200):
            assert request(sock, f"/{number}")[0] == 403
        before = resident()
        for number in range(1000):
            assert request(sock, f"/{'x' * 500}{number}")[0] == 403
        assert resident() - before < 8 * 1024
    decisions = [r for r in caplog.records if r.name == "mesh_middleware.decisions"]
    assert len(decisions) < 200
    assert all(len(record.getMessage()) < 4000 for record in decisions)


def test_connections_are_limited_when_an_operator_says_so() -> None:
    with service(limit_concurrency=3) as api, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(closing(api.connect()))
        with closing(api.connect()) as late:
            assert request(late)[0] == 503


def test_an_idle_connection_is_closed() -> None:
    with service(timeout_keep_alive=1) as api, closing(api.connect()) as sock:
        assert request(sock)[0] == 200
        assert ended(sock) == b""


def test_a_message_of_a_websocket_is_limited() -> None:
    from websockets.exceptions import ConnectionClosed  # noqa: PLC0415 - one test's
    from websockets.sync.client import connect  # noqa: PLC0415

    with (
        service(ws_max_size=1000) as api,
        closing(api.connect()) as sock,
        connect("ws://mesh/", sock=sock, proxy=None) as websocket,
    ):
        websocket.send("x" * 2000)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009

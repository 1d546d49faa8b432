"""The listening socket, and what is said when it cannot be had."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mesh_middleware.server.exits import ExitCode, LaunchError
from mesh_middleware.server.launcher import display_address
from mesh_middleware.server.listen import bind


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "https://127.0.0.1:"), ("::1", "https://[::1]:")]
)
def test_a_port_is_bound_and_not_yet_listened_on(host: str, shown: str) -> None:
    with bind(host, 0) as listener:
        assert display_address(listener).startswith(shown)
        # What asyncio asks for before it turns Nagle's algorithm off.
        assert listener.proto == socket.IPPROTO_TCP
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(listener.getsockname()[:2], timeout=5)


def test_a_taken_port_is_said_with_its_own_code() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"127\.0\.0\.1:{port} is taken") as raised:
            bind("127.0.0.1", port)
    assert raised.value.code is ExitCode.PORT_TAKEN


def test_an_address_that_is_not_ours_is_another_failure() -> None:
    with pytest.raises(LaunchError, match=r"cannot listen on 192\.0\.2\.1:80") as raised:
        bind("192.0.2.1", 80)
    assert raised.value.code is ExitCode.RUNTIME


def test_a_host_that_does_not_resolve_is_a_wrong_option() -> None:
    with pytest.raises(LaunchError, match=r"--host no-such-host\.invalid") as raised:
        bind("no-such-host.invalid", 0)
    assert raised.value.code is ExitCode.USAGE


def test_unix_sockets_and_inherited_descriptors(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with bind("", 0, uds=path) as listener:
        assert display_address(listener) == f"unix:{path}"
        with bind("", 0, fd=listener.fileno()) as inherited:
            assert inherited.getsockname() == path

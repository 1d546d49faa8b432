"""A real Envoy on loopback: one listener for each setting, one virtual host for each policy."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mesh_middleware.policy.request import Normalization, Underscores
from tests.servers.envoy import require_envoy
from tests.support import free_port, wait_for

_FILTERS = "type.googleapis.com/envoy.extensions.filters"
_RBAC = f"{_FILTERS}.http.rbac.v3"


@dataclass(frozen=True)
class Listener:
    """Settings, and the RBAC rules of virtual hosts: the n-th is found by Host ``<n>.test``.

    With one set of rules, it is that of every Host.
    """

    normalization: Normalization
    rules: Sequence[dict[str, Any]]


@contextlib.contextmanager
def running(listeners: Sequence[Listener], folder: Path) -> Iterator[list[int]]:
    """An Envoy with these listeners; their ports."""
    ports = [free_port() for _ in listeners]
    config = {
        "static_resources": {
            "listeners": [_listener(*pair) for pair in zip(listeners, ports, strict=True)]
        }
    }
    file = folder / "envoy.json"
    file.write_text(json.dumps(config))
    log = folder / "envoy.log"
    command = [require_envoy(), "--config-path", str(file), "--concurrency", "1"]
    command += ["--disable-hot-restart", "--log-level", "warning", "--log-path", str(log)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(
                lambda: process.poll() is not None or all(_listens(port) for port in ports),
                timeout=60,
            )
            assert process.poll() is None, log.read_text()[-3000:]
            yield ports
        finally:
            process.terminate()
            process.wait(20)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _listener(listener: Listener, port: int) -> dict[str, Any]:
    normalization = listener.normalization
    underscores = {
        Underscores.ALLOW: "ALLOW",
        Underscores.REJECT_REQUEST: "REJECT_REQUEST",
        Underscores.DROP_HEADER: "DROP_HEADER",
    }[normalization.underscores]
    manager = {
        "@type": f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "normalize_path": normalization.path,
        "merge_slashes": normalization.merge_slashes,
        "path_with_escaped_slashes_action": normalization.escaped_slashes.value,
        "common_http_protocol_options": {"headers_with_underscores_action": underscores},
        "stream_idle_timeout": "5s",
        "route_config": {"virtual_hosts": list(_hosts(listener.rules))},
        "http_filters": [
            {"name": "rbac", "typed_config": {"@type": f"{_RBAC}.RBAC"}},
            {
                "name": "router",
                "typed_config": {"@type": f"{_FILTERS}.http.router.v3.Router"},
            },
        ],
    }
    return {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _hosts(rules: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, each in enumerate(rules):
        route = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
        per_route = {"@type": f"{_RBAC}.RBACPerRoute", "rbac": {"rules": each}}
        yield {
            "name": f"{number}",
            "domains": ["*"] if len(rules) == 1 else [f"{number}.test"],
            "routes": [route],
            "typed_per_filter_config": {"rbac": per_route},
        }


class Client:
    """Sends requests as bytes on a connection that is kept as long as Envoy keeps it."""

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection up; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, request: bytes) -> int:
        """The status; 0 when the connection is closed without an answer."""
        for fresh in (self._socket is None, True):
            if self._socket is None:
                self._socket = socket.create_connection(self._address, timeout=10)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                self._socket.sendall(request)
                status = self._answer(has_body=not request.startswith(b"HEAD "))
            except (ConnectionError, TimeoutError):
                status = 0
            if status == 0:
                self.close()
            if status or fresh:
                return status
        return 0

    def _answer(self, *, has_body: bool) -> int:
        assert self._socket is not None
        found = b""
        while b"\r\n\r\n" not in found:
            more = self._socket.recv(65536)
            if not more:
                return 0
            found += more
        head, _, body = found.partition(b"\r\n\r\n")
        fields = head.lower().split(b"\r\n")
        length = next((int(f[15:]) for f in fields if f.startswith(b"content-length:")), 0)
        while has_body and len(body) < length:
            more = self._socket.recv(65536)
            if not more:
                break
            body += more
        if b"connection: close" in fields:
            self.close()
        return int(head.split(b" ", 2)[1])

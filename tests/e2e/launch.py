"""What end-to-end tests drive: the command in a process of its own, and clients with leaves."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as websocket_connect

from mesh_middleware.consul.decode import decode_leaf, decode_roots
from mesh_middleware.policy.spiffe import ServiceIdentity
from mesh_middleware.tls.certificates import X509SVID, TrustBundle
from mesh_middleware.tls.contexts import TLSContexts
from tests.server.mesh import request
from tests.support import free_port, wait_for

ROOT = Path(__file__).parents[2]
APP = "tests.e2e.app:app"
PLAIN = "tests.server.apps:hello"
"""Starts faster, for tests that ask it nothing."""


class Launched:
    """``mesh-middleware run`` in a process; a context manager that leaves nothing behind."""

    def __init__(
        self,
        agent: str,
        *arguments: str,
        service: str = "web",
        app: str = APP,
        env: dict[str, str] | None = None,
        cwd: Path = ROOT,
        port: int | None = None,
    ) -> None:
        self.agent = agent
        self.service = service
        self.port = port or free_port()
        self.command = [
            *(sys.executable, "-m", "mesh_middleware", "run", app),
            *("--service", service, "--port", str(self.port), "--grace", "0"),
            *arguments,
        ]
        self._env = {
            **{key: text for key, text in os.environ.items() if not key.startswith("CONSUL_")},
            "CONSUL_HTTP_ADDR": agent,
            "MESH_DEFAULT_ACTION": "deny",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            **(env or {}),
        }
        self._cwd = cwd
        with tempfile.NamedTemporaryFile(prefix="mesh-e2e-", suffix=".log", delete=False) as file:
            self._log = Path(file.name)

    def __enter__(self) -> Self:
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command, stdout=output, stderr=output, env=self._env, cwd=self._cwd
            )
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        self._log.unlink()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def says(self, text: str, timeout: float = 20.0, times: int = 1) -> None:
        """Wait until the log has `text`; fail with the log when the process ends or time is up."""

        def said() -> bool:
            # read after the look at the process: its last words count
            ended = self.process.poll() is not None
            return self.log.count(text) >= times or ended

        wait_for(said, timeout, f"no {text!r} in:\n{self.log}")
        assert self.log.count(text) >= times, self.log

    def serves(self, timeout: float = 20.0) -> Self:
        """Wait until the agent lists the instance as passing."""
        self.says("health check passing", timeout)
        return self

    def signal(self, signum: int = signal.SIGTERM) -> None:
        self.process.send_signal(signum)

    def ends(self, timeout: float = 15.0) -> int:
        """The exit code, once it has ended."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.log}") from None

    def stop(self) -> int:
        self.signal()
        return self.ends()


@dataclass(frozen=True)
class Caller:
    """A service with its leaf and roots of one moment, as an agent gave them."""

    svid: X509SVID
    bundle: TrustBundle

    @classmethod
    def of(cls, agent: str, service: str) -> Caller:
        with httpx.Client(base_url=agent, trust_env=False, timeout=10) as client:
            leaf = client.get(f"/v1/agent/connect/ca/leaf/{service}")
            roots = client.get("/v1/agent/connect/ca/roots")
        return cls(decode_leaf(leaf.json()), decode_roots(roots.json()))

    def context(self, server: str) -> ssl.SSLContext:
        ours = self.svid.identity
        expected = ServiceIdentity(
            ours.trust_domain, server, ours.namespace, ours.partition, ours.datacenter
        )
        return TLSContexts(self.svid, self.bundle, generation=1).client(expected)

    def connect(self, port: int, server: str = "web") -> ssl.SSLSocket:
        sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        try:
            return self.context(server).wrap_socket(sock, server_hostname="mesh")
        except BaseException:
            sock.close()
            raise

    def get(
        self, port: int, target: str = "/whoami", headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """One GET on a connection of its own: status, and the body as JSON."""
        with closing(self.connect(port)) as sock:
            status, body = request(sock, target, headers)
            return status, json.loads(body)

    @contextmanager
    def websocket(self, port: int, path: str = "/echo") -> Iterator[ClientConnection]:
        sock = self.connect(port)
        try:
            with websocket_connect(f"ws://mesh{path}", sock=sock, proxy=None) as connection:
                yield connection
        finally:
            sock.close()


REFUSED = (OSError, http.client.HTTPException)
"""What a client sees of a connection that the server does not want: which, is the loop's choice."""


def refused(caller: Caller, port: int) -> bool:
    """True when the server ends the connection because of who `caller` is."""
    try:
        caller.get(port)
    except REFUSED:
        return True
    return False


def command(agent: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """``mesh-middleware ARGUMENTS``, run to its end."""
    environment = {**os.environ, "CONSUL_HTTP_ADDR": agent, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, "-m", "mesh_middleware", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        cwd=ROOT,
    )


def health(agent: str, service: str, *, passing: bool = False) -> list[dict[str, Any]]:
    """The catalogue's connect-native instances of `service`."""
    query = "?passing" if passing else ""
    answer = httpx.get(f"{agent}/v1/health/connect/{service}{query}", trust_env=False, timeout=10)
    rows: list[dict[str, Any]] = answer.json()
    return rows


def worker_pids(log: str) -> set[int]:
    return {int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", log)}


def rotate(agent: str) -> None:
    """Give the agent's CA another private key, as an operator would."""
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    with httpx.Client(base_url=f"{agent}/v1/connect/ca", trust_env=False, timeout=10) as client:
        config = client.get("/configuration").json()["Config"]
        config |= {"PrivateKey": key.decode(), "RootCert": ""}
        answer = client.put("/configuration", json={"Provider": "consul", "Config": config})
    assert answer.status_code == 200, answer.text

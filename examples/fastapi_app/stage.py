"""What the demo plays on: a development agent, and services under the launcher with their logs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509

from mesh_middleware import MeshConfig, MeshError
from mesh_middleware.devagent import DevAgent
from mesh_middleware.upstream.oneshot import Call, Reply, call_once

HERE = Path(__file__).parent
STOP_SECONDS = 15.0


class Service:
    """``mesh-middleware run APP --service NAME`` in a process that ends with the ``with``."""

    def __init__(self, name: str, app: str, agent: DevAgent) -> None:
        self.name = name
        self._log = tempfile.NamedTemporaryFile("wb")  # noqa: SIM115 - __exit__ closes it
        options = ["--service", name, "--port", "0", "--app-dir", str(HERE)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mesh_middleware", "run", app, *options],
            env=environment(agent),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.ended:
            self.process.kill()
            self.process.wait()
        self._log.close()

    @property
    def ended(self) -> bool:
        """Whether it ended by itself, or was stopped."""
        return self.process.poll() is not None

    def stop(self) -> int | None:
        """SIGTERM; the exit code, or None when it did not end in time."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    @property
    def log(self) -> str:
        """All that it has said."""
        return Path(self._log.name).read_text()


def environment(agent: DevAgent) -> dict[str, str]:
    """Ours, but for settings of another Consul."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("CONSUL_", "MESH_"))}
    return {**ours, "CONSUL_HTTP_ADDR": agent.address}


def call(
    agent: DevAgent, caller: str, method: str, url: str, body: bytes | None = None
) -> Reply | None:
    """One request over mTLS with a certificate of `caller`, made just now; None: no answer."""
    config = MeshConfig.from_env(caller, environ={"CONSUL_HTTP_ADDR": agent.address})
    headers = (("content-type", "application/json"),) if body else ()
    try:
        return asyncio.run(call_once(config, Call(url, method=method, headers=headers, body=body)))
    except MeshError:
        return None


def issuer(reply: Reply | None) -> str:
    """The key that signed the server's certificate, in hexadecimal; empty without an answer."""
    if reply is None:
        return ""
    leaf = x509.load_der_x509_certificate(reply.certificate)
    found = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    return (found.key_identifier or b"").hex()
